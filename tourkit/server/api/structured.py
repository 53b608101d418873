"""Check structured answers against their schema, repair them by rule, or ask the model once more.

The grammar may have been relaxed, and a schema can demand things that no grammar can express. So an answer is valid
only if it passes the check against the schema that the client sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from tourkit.errors import RequestError
from tourkit.generation import Enforced, Finish, Request
from tourkit.grammar.check import validate
from tourkit.grammar.repair import repair
from tourkit.server.api.replies import Choice

_MOST_ERRORS = 5  # shown to the client, and to the model if it is asked again


@dataclass(frozen=True, slots=True)
class Checked:
    """One checked answer.

    `choice`: the answer with its text after repair. `valid`: the text follows the schema.
    `repaired`, `errors`: lines for people. `retried`: the model was asked once more.
    `cut_off`: max_tokens ended the text, so asking again would not help.
    """

    choice: Choice
    valid: bool
    repaired: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    retried: bool = False
    cut_off: bool = False

    @property
    def worth_asking_again(self) -> bool:
        return not self.valid and not self.cut_off

    def shown(self) -> dict[str, Any]:
        return {
            "valid": self.valid,
            "repaired": list(self.repaired),
            "retried": self.retried,
            "errors": list(self.errors),
        }


def check(schema: dict[str, Any], choice: Choice, *, may_repair: bool = True) -> Checked:
    """Check an answer. If it breaks the schema, repair it by rule if that makes it valid and `may_repair` is set."""
    try:
        data = json.loads(choice.text)
    except ValueError as exc:
        cut_off = choice.finish is Finish.LENGTH
        reason = "cut off by max_tokens: raise it" if cut_off else f"not JSON: {exc}"
        return Checked(choice, False, errors=(reason,), cut_off=cut_off)
    errors = validate(schema, data)
    if not errors:
        return Checked(choice, True)
    if may_repair:
        fixed, repairs = repair(schema, data)
        if repairs and not validate(schema, fixed):
            text = json.dumps(fixed, ensure_ascii=False)
            return Checked(replace(choice, text=text), True, repaired=tuple(repairs))
    return Checked(choice, False, errors=tuple(errors[:_MOST_ERRORS]))


async def check_all(
    request: Request,
    schema: dict[str, Any],
    choices: Iterable[Choice],
    ask: Callable[[Request], Awaitable[Choice | None]],
) -> list[Checked] | None:
    """Check and repair every answer. If one stays wrong, `ask` the model once more and take the better answer.

    Return None if `ask` returns None: the client hung up.
    """
    checked = []
    for choice in choices:
        found = await asyncio.to_thread(check, schema, choice)  # in a thread: a schema's patterns can be slow to match
        if found.worth_asking_again and request.messages is not None:
            with contextlib.suppress(RequestError):  # for example, the conversation no longer fits the context
                second = await ask(ask_again(request, found))
                if second is None:
                    return None
                again = await asyncio.to_thread(check, schema, second)
                found = replace(again if again.valid else found, retried=True)
        checked.append(found)
    return checked


def about(constraint: Enforced, checked: Iterable[Checked]) -> dict[str, Any]:
    """Return the report of a structured answer: how strict the grammar was, and the result of each check."""
    choices = [{"index": i} | each.shown() for i, each in enumerate(checked)]
    return {"constraint": constraint.level, "dropped": list(constraint.dropped), "choices": choices}


def ask_again(request: Request, wrong: Checked) -> Request:
    """Return the request for one new answer: the conversation, then the wrong answer and its errors."""
    complaint = "That answer breaks the schema: " + "; ".join(wrong.errors) + ". Answer again, with JSON only."
    turns = ({"role": "assistant", "content": wrong.choice.text}, {"role": "user", "content": complaint})
    return replace(request, messages=(*(request.messages or ()), *turns), n=1, tight=True)

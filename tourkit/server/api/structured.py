"""Check structured answers against their schema, repair them by rule, or ask the model once more.

The grammar may have been relaxed, and a schema can demand things that no grammar can express. So an answer is valid
only if it passes the check against the schema that the client sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from tourkit.errors import QueueFull, RequestError
from tourkit.generation import Enforced, Finish, Request
from tourkit.grammar.trial.answers import Verdict
from tourkit.server.api.replies import Choice

_CUT = "cut off by max_tokens: raise it"

Judge = Callable[[str], Awaitable[Verdict | None]]  # checks the text of an answer; None: the client hung up


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


def checked(choice: Choice, verdict: Verdict) -> Checked:
    """Return an answer with the result of its check."""
    if verdict.valid:
        return Checked(replace(choice, text=verdict.text), True, repaired=verdict.repaired)
    if not verdict.is_json and choice.finish is Finish.LENGTH:
        only_thought = choice.reasoning and not choice.text
        why = "max_tokens ended the thinking: raise it, or set thinking_budget" if only_thought else _CUT
        return Checked(choice, False, errors=(why,), cut_off=True)
    return Checked(choice, False, errors=verdict.errors)


async def check_all(
    request: Request, choices: Iterable[Choice], judge: Judge, ask: Callable[[Request], Awaitable[Choice | None]]
) -> list[Checked] | None:
    """Check and repair every answer. If one stays wrong, `ask` the model once more and take the better answer.

    Return None if `judge` or `ask` returns None: the client hung up.
    """
    results = []
    for choice in choices:
        verdict = await judge(choice.text)
        if verdict is None:
            return None
        found = checked(choice, verdict)
        if found.worth_asking_again and request.messages is not None:
            # For example, the conversation no longer fits the context, or too many constraints are being tried.
            with contextlib.suppress(RequestError, QueueFull):
                second = await ask(ask_again(request, found))
                verdict = None if second is None else await judge(second.text)
                if second is None or verdict is None:
                    return None
                again = checked(second, verdict)
                found = replace(again if again.valid else found, retried=True)
        results.append(found)
    return results


def about(constraint: Enforced, checked: Iterable[Checked]) -> dict[str, Any]:
    """Return the report of a structured answer: how strict the grammar was, and the result of each check."""
    choices = [{"index": i} | each.shown() for i, each in enumerate(checked)]
    return {"constraint": constraint.level, "dropped": list(constraint.dropped), "choices": choices}


def ask_again(request: Request, wrong: Checked) -> Request:
    """Return the request for one new answer: the conversation, then the wrong answer and its errors."""
    complaint = "That answer breaks the schema: " + "; ".join(wrong.errors) + ". Answer again, with JSON only."
    turns = ({"role": "assistant", "content": wrong.choice.text}, {"role": "user", "content": complaint})
    return replace(request, messages=(*(request.messages or ()), *turns), n=1, tight=True)

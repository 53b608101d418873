"""Structured answers against their schema: checked always, mended where a rule does it, else asked for once more.

The grammar that generation followed may have been relaxed, and schemas say things no grammar can: only the check
against the schema as it was sent makes an answer valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from tourkit.errors import RequestError
from tourkit.generation import Enforced, Finish, Request
from tourkit.grammar.check import validate
from tourkit.grammar.repair import repair
from tourkit.server.api.replies import Choice

_MOST_ERRORS = 5  # told to the caller, and to the model when it is asked again


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of one answer. `repaired` and `errors` are lines for people."""

    text: str
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


def check(schema: dict[str, Any], choice: Choice, *, mend: bool = True) -> Checked:
    """Check an answer; `mend` it by rule when that makes it valid."""
    text = choice.text
    try:
        data = json.loads(text)
    except ValueError as exc:
        cut_off = choice.finish is Finish.LENGTH
        reason = "cut off by max_tokens: raise it" if cut_off else f"not JSON: {exc}"
        return Checked(text, False, errors=(reason,), cut_off=cut_off)
    errors = validate(schema, data)
    if not errors:
        return Checked(text, True)
    if mend:
        mended, repairs = repair(schema, data)
        if repairs and not validate(schema, mended):
            return Checked(json.dumps(mended, ensure_ascii=False), True, repaired=tuple(repairs))
    return Checked(text, False, errors=tuple(errors[:_MOST_ERRORS]))


async def check_all(
    request: Request,
    schema: dict[str, Any],
    choices: list[Choice],
    ask: Callable[[Request], Awaitable[Choice | None]],
) -> list[Checked] | None:
    """Settle every answer; where that fails, `ask` once more. The choices become what is to be given out.

    None when `ask` gave None, as it does when the client went away.
    """
    settled = []
    for i, choice in enumerate(choices):
        outcome = await asyncio.to_thread(check, schema, choice)  # a schema's patterns can be slow to match
        if outcome.worth_asking_again and request.messages is not None:
            with contextlib.suppress(RequestError):  # such as of a conversation that no longer fits the context
                second = await ask(ask_again(request, choice.text, outcome))
                if second is None:
                    return None
                better = await asyncio.to_thread(check, schema, second)
                outcome = replace(better if better.valid else outcome, retried=True)
                choices[i] = second if better.valid else choice
        choices[i] = replace(choices[i], text=outcome.text)
        settled.append(outcome)
    return settled


def about(constraint: Enforced, settled: list[Checked]) -> dict[str, Any]:
    """What a caller should know of a structured answer: how far the grammar went, and what was done afterwards."""
    choices = [{"index": i} | each.shown() for i, each in enumerate(settled)]
    return {"constraint": constraint.level, "dropped": list(constraint.dropped), "choices": choices}


def ask_again(request: Request, text: str, outcome: Checked) -> Request:
    """The same request with the answer and what is wrong with it behind the conversation, for one sequence."""
    complaint = "That answer breaks the schema: " + "; ".join(outcome.errors) + ". Answer again, with JSON only."
    turns = ({"role": "assistant", "content": text}, {"role": "user", "content": complaint})
    return replace(request, messages=(*(request.messages or ()), *turns), n=1, tight=True)

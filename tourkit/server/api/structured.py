"""Check structured answers against their schema, repair them by rule, or ask the model once more.

The grammar may have been relaxed, and a schema can demand things that no grammar can express. So an answer is valid
only if it passes the check against the schema that the client sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from tourkit.calling.tools import Call, Offer
from tourkit.errors import QueueFull, RequestError
from tourkit.generation import Enforced, Finish, Request
from tourkit.grammar.trial.answers import Verdict
from tourkit.server.api.replies import Choice

_CUT = "cut off by max_tokens: raise it"

# Checks a text under a schema, given as JSON text. It returns None if the client hung up.
Judge = Callable[[str, str], Awaitable[Verdict | None]]


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


def is_checked(request: Request, choices: Iterable[Choice]) -> bool:
    """Return whether answers are checked: those under a schema, and calls of tools."""
    return request.schema_source is not None or any(choice.calls for choice in choices)


def is_plain(constraint: Enforced, results: Iterable[Checked]) -> bool:
    """Return whether there is nothing to report: the grammar enforced all, and every answer is valid as it was."""
    return constraint.level == "strict" and all(each.valid and not each.repaired for each in results)


async def verdict_of(request: Request, choice: Choice, judge: Judge) -> Checked | None:
    """Check one answer: its calls, or its content. Return None if `judge` does: the client hung up."""
    if choice.calls and request.offer is not None:
        return await _calls_checked(request.offer, choice, judge)
    if request.schema_source is None:
        return Checked(choice, True)
    verdict = await judge(request.schema_source, choice.text)
    return None if verdict is None else checked(choice, verdict)


async def _calls_checked(offer: Offer, choice: Choice, judge: Judge) -> Checked | None:
    """Check and repair the arguments of each call."""
    schemas = {tool.name: tool.parameters for tool in offer.tools}
    calls, repaired, errors = [], [], []
    for i, call in enumerate(choice.calls):
        verdict = await judge(schemas[call.name], call.arguments)
        if verdict is None:
            return None
        if not verdict.is_json and choice.finish is Finish.LENGTH:
            return Checked(choice, False, errors=(_CUT,), cut_off=True)
        calls.append(Call(call.id, call.name, verdict.text))
        repaired += [f"tool_calls[{i}]: {line}" for line in verdict.repaired]
        errors += [f"tool_calls[{i}]: {line}" for line in verdict.errors]
    return Checked(replace(choice, calls=tuple(calls)), not errors, tuple(repaired), tuple(errors))


async def check_all(
    request: Request, choices: Iterable[Choice], judge: Judge, ask: Callable[[Request], Awaitable[Choice | None]]
) -> list[Checked] | None:
    """Check and repair every answer. If one stays wrong, `ask` the model once more and take the better answer.

    Return None if `judge` or `ask` returns None: the client hung up.
    """
    results = []
    for choice in choices:
        found = await verdict_of(request, choice, judge)
        if found is None:
            return None
        if found.worth_asking_again and request.messages is not None:
            # For example, the conversation no longer fits the context, or too many constraints are being tried.
            with contextlib.suppress(RequestError, QueueFull):
                second = await ask(ask_again(request, found))
                again = None if second is None else await verdict_of(request, second, judge)
                if again is None:
                    return None
                found = replace(again if again.valid else found, retried=True)
        results.append(found)
    return results


def about(constraint: Enforced, checked: Iterable[Checked]) -> dict[str, Any]:
    """Return the report of a structured answer: how strict the grammar was, and the result of each check."""
    choices = [{"index": i} | each.shown() for i, each in enumerate(checked)]
    return {"constraint": constraint.level, "dropped": list(constraint.dropped), "choices": choices}


def ask_again(request: Request, wrong: Checked) -> Request:
    """Return the request for one new answer: the conversation, then the wrong answer and its errors.

    Wrong calls are not shown to the model, because a chat template expects results after calls.
    """
    if wrong.choice.calls:
        return replace(request, n=1, tight=True)
    complaint = "That answer breaks the schema: " + "; ".join(wrong.errors) + ". Answer again, with JSON only."
    turns = ({"role": "assistant", "content": wrong.choice.text}, {"role": "user", "content": complaint})
    return replace(request, messages=(*(request.messages or ()), *turns), n=1, tight=True)

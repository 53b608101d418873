"""The fields of a chat request about thinking, and the defaults of those that it leaves out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tourkit.defaults import RoleDefaults
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.generation import Thinking
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean, integer

THINKING_FIELDS = (
    *("chat_template_kwargs", "reasoning_effort", "thinking_budget", "thinking_token_budget", "include_reasoning"),
)
HISTORY_FIELDS = ("reasoning_content", "reasoning")  # of an assistant's message; the first is tourkit's own name
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SWITCHES = ("enable_thinking", "thinking")  # names in chat_template_kwargs, as templates have them
# Variables of the chat template that tourkit sets.
OWN_VARIABLES = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token"})


@dataclass(frozen=True, slots=True)
class AskedThinking:
    """What a body asks for. `kwargs`: as in Request.template_kwargs. `fields`: as in Request.thinking_fields.

    `shown`: whether the reply has the text of the thinking.
    """

    thinking: Thinking
    kwargs: tuple[tuple[str, str], ...]
    fields: tuple[str, ...]
    shown: bool


def thinking_of(body: dict[str, Any], usual: RoleDefaults) -> AskedThinking:
    """Return what a body asks for. `usual`: what it gets if it leaves a field out. Raises RequestError."""
    kwargs, effort, budget = _kwargs(body), _effort(body), _budget(body)
    switch, enabled = _switch(kwargs)
    if enabled is None and effort:
        enabled = effort != "none"
    fields = [name for name in THINKING_FIELDS[1:] if body.get(name) is not None]
    fields += [f"{THINKING_FIELDS[0]}.{name}" for name in kwargs]
    fields += [HISTORY_FIELDS[0]] if _has_history(body) else []
    return AskedThinking(
        Thinking(
            enabled=usual.thinking if enabled is None else enabled,
            effort=effort or usual.effort,
            budget=usual.thinking_budget if budget is None else budget,
        ),
        tuple((name, json.dumps(value)) for name, value in kwargs.items() if name != switch),
        tuple(fields),
        body.get("include_reasoning") is None or boolean(body, "include_reasoning"),
    )


def thought_of(message: dict[str, Any], role: str, where: str) -> dict[str, str]:
    """Return the thinking of an earlier answer as a part of the message; empty if there is none."""
    found = [(name, message[name]) for name in HISTORY_FIELDS if message.get(name) not in (None, "")]
    for name, text in found:
        if role != "assistant":
            raise RequestError(
                f"{where}.{name} is for the messages of the assistant: leave it out",
                param=f"{where}.{name}",
                code="unsupported_parameter",
            )
        if not isinstance(text, str):
            raise RequestError(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return {HISTORY_FIELDS[0]: found[0][1]} if found else {}


def _has_history(body: dict[str, Any]) -> bool:
    messages = body.get("messages") or ()
    return any(isinstance(each, dict) and each.get(name) for each in messages for name in HISTORY_FIELDS)


def _kwargs(body: dict[str, Any]) -> dict[str, Any]:
    """Return chat_template_kwargs. Its values may be any JSON."""
    name = THINKING_FIELDS[0]
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be an object with variables of the chat template", param=name)
    limits.TEMPLATE_KWARGS.check(len(value))
    for key in value:
        if key in OWN_VARIABLES or not (key.isascii() and key.isidentifier()):
            raise RequestError(
                f"{name}: {quoted(key)} cannot be set: leave it out", param=excerpt(f"{name}.{key}"), code=None
            )
    return value


def _switch(kwargs: dict[str, Any]) -> tuple[str, bool | None]:
    """Return the name that turns thinking on or off, and its value; "" and None if there is none."""
    for name in _SWITCHES:
        if isinstance(kwargs.get(name), bool):
            return name, kwargs[name]
    return "", None


def _effort(body: dict[str, Any]) -> str:
    effort = body.get("reasoning_effort")
    if effort is None:
        return ""
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise RequestError(f"reasoning_effort must be one of {', '.join(EFFORTS)}", param="reasoning_effort")
    return effort


def _budget(body: dict[str, Any]) -> int | None:
    ours, others = (integer(body, name, *limits.THINKING_BUDGETS) for name in THINKING_FIELDS[2:4])
    if ours is not None and others is not None and ours != others:
        raise RequestError(
            "thinking_budget and thinking_token_budget differ: give one of them", param="thinking_budget"
        )
    return others if ours is None else ours

"""The fields of Anthropic's POST /v1/messages: they become a chat request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tourkit.defaults import RoleDefaults, defaults_of
from tourkit.errors import RequestError, excerpt, quoted
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean, integer
from tourkit.server.api.message_blocks import texts_of, turns_of
from tourkit.server.api.requests import Generate, checked_model_of, parse_translated
from tourkit.server.api.route_fields import COUNT_TOKENS, MESSAGES, Use

_SAME = ("model", "stream", "max_tokens", "temperature", "top_p", "top_k")  # fields that chat has too
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
KINDS = ("enabled", "adaptive", "disabled")  # of thinking
DISPLAYS = (None, "summarized", "omitted")  # of thinking
_COUNTED = frozenset(field.name for field in COUNT_TOKENS if field.use is Use.READ)


def parse_message(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Check and convert the body of POST /v1/messages. `defaults`: as in Launch. Raises RequestError."""
    checked_model_of(body, MESSAGES)
    asked = _parsed(body, defaults)
    # Clients must send max_tokens, and send large numbers. So it is only a limit.
    return replace(asked, request=replace(asked.request, fitted=True))


def parse_count(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Generate:
    """Check and convert the body of POST /v1/messages/count_tokens. Raises RequestError."""
    checked_model_of(body, COUNT_TOKENS)
    return _parsed({key: value for key, value in body.items() if key in _COUNTED}, defaults)


def _parsed(body: dict[str, Any], defaults: tuple[RoleDefaults, ...]) -> Generate:
    if body.get("thread") is not None:
        message = "thread: this server keeps no conversations: leave it out, and send all messages"
        # Anthropic's clients know this code, and do what the message says.
        raise RequestError(message, param="thread", code="thread_unsupported_request")
    names: dict[str, str] = {"stop": "stop_sequences"}
    thinking = _thinking(body, defaults)
    chat = {key: body[key] for key in _SAME if key in body}
    chat |= {"messages": _messages(body, names), "stop": _stop(body.get("stop_sequences"))}
    chat |= _tools(body, names) | _output(body, names) | thinking.fields(names)
    asked = parse_translated(chat, names, defaults)
    fields = tuple(name for name in asked.request.thinking_fields if name in thinking.asked)
    return replace(asked, request=replace(asked.request, thinking_fields=fields), include_reasoning=thinking.shown)


def _stop(value: Any) -> Any:
    if not isinstance(value, list | None):
        raise RequestError("stop_sequences must be a list of strings", param="stop_sequences")
    return value


def _messages(body: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Return the messages of chat, the system prompt first."""
    value, system = body.get("messages"), body.get("system")
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list of at least one message", param="messages")
    limits.MESSAGES.check(len(value))
    made = [] if system is None else [{"role": "system", "content": texts_of(system, "system")}]
    made = [each for each in made if each["content"]]
    found = turns_of(value)
    if found[-1].role == "assistant":
        raise RequestError(
            "messages: the last message is the assistant's, and this server does not continue it: end with a message "
            "of the user",
            param="messages",
            code="unsupported_parameter",
        )
    for turn in found:
        made += turn.messages(len(made), names)
    return made


# --- tools ------------------------------------------------------------------------------------------------------------


def _tools(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the fields of chat about tools."""
    value = body.get("tools")
    if not isinstance(value, list | None):
        raise RequestError("tools must be a list of tools", param="tools")
    tools = [_tool(each, f"tools[{i}]", names) for i, each in enumerate(value or ())]
    return {"tools": tools} | _choice(body.get("tool_choice"))


def _tool(value: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with name and input_schema", param=where)
    if value.get("type") not in (None, "custom"):
        raise RequestError(
            f"{where}.type must be custom: this server has no tools of its own",
            param=f"{where}.type",
            code="unsupported_parameter",
        )
    names |= {f"{where}.function": where, f"{where}.function.parameters": f"{where}.input_schema"}
    about = {"name": value.get("name"), "parameters": value.get("input_schema"), "strict": value.get("strict")}
    return {"type": "function", "function": about | {"description": _description(value, where)}}


def _description(tool: dict[str, Any], where: str) -> Any:
    """Return what the model reads about a tool: its description, and examples of its input if there are any."""
    said, examples = tool.get("description"), tool.get("input_examples") or []
    if not isinstance(examples, list):
        raise RequestError(f"{where}.input_examples must be a list of objects", param=f"{where}.input_examples")
    if not examples or not isinstance(said, str | None):
        return said
    shown = [json.dumps(each, ensure_ascii=False) for each in examples]
    return "\n".join([*([said] if said else []), "Examples of its input:", *shown])


def _choice(value: Any) -> dict[str, Any]:
    field = "tool_choice"
    if value is None:
        return {}
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "tool":
        if not isinstance(value.get("name"), str):
            raise RequestError(f"{field}.name must be the name of a tool", param=f"{field}.name")
        choice: Any = {"type": "function", "function": {"name": value["name"]}}
    elif isinstance(kind, str) and kind in CHOICES:
        choice = CHOICES[kind]
    else:
        raise RequestError(f"{field}.type must be auto, any, tool or none", param=f"{field}.type")
    only_one = _boolean_in(value, "disable_parallel_tool_use", field)
    return {"tool_choice": choice, "parallel_tool_calls": not only_one}


def _boolean_in(value: dict[str, Any], key: str, where: str) -> bool:
    try:
        return boolean(value, key)
    except RequestError as exc:
        raise RequestError(f"{where}.{exc}", param=f"{where}.{key}") from exc


# --- the form of the answer -------------------------------------------------------------------------------------------


def _output(body: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the fields of chat about the schema of the answer, and about effort."""
    config, form, at = body.get("output_config"), body.get("output_format"), "output_format"
    if not isinstance(config, dict | None):
        raise RequestError("output_config must be an object", param="output_config")
    config = {key: value for key, value in (config or {}).items() if value is not None}
    for key in config:
        if key not in ("effort", "format"):
            where = excerpt(f"output_config.{key}")
            raise RequestError(f"{where} is not supported: leave it out", param=where, code="unsupported_parameter")
    if "format" in config:
        if form is not None:
            raise RequestError(
                "output_config.format and output_format exclude each other: give one", param="output_format"
            )
        form, at = config["format"], "output_config.format"
    return _effort(config.get("effort"), names) | _format(form, at, names)


def _effort(value: Any, names: dict[str, str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, str) or value not in EFFORTS:
        where = "output_config.effort"
        raise RequestError(f"{where} must be one of {', '.join(EFFORTS)}", param=where)
    names["reasoning_effort"] = "output_config.effort"
    return {"reasoning_effort": EFFORTS[value]}


def _format(value: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or value.get("type") != "json_schema":
        raise RequestError(f"{where}.type must be json_schema", param=f"{where}.type")
    names |= {"response_format": where, "response_format.json_schema": where}
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value.get("schema")}}}


# --- thinking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Thinking:
    """How the model thinks. `shown`: the answer has the text. `asked`: fields of chat that the request names."""

    enabled: bool
    budget: int | None
    shown: bool
    asked: tuple[str, ...]

    def fields(self, names: dict[str, str]) -> dict[str, Any]:
        """Return the fields of chat."""
        names |= {"chat_template_kwargs.enable_thinking": "thinking", "thinking_budget": "thinking.budget_tokens"}
        budget = {} if self.budget is None else {"thinking_budget": self.budget}
        return {"chat_template_kwargs": {"enable_thinking": self.enabled}} | budget


def _thinking(body: dict[str, Any], defaults: tuple[RoleDefaults, ...]) -> _Thinking:
    """Return what a body asks for. Without the field the model thinks only if the set's defaults say so.

    Clients that do not ask for thinking expect text as the first block of an answer.
    """
    value = body.get("thinking")
    other = ("reasoning_effort", "reasoning_content")
    if value is None:
        enabled = defaults_of(defaults, body["model"]).thinking is True
        return _Thinking(enabled, None, shown=False, asked=other)
    if not isinstance(value, dict) or value.get("type") not in KINDS:
        given = value.get("type") if isinstance(value, dict) else None
        said = f": {quoted(given)} is not known" if isinstance(given, str) else ""
        raise RequestError(f"thinking.type must be one of {', '.join(KINDS)}{said}", param="thinking.type")
    if value.get("display") not in DISPLAYS:
        raise RequestError("thinking.display must be summarized or omitted", param="thinking.display")
    enabled = value["type"] != "disabled"
    budget = _budget(value) if value["type"] == "enabled" else None
    shown = enabled and value.get("display") != "omitted"
    asked = ("chat_template_kwargs.enable_thinking", "thinking_budget", *other) if enabled else other
    return _Thinking(enabled, budget, shown=shown, asked=asked)


def _budget(value: Mapping[str, Any]) -> int | None:
    try:
        return integer(dict(value), "budget_tokens", 1, limits.INT_32)
    except RequestError as exc:
        raise RequestError(f"thinking.{exc}", param="thinking.budget_tokens") from exc

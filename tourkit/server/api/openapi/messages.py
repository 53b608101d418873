"""Schemas of Anthropic's API: the bodies, the answers, and the events of a stream."""

from __future__ import annotations

from tourkit.server.api import limits
from tourkit.server.api.message_blocks import IN_ASSISTANT, IN_TEXT, IN_USER
from tourkit.server.api.message_fields import CHOICES, DISPLAYS, EFFORTS, KINDS
from tourkit.server.api.openapi.parts import (
    ANY,
    COUNT,
    FLAG,
    NULL,
    OBJECT,
    TEXT,
    Body,
    Schema,
    any_of,
    array,
    has,
    if_then,
    nullable,
    record,
    ref,
    values,
    whole,
    whole_record,
)
from tourkit.server.api.openapi.request_parts import ARGUMENTS, EMPTY, MOST_TOKENS, STOPS, TEXT_FIELDS, TOOL_NAME

# --- requests ---------------------------------------------------------------------------------------------------------

_PLAIN_FILE = record({"type": {"const": "text"}, "data": TEXT}, ["type", "data"])
_BLOCKS: dict[str, Schema] = {
    "text": record({"text": TEXT}, ["text"]),
    "document": record({"source": _PLAIN_FILE, "title": ANY}, ["source"]),
    "thinking": record({"thinking": TEXT}, ["thinking"]),
    "redacted_thinking": OBJECT,
    "tool_use": record({"id": ANY, "name": ANY, "input": ANY}),
    "tool_result": record({"content": any_of(ref("MessageText"), NULL), "is_error": nullable(FLAG)}),
}


def _blocks(kinds: tuple[str, ...]) -> Schema:
    """Return a content: a string or a list of blocks of some types."""
    found = [
        _BLOCKS[kind]
        | {"properties": {"type": {"const": kind}, **_BLOCKS[kind].get("properties", {})}}
        | {"required": ["type", *_BLOCKS[kind].get("required", [])]}
        for kind in kinds
    ]
    return any_of(TEXT, array(any_of(*found)))


def _turn(role: str, content: Schema) -> Schema:
    return record({"role": {"const": role}, "content": content}, ["role", "content"], rest=NULL)


_TOOL = record(
    {
        "type": values(["custom", None]),
        "name": TOOL_NAME,
        "description": nullable(TEXT),
        "input_schema": ARGUMENTS,
        "strict": nullable(FLAG),
        "input_examples": any_of(values(EMPTY), {"type": "array"}),
    },
    ["name"],
)
_CHOICE = any_of(
    record({"type": values(CHOICES), "disable_parallel_tool_use": nullable(FLAG)}, ["type"]),
    record({"type": {"const": "tool"}, "name": TEXT, "disable_parallel_tool_use": nullable(FLAG)}, ["type", "name"]),
    NULL,
)
_SHOWN = values(DISPLAYS)
_THINKING = any_of(
    record(
        {
            "type": {"const": "enabled"},
            "budget_tokens": nullable(whole(1, limits.THINKING_BUDGETS[1])),
            "display": _SHOWN,
        },
        ["type"],
    ),
    record({"type": values(kind for kind in KINDS if kind != "enabled"), "display": _SHOWN}, ["type"]),
    NULL,
)
_FORMAT = record({"type": {"const": "json_schema"}, "schema": ref("JsonSchema")}, ["type", "schema"])
_OUTPUT = record({"effort": nullable(values(EFFORTS)), "format": any_of(_FORMAT, NULL)}, rest=NULL)
_COUNTED: dict[str, Schema] = {
    "messages": array(ref("MessageTurn"), 1, limits.MESSAGES.most),
    "system": any_of(ref("MessageText"), NULL),
    "tools": nullable(array(ref("MessageTool"), most=limits.TOOLS.most)),
    "tool_choice": _CHOICE,
    "thinking": _THINKING,
    "output_config": any_of(_OUTPUT, NULL),
    "output_format": any_of(_FORMAT, NULL),
    "thread": NULL,
}
_ONE_FORMAT = if_then(
    has("output_config", has("format", {"type": "object"})),
    {"properties": {"output_format": NULL}},
    "output_config.format and output_format exclude each other.",
)
_ABOUT = (
    "The last message must not be the assistant's. Also refused: two tools of one name; a choice of a tool that is not "
    "offered."
)
BODIES = {
    "/v1/messages": Body(
        read=_COUNTED
        | {
            "max_tokens": MOST_TOKENS,
            "stream": nullable(FLAG),
            "stop_sequences": nullable(STOPS),
            **{name: TEXT_FIELDS[name] for name in ("temperature", "top_p", "top_k")},
        },
        required=("model", "messages"),
        rules=(_ONE_FORMAT,),
        about=_ABOUT,
    ),
    "/v1/messages/count_tokens": Body(_COUNTED, ("model", "messages"), (_ONE_FORMAT,), _ABOUT),
}

# --- answers ----------------------------------------------------------------------------------------------------------

_USAGE = whole_record(
    {
        "input_tokens": COUNT,
        "cache_creation_input_tokens": COUNT,
        "cache_read_input_tokens": COUNT,
        "output_tokens": COUNT,
        "output_tokens_details": whole_record({"thinking_tokens": COUNT}),
    },
    optional=["output_tokens_details"],
)
_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded")
_ENDING = {"stop_reason": nullable(values(_REASONS)), "stop_sequence": nullable(TEXT)}
_SHOWN_BLOCK = any_of(
    whole_record({"type": {"const": "text"}, "text": TEXT}),
    whole_record({"type": {"const": "thinking"}, "thinking": TEXT, "signature": TEXT}),
    whole_record({"type": {"const": "tool_use"}, "id": TEXT, "name": TEXT, "input": OBJECT}),
)
_MESSAGE = whole_record(
    {
        "id": TEXT,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": TEXT,
        "content": array(ref("MessageBlock")),
        **_ENDING,
        "usage": ref("MessageUsage"),
        "tourkit": ref("Report"),
    },
    optional=["tourkit"],
)
_DETAILS = whole_record({"error_code": TEXT, "param": TEXT}, optional=["error_code", "param"])
_ERROR = whole_record(
    {
        "type": {"const": "error"},
        "error": whole_record(
            {
                "type": TEXT,
                "message": TEXT,
                "details": nullable(_DETAILS),
            }
        ),
    }
)
_DELTA = any_of(
    whole_record({"type": {"const": "text_delta"}, "text": TEXT}),
    whole_record({"type": {"const": "thinking_delta"}, "thinking": TEXT}),
    whole_record({"type": {"const": "signature_delta"}, "signature": TEXT}),
    whole_record({"type": {"const": "input_json_delta"}, "partial_json": TEXT}),
)


def _event(kind: str, **fields: Schema) -> Schema:
    return whole_record({"type": {"const": kind}, **fields}, optional=["tourkit"])


_EVENT = any_of(
    _event("message_start", message=ref("MessageAnswer")),
    _event("content_block_start", index=COUNT, content_block=ref("MessageBlock")),
    _event("content_block_delta", index=COUNT, delta=_DELTA),
    _event("content_block_stop", index=COUNT),
    _event("message_delta", delta=whole_record(_ENDING), usage=ref("MessageUsage"), tourkit=ref("Report")),
    _event("message_stop"),
    _event("ping"),
    ref("MessageError"),
)
SCHEMAS: dict[str, Schema] = {
    "MessageText": _blocks(IN_TEXT),
    "MessageTurn": any_of(
        _turn("user", _blocks(IN_USER)), _turn("assistant", _blocks(IN_ASSISTANT)), _turn("system", ref("MessageText"))
    ),
    "MessageTool": _TOOL,
    "MessageUsage": _USAGE,
    "MessageBlock": _SHOWN_BLOCK,
    "MessageAnswer": _MESSAGE,
    "MessageError": _ERROR,
    "MessageEvent": _EVENT,
    "MessageCount": whole_record({"input_tokens": COUNT}),
}

"""Schemas of OpenAI's Responses API: the body, the answers, and the events of a stream."""

from __future__ import annotations

from tourkit.server.api import limits
from tourkit.server.api.openapi.parts import (
    ANY,
    COUNT,
    FLAG,
    NEVER,
    NULL,
    NUMBER,
    OBJECT,
    TEXT,
    Body,
    Schema,
    any_of,
    array,
    has,
    nullable,
    record,
    ref,
    values,
    whole,
    whole_record,
)
from tourkit.server.api.openapi.request_parts import (
    ANYWHERE,
    CONSTRAINTS,
    EFFORT,
    EMPTY,
    HAS_CALLS,
    MOST_TOKENS,
    NOTHING,
    TEXT_FIELDS,
    THINKING,
    one_constraint,
)
from tourkit.server.api.requests import ROLES
from tourkit.server.api.response_fields import INCLUDABLE, NAMED_REASONING, TRUNCATIONS, VERBOSITIES
from tourkit.server.api.response_items import OF_REPLIES, TEXT_PARTS
from tourkit.server.api.thinking_fields import HISTORY_FIELDS

# --- requests ---------------------------------------------------------------------------------------------------------

_OF_REPLIES = dict.fromkeys((name for name in OF_REPLIES if name != "type"), ANY)
_KIND_OF_MESSAGE = values(["message", None])
_REPLY_PART = any_of(
    ref("TextPart"),
    record({"type": {"const": "output_text"}, "text": TEXT}, ["type", "text"]),
    record({"type": {"const": "refusal"}, "refusal": TEXT}, ["type", "refusal"]),
)
_REPLY_CONTENT = any_of(TEXT, array(_REPLY_PART))
_ASSISTANT = record(
    {
        "type": _KIND_OF_MESSAGE,
        "role": {"const": "assistant"},
        "content": nullable(_REPLY_CONTENT),
        **ANYWHERE,
        **dict.fromkeys(HISTORY_FIELDS, nullable(TEXT)),
        **_OF_REPLIES,
    },
    ["role"],
    rest=NOTHING,
) | {"anyOf": [has("content", _REPLY_CONTENT), *HAS_CALLS]}
_OTHER = record(
    {
        "type": _KIND_OF_MESSAGE,
        "role": values(role for role in ROLES if role != "assistant"),
        "content": any_of(TEXT, array(ref("TextPart"))),
        **ANYWHERE,
        **dict.fromkeys(HISTORY_FIELDS, values([None, ""])),
        **_OF_REPLIES,
    },
    ["role", "content"],
    rest=NOTHING,
)
_THOUGHTS = any_of(values(EMPTY), array(record({"type": values(TEXT_PARTS), "text": TEXT}, ["type", "text"])))
_ITEM = any_of(
    ref("AssistantItem"),
    ref("OtherItem"),
    record({"type": {"const": "function_call"}, "call_id": ANY, "name": ANY, "arguments": ANY}, ["type"])
    | {"description": "A call of the assistant. A malformed one is passed on as text."},
    record({"type": {"const": "function_call_output"}, "call_id": ANY, "output": _REPLY_CONTENT}, ["type", "output"]),
    record({"type": {"const": "reasoning"}, "content": _THOUGHTS, "summary": _THOUGHTS}, ["type"]),
    record({"type": {"const": "item_reference"}, "id": TEXT}, ["type", "id"]),
    record({"type": NULL, "role": NEVER, "id": TEXT}, ["id"]),
)
_FORMAT = any_of(
    record({"type": values(["text", "json_object"])}, ["type"]),
    record({"type": {"const": "json_schema"}, "schema": ref("JsonSchema")}, ["type", "schema"]),
    NULL,
)
_CONSTRAINING = has("text", has("format", {"type": "object", "properties": {"type": {"not": {"const": "text"}}}}))
_TOOL = any_of(
    {"allOf": [ref("Function"), record({"type": {"const": "function"}}, ["type"])]},
    record({"type": NEVER, "function": ref("Function")}, ["function"]),
)
_ALLOWED = record(
    {
        "type": {"const": "allowed_tools"},
        "allowed_tools": NEVER,
        "mode": values(["auto", "required"]),
        "tools": array(ref("NamedFunction"), 1),
    },
    ["type", "tools"],
)
BODY = Body(
    read={name: schema for name, schema in TEXT_FIELDS.items() if name not in CONSTRAINTS}
    | {name: schema for name, schema in CONSTRAINTS.items() if name != "response_format"}
    | THINKING
    | {
        "input": any_of(TEXT, array(ref("ResponseInput"), 1, limits.ITEMS.most)),
        "instructions": nullable(TEXT),
        "previous_response_id": nullable(TEXT),
        "max_output_tokens": MOST_TOKENS,
        "text": nullable(record({"format": _FORMAT, "verbosity": nullable(values(VERBOSITIES))}, rest=NULL)),
        "reasoning": nullable(record({"effort": EFFORT, **dict.fromkeys(NAMED_REASONING, ANY)}, rest=NULL)),
        "truncation": nullable(values(TRUNCATIONS)),
        "store": nullable(FLAG),
        "metadata": nullable(OBJECT),
        "include": nullable(array(values(INCLUDABLE))),
        "top_logprobs": nullable(whole(0, limits.TOP_LOGPROBS.most)),
        "tools": nullable(array(_TOOL, most=limits.TOOLS.most)),
        "tool_choice": any_of(ref("ToolChoice"), _ALLOWED),
        "parallel_tool_calls": nullable(FLAG),
    },
    required=("model", "input"),
    rules=(one_constraint(_CONSTRAINING),),
    about="previous_response_id and item references lead to what this server has stored for this client, else 404. "
    "Also refused: two different thinking budgets; two functions of one name; a choice of a function that is not "
    "offered; functions beside regex, grammar or choice; an input of thinking alone.",
)

# --- answers ----------------------------------------------------------------------------------------------------------

_STATUS = values(["completed", "incomplete", "in_progress"])
_TOKEN = {"token": TEXT, "logprob": nullable(NUMBER), "bytes": array(COUNT)}
_LOGPROBS = array(whole_record({**_TOKEN, "top_logprobs": array(whole_record(_TOKEN))}))
_TEXT_PART = whole_record(
    {"type": {"const": "output_text"}, "text": TEXT, "annotations": array(NEVER), "logprobs": _LOGPROBS}
)
_THOUGHT_PART = whole_record({"type": {"const": "reasoning_text"}, "text": TEXT})
_OUTPUT = any_of(
    whole_record(
        {
            "id": TEXT,
            "type": {"const": "message"},
            "status": _STATUS,
            "role": {"const": "assistant"},
            "content": array(_TEXT_PART),
        }
    ),
    whole_record(
        {"id": TEXT, "type": {"const": "reasoning"}, "summary": array(NEVER), "content": array(_THOUGHT_PART)}
    ),
    whole_record(
        {
            "id": TEXT,
            "type": {"const": "function_call"},
            "status": _STATUS,
            "call_id": TEXT,
            "name": TEXT,
            "arguments": TEXT,
        }
    ),
)
_USAGE = whole_record(
    {
        "input_tokens": COUNT,
        "output_tokens": COUNT,
        "total_tokens": COUNT,
        "input_tokens_details": whole_record({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "output_tokens_details": whole_record({"reasoning_tokens": COUNT}),
    }
)
_SHOWN_FORMAT = any_of(
    whole_record({"type": values(["text", "json_object"])}),
    whole_record({"type": {"const": "json_schema"}, "name": ANY, "description": ANY, "schema": OBJECT, "strict": FLAG}),
)
_SHOWN_TOOL = whole_record(
    {"type": {"const": "function"}, "name": ANY, "description": ANY, "parameters": ANY, "strict": FLAG}
)
_RESPONSE = whole_record(
    {
        "id": TEXT,
        "object": {"const": "response"},
        "created_at": COUNT,
        "completed_at": nullable(COUNT),
        "status": values(["completed", "incomplete", "in_progress", "failed"]),
        "error": nullable(whole_record({"code": TEXT, "message": TEXT})),
        "incomplete_details": nullable(whole_record({"reason": TEXT})),
        "model": TEXT,
        "instructions": nullable(TEXT),
        "previous_response_id": nullable(TEXT),
        "max_output_tokens": nullable(COUNT),
        "max_tool_calls": nullable({"type": "integer"}),
        "metadata": OBJECT,
        "truncation": values(TRUNCATIONS),
        "store": FLAG,
        "background": {"const": False},
        "service_tier": TEXT,
        **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key"), nullable(TEXT)),
        **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), NUMBER),
        "top_logprobs": COUNT,
        "parallel_tool_calls": FLAG,
        "reasoning": whole_record({"effort": nullable(TEXT), "summary": NULL}),
        "text": whole_record({"format": _SHOWN_FORMAT, "verbosity": TEXT}, optional=["verbosity"]),
        "tools": array(_SHOWN_TOOL),
        "tool_choice": any_of(TEXT, OBJECT),
        "output": array(ref("ResponseItem")),
        "usage": any_of(_USAGE, NULL),
        "tourkit": ref("Report"),
    },
    optional=["tourkit"],
)
_WHERE = {"item_id": TEXT, "output_index": COUNT}
_PART = {**_WHERE, "content_index": COUNT}


def _event(kind: str, fields: dict[str, Schema]) -> Schema:
    return whole_record({"type": {"const": kind}, "sequence_number": COUNT, **fields})


_EVENT = any_of(
    *(
        _event(f"response.{name}", {"response": ref("Response")})
        for name in ("created", "in_progress", "completed", "incomplete", "failed")
    ),
    *(
        _event(f"response.output_item.{name}", {"output_index": COUNT, "item": ref("ResponseItem")})
        for name in ("added", "done")
    ),
    *(
        _event(f"response.content_part.{name}", {**_PART, "part": any_of(_TEXT_PART, _THOUGHT_PART)})
        for name in ("added", "done")
    ),
    _event("response.output_text.delta", {**_PART, "delta": TEXT, "logprobs": _LOGPROBS}),
    _event("response.output_text.done", {**_PART, "text": TEXT, "logprobs": _LOGPROBS}),
    _event("response.reasoning_text.delta", {**_PART, "delta": TEXT}),
    _event("response.reasoning_text.done", {**_PART, "text": TEXT}),
    _event("response.function_call_arguments.delta", {**_WHERE, "delta": TEXT}),
    _event("response.function_call_arguments.done", {**_WHERE, "name": TEXT, "arguments": TEXT}),
    _event("error", dict.fromkeys(("code", "param"), nullable(TEXT)) | {"message": TEXT, "error": OBJECT}),
)
SCHEMAS: dict[str, Schema] = {
    "AssistantItem": _ASSISTANT,
    "OtherItem": _OTHER,
    "ResponseInput": _ITEM,
    "ResponseItem": _OUTPUT,
    "Response": _RESPONSE,
    "ResponseEvent": _EVENT,
    "ResponseDeleted": whole_record({"id": TEXT, "object": {"const": "response"}, "deleted": {"const": True}}),
    "ResponseItems": whole_record(
        {
            "object": {"const": "list"},
            "data": array(OBJECT),
            "first_id": nullable(TEXT),
            "last_id": nullable(TEXT),
            "has_more": FLAG,
        }
    ),
}

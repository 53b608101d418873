"""Schemas of the parts of requests: messages, tools, constraints."""

from __future__ import annotations

from typing import Any

from tourkit.server.api import limits
from tourkit.server.api.constraint_fields import STRUCTURED, WITHOUT_EFFECT
from tourkit.server.api.openapi.parts import (
    ANY,
    FLAG,
    NEVER,
    NULL,
    TEXT,
    Schema,
    any_of,
    array,
    has,
    if_then,
    nullable,
    number,
    record,
    ref,
    text,
    values,
    whole,
)
from tourkit.server.api.requests import ROLES
from tourkit.server.api.sampling_fields import MOST_DIGITS
from tourkit.server.api.thinking_fields import EFFORTS, HISTORY_FIELDS, OWN_VARIABLES
from tourkit.server.api.tool_fields import MODES, NAME

FILLED = text(1)  # a string with at least one character
TOKEN = whole(*limits.TOKEN_IDS)
TOKENS = array(TOKEN, 1)
EMPTY: tuple[Any, ...] = (None, False, 0, "", [], {})  # values of JSON that are false in a condition
NOTHING = values([None, [], {}])  # an unknown field of a message may have these values only

_JSON_SCHEMA = record({"$schema": TEXT, "$id": TEXT}) | {
    "description": "A JSON Schema. Parts that no grammar can express are relaxed, or refused with `unsupported_schema`."
}
ARGUMENTS = any_of(
    NULL,
    record(
        {
            "type": any_of({"const": "object"}, {"type": "array", "contains": {"const": "object"}}),
            "$schema": TEXT,
            "$id": TEXT,
        }
    ),
    about="The JSON Schema of the arguments. It must be of the type object.",
)
TOOL_NAME: Schema = {"type": "string", "pattern": f"^{NAME.pattern}$"}
_FUNCTION = record(
    {
        "name": TOOL_NAME,
        "description": nullable(TEXT),
        "parameters": ARGUMENTS,
        "strict": nullable(FLAG),
    },
    ["name"],
)
_TOOL = record({"type": {"const": "function"}, "function": ref("Function")}, ["function"])
_TEXT_PART = record({"type": values(["text", "input_text"]), "text": TEXT}, ["type", "text"])
_CONTENT = any_of(TEXT, array(ref("TextPart")))
_CALLS = {
    "tool_calls": ANY | {"description": "Calls of the assistant. Malformed ones are passed on as text."},
    "function_call": ANY | {"description": "The older form of a call."},
}
ANYWHERE = {"name": ANY, "tool_call_id": ANY, **_CALLS}
HAS_CALLS = [{"properties": {name: {"not": {"enum": list(EMPTY)}}}, "required": [name]} for name in _CALLS]
MOST_FIELDS = {"maxProperties": limits.MESSAGE_FIELDS.most}
_ASSISTANT = (
    record(
        {
            "role": {"const": "assistant"},
            "content": nullable(_CONTENT),
            **ANYWHERE,
            **{name: nullable(TEXT) for name in HISTORY_FIELDS},
        },
        ["role"],
        rest=NOTHING,
    )
    | {"anyOf": [{"properties": {"content": _CONTENT}, "required": ["content"]}, *HAS_CALLS]}
    | MOST_FIELDS
)
_OTHER = (
    record(
        {
            "role": values(role for role in ROLES if role != "assistant"),
            "content": _CONTENT,
            **ANYWHERE,
            **{name: values([None, ""]) for name in HISTORY_FIELDS},
        },
        ["role", "content"],
        rest=NOTHING,
    )
    | MOST_FIELDS
)

_NAMED = any_of(
    record({"function": record({"name": TEXT}, ["name"])}, ["function"]),
    record({"name": TEXT, "function": NEVER}, ["name"]),
)
_ALLOWED = record({"mode": values(["auto", "required"]), "tools": array(ref("NamedFunction"), 1)}, ["mode", "tools"])
_CHOSEN = any_of(
    values([*MODES, "any"]),
    {"allOf": [ref("NamedFunction"), record({"type": {"not": {"const": "allowed_tools"}}})]},
    record({"type": {"const": "allowed_tools"}, "allowed_tools": ref("AllowedFunctions")}, ["type", "allowed_tools"]),
    {
        "allOf": [
            ref("AllowedFunctions"),
            record({"type": {"const": "allowed_tools"}, "allowed_tools": NEVER}, ["type"]),
        ]
    },
    NULL,
    about="`none`, `auto`, `required`, or an object that names functions. The functions must be among those offered.",
)

_SCHEMA_OR_TEXT = any_of(
    ref("JsonSchema"), TEXT | {"contentMediaType": "application/json", "contentSchema": ref("JsonSchema")}
)
_CHOICES = array(FILLED, 1, limits.CHOICES.most)
_OF_KIND = {"json": _SCHEMA_OR_TEXT, "regex": FILLED, "choice": _CHOICES, "grammar": FILLED, "json_object": FLAG}
_UNSET = values([None, False])
_STRUCTURED = (
    record(
        {name: any_of(_OF_KIND[kind], _UNSET) for name, kind in STRUCTURED.items()}
        | dict.fromkeys(WITHOUT_EFFECT, ANY),
        rest=_UNSET,
    )
    | {"oneOf": [{"properties": {name: {"not": _UNSET}}, "required": [name]} for name in STRUCTURED]}
    | {"description": "vLLM's form of the constraints. Exactly one kind."}
)
_FORMAT = any_of(
    record({"type": {"const": "text"}}, ["type"]),
    record({"type": {"const": "json_object"}, "schema": any_of(ref("JsonSchema"), NULL)}, ["type"]),
    record(
        {"type": {"const": "json_schema"}, "json_schema": record({"schema": ref("JsonSchema")}, ["schema"])},
        ["type", "json_schema"],
    ),
)

_INPUT = any_of(text(1, limits.TEXT_LENGTH.most), TOKENS)
SCHEMAS: dict[str, Schema] = {
    "JsonSchema": _JSON_SCHEMA,
    "TextPart": _TEXT_PART,
    "AssistantMessage": _ASSISTANT,
    "OtherMessage": _OTHER,
    "Message": any_of(ref("AssistantMessage"), ref("OtherMessage")),
    "Function": _FUNCTION,
    "Tool": _TOOL,
    "NamedFunction": _NAMED,
    "AllowedFunctions": _ALLOWED,
    "ToolChoice": _CHOSEN,
    "ResponseFormat": _FORMAT,
    "StructuredOutputs": _STRUCTURED,
    "EmbeddingInput": any_of(*_INPUT["anyOf"], array(_INPUT, 1, limits.TEXTS.most)),
}
CONSTRAINTS: dict[str, Schema] = {
    "response_format": any_of(ref("ResponseFormat"), NULL),
    "regex": nullable(FILLED | {"description": "The text matches this regular expression."}),
    "grammar": nullable(FILLED | {"description": "The text follows this grammar, in Lark's or in GBNF's form."}),
    "choice": nullable(_CHOICES | {"description": "The text is one of these."}),
    "json_schema": any_of(*_SCHEMA_OR_TEXT["anyOf"], NULL),
    "structured_outputs": any_of(ref("StructuredOutputs"), NULL),
    "guided_json": any_of(*_SCHEMA_OR_TEXT["anyOf"], NULL),
    "guided_regex": nullable(FILLED),
    "guided_choice": nullable(_CHOICES),
    "guided_grammar": nullable(FILLED),
}
TEMPLATE_VARIABLES: Schema = {
    "type": "object",
    "maxProperties": limits.TEMPLATE_KWARGS.most,
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "not": {"enum": sorted(OWN_VARIABLES)}},
    "description": "Variables for the chat template.",
}
EFFORT = nullable(values(EFFORTS))
THINKING: dict[str, Schema] = {
    "chat_template_kwargs": nullable(TEMPLATE_VARIABLES),
    "thinking_budget": nullable(whole(*limits.THINKING_BUDGETS)),
    "thinking_token_budget": nullable(whole(*limits.THINKING_BUDGETS)),
    "include_reasoning": nullable(FLAG),
}
NO_LIMIT = -1  # clients of llama.cpp and vLLM send it
_STREAM_OPTIONS = record({"include_usage": nullable(FLAG), "continuous_usage_stats": nullable(FLAG)})
STOP = text(1, limits.STOP_LENGTH.most)
STOPS = array(STOP, most=limits.STOPS.most)
_BIASES = {
    "type": ["object", "null"],
    "maxProperties": limits.BIASES.most,
    "propertyNames": {"pattern": f"^[0-9]{{1,{MOST_DIGITS}}}$"},
    "additionalProperties": nullable(number(*limits.BIAS_VALUES)),
    "description": "Token ids of the model and the numbers that are added to their logits.",
}
MOST_TOKENS = any_of(whole(1), {"const": NO_LIMIT}, NULL, about="-1: up to the end of the context.")
TEXT_FIELDS: dict[str, Schema] = {
    "stream": nullable(FLAG),
    "stream_options": nullable(_STREAM_OPTIONS),
    "seed": nullable(whole(*limits.SEEDS)),
    "stop": any_of(STOP, STOPS, NULL),
    "temperature": nullable(number(*limits.TEMPERATURES)),
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": limits.PORTIONS[0], "maximum": limits.PORTIONS[1]},
    "top_k": any_of(whole(*limits.TOP_KS), {"const": NO_LIMIT}, NULL),
    "min_p": nullable(number(*limits.PORTIONS)),
    "frequency_penalty": nullable(number(*limits.PENALTIES)),
    "presence_penalty": nullable(number(*limits.PENALTIES)),
    "logit_bias": _BIASES,
    **{name: schema for name, schema in CONSTRAINTS.items() if name != "response_format"},
}


def one_constraint(of_format: Schema) -> Schema:
    """Return the rule that a request has one constraint at most. `of_format`: what is true if its format is one."""
    used = [has(name, {"not": NULL}) for name in CONSTRAINTS if name != "response_format"]
    used.append(of_format)
    none = {"not": {"anyOf": used}}
    return {"oneOf": [*used, none], "description": "At most one constraint."}


LOGPROBS = {"logprobs": nullable(FLAG), "top_logprobs": nullable(whole(0, limits.TOP_LOGPROBS.most))}
NEEDS_LOGPROBS = if_then(
    has("top_logprobs", {"type": "integer", "minimum": 1}),
    has("logprobs", {"const": True}),
    "top_logprobs needs logprobs.",
)
TOOLS = nullable(array(ref("Tool"), most=limits.TOOLS.most))

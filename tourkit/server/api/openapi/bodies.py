"""The body of each route that takes one: the schema of each field that is read, and the rules between fields.

The table of fields (`route_fields`) says which fields a route has, and which of them are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tourkit.server.api import limits
from tourkit.server.api.openapi.parts import (
    FLAG,
    NULL,
    TEXT,
    Schema,
    any_of,
    array,
    described,
    nullable,
    number,
    record,
    ref,
    text,
    values,
    whole,
)
from tourkit.server.api.openapi.request_parts import CONSTRAINTS, FILLED, TEMPLATE_VARIABLES, TOKEN, TOKENS
from tourkit.server.api.route_fields import ROUTES, Use
from tourkit.server.api.sampling_fields import MOST_DIGITS
from tourkit.server.api.thinking_fields import EFFORTS

_NO_LIMIT = -1  # clients of llama.cpp and vLLM send it


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a route. `read`: the schema of each field that is read. `required`: fields that must be there.

    `rules`: between fields. `about`: what is refused that no schema can say.
    """

    read: Mapping[str, Schema]
    required: tuple[str, ...]
    rules: tuple[Schema, ...] = ()
    about: str = ""


def _if(condition: Schema, then: Schema, about: str) -> Schema:
    return {"if": condition, "then": then, "description": about}


def _has(field: str, schema: Schema) -> Schema:
    return {"properties": {field: schema}, "required": [field]}


def _one_constraint() -> Schema:
    """Return the rule that a request has one constraint at most. A format `text` is none."""
    used: list[Schema] = [_has(name, {"not": NULL}) for name in CONSTRAINTS if name != "response_format"]
    used.append(_has("response_format", {"properties": {"type": {"not": {"const": "text"}}}, "type": "object"}))
    none = {"not": {"anyOf": used}}
    return {"oneOf": [*used, none], "description": "At most one constraint."}


_STREAM_OPTIONS = record({"include_usage": nullable(FLAG), "continuous_usage_stats": nullable(FLAG)})
_STOP = text(1, limits.STOP_LENGTH.most)
_BIASES = {
    "type": ["object", "null"],
    "maxProperties": limits.BIASES.most,
    "propertyNames": {"pattern": f"^[0-9]{{1,{MOST_DIGITS}}}$"},
    "additionalProperties": nullable(number(*limits.BIAS_VALUES)),
    "description": "Token ids of the model and the numbers that are added to their logits.",
}
_MOST_TOKENS = any_of(whole(1), {"const": _NO_LIMIT}, NULL, about="-1: up to the end of the context.")
_ZERO = {"const": 0}
_GENERATION: dict[str, Schema] = {
    "stream": nullable(FLAG),
    "stream_options": nullable(_STREAM_OPTIONS),
    "n": nullable(whole(1, limits.N.most)),
    "seed": nullable(whole(*limits.SEEDS)),
    "stop": any_of(_STOP, array(_STOP, most=limits.STOPS.most), NULL),
    "max_tokens": _MOST_TOKENS,
    "max_completion_tokens": _MOST_TOKENS,
    "temperature": nullable(number(*limits.TEMPERATURES)),
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": limits.PORTIONS[0], "maximum": limits.PORTIONS[1]},
    "top_k": any_of(whole(*limits.TOP_KS), {"const": _NO_LIMIT}, NULL),
    "min_p": nullable(number(*limits.PORTIONS)),
    "frequency_penalty": nullable(number(*limits.PENALTIES)),
    "presence_penalty": nullable(number(*limits.PENALTIES)),
    "logit_bias": _BIASES,
    **CONSTRAINTS,
}
_OFFERED = limits.TOOLS.most
_CHAT = Body(
    read=_GENERATION
    | {
        "messages": array(ref("Message"), 1, limits.MESSAGES.most),
        "logprobs": nullable(FLAG),
        "top_logprobs": nullable(whole(0, limits.TOP_LOGPROBS.most)),
        "chat_template_kwargs": nullable(TEMPLATE_VARIABLES),
        "reasoning_effort": nullable(values(EFFORTS)),
        "thinking_budget": nullable(whole(*limits.THINKING_BUDGETS)),
        "thinking_token_budget": nullable(whole(*limits.THINKING_BUDGETS)),
        "include_reasoning": nullable(FLAG),
        "tools": nullable(array(ref("Tool"), most=_OFFERED)),
        "tool_choice": ref("ToolChoice"),
        "parallel_tool_calls": nullable(FLAG),
        "functions": nullable(array(ref("Function"), most=_OFFERED)),
        "function_call": ref("ToolChoice"),
    },
    required=("model", "messages"),
    rules=(
        _one_constraint(),
        _if(
            _has("top_logprobs", {"type": "integer", "minimum": 1}),
            _has("logprobs", {"const": True}),
            "top_logprobs needs logprobs.",
        ),
    ),
    about="Also refused: two different values of max_tokens and max_completion_tokens or of the two thinking budgets; "
    "two functions of one name; a choice of a function that is not offered; functions beside regex, grammar or choice.",
)
_TEXTS = any_of(FILLED, TOKENS)
_COMPLETION = Body(
    read=_GENERATION
    | {
        "prompt": any_of(FILLED, TOKENS, array(_TEXTS, 1, limits.PROMPTS.most)),
        "suffix": nullable(TEXT),
        "echo": nullable(FLAG),
        "best_of": nullable(whole(1, limits.N.most)) | described("Equal to n."),
        "logprobs": any_of(whole(0, limits.TOP_LOGPROBS.most), values([False, None])),
        "max_tokens": any_of(whole(0), {"const": _NO_LIMIT}, NULL, about="0 needs echo. -1: up to the context's end."),
    },
    required=("model", "prompt"),
    rules=(
        _one_constraint(),
        _if(_has("max_tokens", _ZERO), _has("echo", {"const": True}), "max_tokens 0 needs echo."),
        _if(
            _has("suffix", FILLED),
            {"properties": {"echo": values([False, None]), "prompt": any_of(TEXT, array(TEXT))}},
            "suffix needs prompts that are strings, and no echo.",
        ),
    ),
    about="Also refused: two different values of max_tokens and max_completion_tokens; best_of that is not n; more "
    f"than {limits.PROMPTS.most:,} answers; a suffix for a model without tokens for it.",
)
_INPUT = any_of(text(1, limits.TEXT_LENGTH.most), TOKENS)
BODIES: dict[str, Body] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/embeddings": Body(
        read={
            "input": any_of(*_INPUT["anyOf"], array(_INPUT, 1, limits.TEXTS.most)),
            "encoding_format": nullable(values(["float", "base64"])),
            "dimensions": nullable(whole(1, about="The size that the model has.")),
        },
        required=("model", "input"),
    ),
    "/apply-template": _CHAT,
    "/tokenize": Body(
        read={"prompt": text(most=limits.TOKENIZED.most), "add_special_tokens": nullable(FLAG)},
        required=("model", "prompt"),
    ),
    "/detokenize": Body(read={"tokens": array(TOKEN, most=limits.TOKENS.most)}, required=("model", "tokens")),
}


def body_schema(path: str, model: Schema) -> Schema:
    """Return the schema of the body of a route of ROUTES. `model`: the schema of its field of this name.

    Raises KeyError for a field that is read and has no schema.
    """
    body = BODIES[path]
    schemas = {"model": model, **body.read}
    properties: dict[str, Any] = {}
    for field in ROUTES[path]:
        if field.use is Use.READ:
            properties[field.name] = schemas[field.name]
        elif field.use is Use.NO_EFFECT:
            properties[field.name] = described(f"{field.use.value.capitalize()}.")
        else:
            properties[field.name] = values([*field.values, None], about=f"{field.use.value.capitalize()}.")
    found = record(properties, body.required, rest=NULL) | {"maxProperties": limits.FIELDS.most}
    about = "A field that is not listed must be null. " + body.about
    return found | described(about.strip()) | ({"allOf": list(body.rules)} if body.rules else {})

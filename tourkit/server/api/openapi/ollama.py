"""Schemas of Ollama's API: the bodies, the answers, and the lines of a stream."""

from __future__ import annotations

from tourkit.server.api import limits
from tourkit.server.api.ollama_fields import EFFORTS
from tourkit.server.api.openapi.parts import (
    COUNT,
    FLAG,
    NULL,
    NUMBER,
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
    text,
    values,
    whole,
    whole_record,
)
from tourkit.server.api.openapi.request_parts import (
    ANYWHERE,
    FILLED,
    LOGPROBS,
    MOST_FIELDS,
    NEEDS_LOGPROBS,
    NOTHING,
    TEXT_FIELDS,
    TOOLS,
)
from tourkit.server.api.openapi.tables import table_schema
from tourkit.server.api.requests import ROLES
from tourkit.server.api.route_fields import OLLAMA_OPTIONS
from tourkit.server.api.thinking_fields import HISTORY_FIELDS

# --- requests ---------------------------------------------------------------------------------------------------------

_NO_IMAGES = values([None, []])
_ALIKE = ("temperature", "top_p", "top_k", "min_p", "stop", "presence_penalty", "frequency_penalty")
_OPTIONS = table_schema(
    OLLAMA_OPTIONS,
    {name: TEXT_FIELDS[name] for name in _ALIKE}
    | {"seed": TEXT_FIELDS["seed"], "num_predict": any_of(whole(1), values([-1, -2, None]))},
)
_THOUGHTS = ("thinking", *HISTORY_FIELDS)
_COMMON: dict[str, Schema] = {
    "stream": nullable(FLAG),
    "format": any_of(values(["json", "", None]), ref("JsonSchema")),
    "options": any_of(ref("OllamaOptions"), NULL),
    "think": any_of(FLAG, values([*EFFORTS, None])),
    **LOGPROBS,
}


def _message(role: Schema, thought: Schema) -> Schema:
    properties = {"role": role, "content": nullable(TEXT), "images": _NO_IMAGES, "tool_name": {}, **ANYWHERE}
    return record(properties | dict.fromkeys(_THOUGHTS, thought), ["role"], rest=NOTHING) | MOST_FIELDS


_PLAIN = any_of(has("raw", {"const": True}), has("suffix", FILLED))
_ASKS = any_of(has("prompt", FILLED), has("suffix", FILLED))
BODIES = {
    "/api/chat": Body(
        read=_COMMON | {"messages": nullable(array(ref("OllamaMessage"), most=limits.MESSAGES.most)), "tools": TOOLS},
        required=("model",),
        rules=(NEEDS_LOGPROBS,),
        about=(
            "Without messages it only loads the model. Also refused: two functions of one name; in one message, both "
            "thinking and reasoning_content, or both tool_name and name."
        ),
    ),
    "/api/generate": Body(
        read=_COMMON
        | {**dict.fromkeys(("prompt", "system", "suffix"), nullable(TEXT)), "raw": nullable(FLAG)}
        | {"images": _NO_IMAGES},
        required=("model",),
        rules=(
            NEEDS_LOGPROBS,
            if_then(
                {"allOf": [_PLAIN, _ASKS]},
                {"properties": {"system": values([None, ""])}},
                "system needs the chat template, which raw and suffix turn off.",
            ),
            if_then(has("suffix", FILLED), has("prompt", FILLED), "suffix needs a prompt."),
        ),
        about="Without a prompt it only loads the model.",
    ),
    "/api/embed": Body(
        read={"input": ref("EmbeddingInput"), "dimensions": nullable(whole(1, about="The size that the model has."))},
        required=("model", "input"),
    ),
    "/api/embeddings": Body(
        read={"prompt": text(1, limits.TEXT_LENGTH.most)},
        required=("model", "prompt"),
    ),
    "/api/show": Body(
        read={},
        required=(),
        rules=({"oneOf": [has("model", TEXT), has("name", TEXT)], "description": "Older clients send `name`."},),
        named=("model", "name"),
    ),
}

# --- answers ----------------------------------------------------------------------------------------------------------

_TOKEN = {"token": TEXT, "logprob": nullable(NUMBER), "bytes": array(COUNT)}
_CALL = whole_record({"id": TEXT, "function": whole_record({"index": COUNT, "name": TEXT, "arguments": OBJECT})})
_SAID = whole_record(
    {"role": {"const": "assistant"}, "content": TEXT, "thinking": TEXT, "tool_calls": array(_CALL, 1)},
    optional=["thinking", "tool_calls"],
)
_FIGURES = (
    *("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"),
)
_ENDED = {"done_reason": values(["stop", "length", "load"]), **dict.fromkeys(_FIGURES, COUNT), "tourkit": ref("Report")}


def _answer(said: dict[str, Schema], *optional: str) -> Schema:
    """Return an answer, or one line of a stream. The last line has the figures; durations are in nanoseconds."""
    logprobs = array(whole_record({**_TOKEN, "top_logprobs": array(whole_record(_TOKEN))}), 1)
    every = {"model": TEXT, "created_at": TEXT, **said, "done": FLAG, "logprobs": logprobs, **_ENDED}
    # While a client waits, it gets a line with an empty text and nothing else.
    return whole_record(every, optional=[*optional, "model", "created_at", "logprobs", *_ENDED])


_CHAT_LINE = any_of(_answer({"message": _SAID}), ref("OllamaError"))
_GENERATE_LINE = any_of(_answer({"response": TEXT, "thinking": TEXT}, "thinking"), ref("OllamaError"))
_DETAILS = whole_record(
    {
        **dict.fromkeys(("parent_model", "format", "family", "parameter_size", "quantization_level"), TEXT),
        "families": array(TEXT),
    }
)
_ENTRY = {"name": TEXT, "model": TEXT, "size": COUNT, "digest": TEXT, "details": ref("OllamaDetails")}
_LOADED = {"size_vram": COUNT, "expires_at": TEXT, "context_length": COUNT}
SCHEMAS: dict[str, Schema] = {
    "OllamaOptions": _OPTIONS,
    "OllamaMessage": any_of(
        _message({"const": "assistant"}, nullable(TEXT)),
        _message(values(role for role in ROLES if role != "assistant"), values([None, ""])),
    ),
    "OllamaChat": _answer({"message": _SAID}),
    "OllamaChatLine": _CHAT_LINE,
    "OllamaText": _answer({"response": TEXT, "thinking": TEXT}, "thinking"),
    "OllamaTextLine": _GENERATE_LINE,
    "OllamaEmbed": whole_record(
        {
            "model": TEXT,
            "embeddings": array(array(NUMBER)),
            **dict.fromkeys(("total_duration", "load_duration", "prompt_eval_count"), COUNT),
        }
    ),
    "OllamaEmbeddings": whole_record({"embedding": array(NUMBER)}),
    "OllamaDetails": _DETAILS,
    "OllamaTags": whole_record({"models": array(whole_record(_ENTRY | {"modified_at": TEXT}))}),
    "OllamaLoaded": whole_record({"models": array(whole_record(_ENTRY | _LOADED))}),
    "OllamaModel": whole_record(
        {
            **dict.fromkeys(("modelfile", "parameters", "template", "modified_at"), TEXT),
            "details": ref("OllamaDetails"),
            "model_info": OBJECT,
            "capabilities": array(TEXT),
        }
    ),
    "OllamaVersion": whole_record({"version": TEXT, "tourkit": TEXT}),
    "OllamaError": whole_record({"error": TEXT}),
}

"""The body of each route that takes one: the schema of each field that is read, and the rules between fields.

The table of fields (`route_fields`) says which fields a route has, and which of them are not read.
"""

from __future__ import annotations

from tourkit.server.api import limits
from tourkit.server.api.openapi import messages, ollama, responses
from tourkit.server.api.openapi.parts import (
    FLAG,
    NULL,
    TEXT,
    Body,
    Schema,
    any_of,
    array,
    described,
    has,
    if_then,
    nullable,
    record,
    ref,
    text,
    values,
    whole,
)
from tourkit.server.api.openapi.request_parts import (
    CONSTRAINTS,
    EFFORT,
    FILLED,
    LOGPROBS,
    MOST_TOKENS,
    NEEDS_LOGPROBS,
    NO_LIMIT,
    TEXT_FIELDS,
    THINKING,
    TOKEN,
    TOKENS,
    TOOLS,
    one_constraint,
)
from tourkit.server.api.openapi.tables import table_schema
from tourkit.server.api.route_fields import OLLAMA_SHOW, ROUTES

_ZERO = {"const": 0}
# A format that constrains the text.
_FORMAT = has("response_format", {"properties": {"type": {"not": {"const": "text"}}}, "type": "object"})
_GENERATION = TEXT_FIELDS | {
    "response_format": CONSTRAINTS["response_format"],
    "n": nullable(whole(1, limits.N.most)),
    "max_tokens": MOST_TOKENS,
    "max_completion_tokens": MOST_TOKENS,
}
_CHAT = Body(
    read=_GENERATION
    | {
        "messages": array(ref("Message"), 1, limits.MESSAGES.most),
        **LOGPROBS,
        **THINKING,
        "reasoning_effort": EFFORT,
        "tools": TOOLS,
        "tool_choice": ref("ToolChoice"),
        "parallel_tool_calls": nullable(FLAG),
        "functions": nullable(array(ref("Function"), most=limits.TOOLS.most)),
        "function_call": ref("ToolChoice"),
    },
    required=("model", "messages"),
    rules=(
        one_constraint(_FORMAT),
        NEEDS_LOGPROBS,
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
        "max_tokens": any_of(whole(0), {"const": NO_LIMIT}, NULL, about="0 needs echo. -1: up to the context's end."),
    },
    required=("model", "prompt"),
    rules=(
        one_constraint(_FORMAT),
        if_then(has("max_tokens", _ZERO), has("echo", {"const": True}), "max_tokens 0 needs echo."),
        if_then(
            has("suffix", FILLED),
            {"properties": {"echo": values([False, None]), "prompt": any_of(TEXT, array(TEXT))}},
            "suffix needs prompts that are strings, and no echo.",
        ),
    ),
    about="Also refused: two different values of max_tokens and max_completion_tokens; best_of that is not n; more "
    f"than {limits.PROMPTS.most:,} answers; a suffix for a model without tokens for it.",
)
_DOCUMENT = text(most=limits.DOCUMENT_LENGTH.most)
BODIES: dict[str, Body] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/responses": responses.BODY,
    **messages.BODIES,
    **ollama.BODIES,
    "/v1/embeddings": Body(
        read={
            "input": ref("EmbeddingInput"),
            "encoding_format": nullable(values(["float", "base64"])),
            "dimensions": nullable(whole(1, about="The size that the model has.")),
        },
        required=("model", "input"),
    ),
    "/v1/rerank": Body(
        read={
            "query": text(1, limits.QUERY.most),
            "documents": array(any_of(_DOCUMENT, record({"text": _DOCUMENT}, ["text"])), 1, limits.DOCUMENTS.most),
            "top_n": nullable(whole(1)),
            "return_documents": nullable(FLAG),
            "max_tokens_per_doc": nullable(whole(1)),
        },
        required=("model", "query", "documents"),
    ),
    "/apply-template": _CHAT,
    "/tokenize": Body(
        read={"prompt": text(most=limits.TOKENIZED.most), "add_special_tokens": nullable(FLAG)},
        required=("model", "prompt"),
    ),
    "/detokenize": Body(read={"tokens": array(TOKEN, most=limits.TOKENS.most)}, required=("model", "tokens")),
}

TABLES = ROUTES | {"/api/show": OLLAMA_SHOW}


def body_schema(path: str, model: Schema) -> Schema:
    """Return the schema of the body of a route of TABLES. `model`: the schema of its field of this name.

    Raises KeyError for a field that is read and has no schema.
    """
    body = BODIES[path]
    named = {name: model if name in body.required else nullable(model) for name in body.named}
    found = table_schema(TABLES[path], named | dict(body.read), body.required)
    about = "A field that is not listed must be null. " + body.about
    return found | described(about.strip()) | ({"allOf": list(body.rules)} if body.rules else {})

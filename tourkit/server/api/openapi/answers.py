"""Schemas of what a worker answers, whole and in a stream, and of errors. They list every field."""

from __future__ import annotations

from tourkit.generation import Finish
from tourkit.server.api.openapi.parts import (
    COUNT,
    FLAG,
    NULL,
    NUMBER,
    TEXT,
    Schema,
    array,
    nullable,
    record,
    ref,
    values,
    whole_record,
)

TEXTS = array(TEXT)
_FINISHES = [*(each.value for each in Finish if each is not Finish.ERROR), "function_call"]
_FINISH = values(_FINISHES)
_ERROR = whole_record(
    {
        "error": whole_record(
            {"message": TEXT, "type": TEXT, "param": nullable(TEXT), "code": nullable(TEXT)},
        )
    }
) | {"description": "`param` names the field of the request."}
_USAGE = whole_record(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": whole_record({"cached_tokens": COUNT}),
        "completion_tokens_details": whole_record({"reasoning_tokens": COUNT}),
    },
    optional=["completion_tokens_details"],
)
_CHECKED = whole_record({"index": COUNT, "valid": FLAG, "repaired": TEXTS, "retried": FLAG, "errors": TEXTS})
_REPORT = whole_record(
    {
        "constraint": values(["none", "strict", "relaxed", "generic"]),
        "dropped": TEXTS | {"description": "JSON pointers to the parts of the schema that were not enforced."},
        "choices": array(_CHECKED),
    }
) | {"description": "How far a schema was enforced, and whether the answers follow it."}
_SHOWN = {"token": TEXT, "logprob": nullable(NUMBER), "bytes": array(COUNT)}
_LOGPROBS = whole_record(
    {"content": array(whole_record({**_SHOWN, "top_logprobs": array(whole_record(_SHOWN))})), "refusal": NULL}
)
_CALLED = whole_record({"name": TEXT, "arguments": TEXT})
_CALL = whole_record({"id": TEXT, "type": {"const": "function"}, "function": ref("CalledFunction")})
_MESSAGE = whole_record(
    {
        "role": {"const": "assistant"},
        "content": nullable(TEXT),
        "refusal": NULL,
        "reasoning_content": TEXT,
        "tool_calls": array(_CALL, 1),
        "function_call": ref("CalledFunction"),
    },
    optional=["reasoning_content", "tool_calls", "function_call"],
)
_HEAD = {"id": TEXT, "created": COUNT, "model": TEXT, "system_fingerprint": nullable(TEXT)}
_TOKENS_OF_CHAT = {"anyOf": [ref("Logprobs"), NULL]}
_CHAT = whole_record(
    {
        **_HEAD,
        "object": {"const": "chat.completion"},
        "choices": array(
            whole_record({"index": COUNT, "message": _MESSAGE, "logprobs": _TOKENS_OF_CHAT, "finish_reason": _FINISH})
        ),
        "usage": ref("Usage"),
        "tourkit": ref("Report"),
    },
    optional=["tourkit"],
)
_PIECE = whole_record(
    {
        "index": COUNT,
        "id": TEXT,
        "type": {"const": "function"},
        "function": whole_record({"name": TEXT, "arguments": TEXT}, optional=["name"]),
    },
    optional=["id", "type"],
)
_DELTA = whole_record(
    {
        "role": {"const": "assistant"},
        "content": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": array(_PIECE, 1),
        "function_call": whole_record({"name": TEXT, "arguments": TEXT}, optional=["name"]),
    },
    optional=["role", "content", "reasoning_content", "tool_calls", "function_call"],
)
_USAGE_SO_FAR = {"anyOf": [ref("Usage"), NULL]}
_CHAT_CHUNK = whole_record(
    {
        **_HEAD,
        "object": {"const": "chat.completion.chunk"},
        "choices": array(
            whole_record(
                {"index": COUNT, "delta": _DELTA, "logprobs": _TOKENS_OF_CHAT, "finish_reason": nullable(_FINISH)}
            )
        ),
        "usage": _USAGE_SO_FAR,
        "tourkit": ref("Report"),
    },
    optional=["usage", "tourkit"],
)
_TEXT_LOGPROBS = whole_record(
    {
        "tokens": TEXTS,
        "token_logprobs": array(nullable(NUMBER)),
        "top_logprobs": array({"type": ["object", "null"], "additionalProperties": nullable(NUMBER)}),
        "text_offset": array(COUNT),
    }
)
_TEXT_CHOICE = {"index": COUNT, "text": TEXT, "logprobs": {"anyOf": [_TEXT_LOGPROBS, NULL]}}
_COMPLETION = whole_record(
    {
        **_HEAD,
        "object": {"const": "text_completion"},
        "choices": array(whole_record({**_TEXT_CHOICE, "finish_reason": _FINISH})),
        "usage": ref("Usage"),
        "tourkit": ref("Report"),
    },
    optional=["tourkit"],
)
_COMPLETION_CHUNK = whole_record(
    {
        **_HEAD,
        "object": {"const": "text_completion"},
        "choices": array(whole_record({**_TEXT_CHOICE, "finish_reason": nullable(_FINISH)})),
        "usage": _USAGE_SO_FAR,
        "tourkit": ref("Report"),
    },
    optional=["usage", "tourkit"],
)
_EMBEDDING = whole_record(
    {
        "object": {"const": "embedding"},
        "index": COUNT,
        "embedding": {"anyOf": [array(NUMBER), TEXT | {"contentEncoding": "base64"}]},
    }
)
_TOKENS = whole_record({"prompt_tokens": COUNT, "total_tokens": COUNT})
_RANKING = whole_record(
    {
        "id": TEXT,
        "object": {"const": "list"},
        "model": TEXT,
        "results": array(
            whole_record(
                {"index": COUNT, "relevance_score": NUMBER, "document": record({"text": TEXT}, ["text"])},
                optional=["document"],
            )
        ),
        "usage": _TOKENS,
        "meta": whole_record(
            {
                "api_version": whole_record({"version": TEXT}),
                "tokens": whole_record({"input_tokens": COUNT, "output_tokens": COUNT}),
            }
        ),
    }
)
SCHEMAS: dict[str, Schema] = {
    "Error": _ERROR,
    "Usage": _USAGE,
    "Report": _REPORT,
    "Logprobs": _LOGPROBS,
    "CalledFunction": _CALLED,
    "ChatCompletion": _CHAT,
    "ChatCompletionChunk": _CHAT_CHUNK,
    "Completion": _COMPLETION,
    "CompletionChunk": _COMPLETION_CHUNK,
    "Embeddings": whole_record(
        {
            "object": {"const": "list"},
            "data": array(_EMBEDDING),
            "model": TEXT,
            "usage": _TOKENS,
        }
    ),
    "Ranking": _RANKING,
    "Prompt": whole_record({"prompt": TEXT}),
    "Tokens": whole_record({"tokens": array(COUNT), "count": COUNT, "max_model_len": COUNT}),
}

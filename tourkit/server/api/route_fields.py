"""Which fields each route takes. The parsers check bodies against these tables.

A field is read, or accepted without effect, or accepted with neutral values only. Every other field is refused by name,
except with the value null, which many clients send for each option that was not set.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tourkit.errors import RequestError, quoted
from tourkit.server.api import limits
from tourkit.server.api.thinking_fields import THINKING_FIELDS
from tourkit.server.api.tool_fields import TOOL_FIELDS

_LONGEST_GUESSED = 32  # characters; the time to find a similar name grows fast with the length


class Use(Enum):
    """What a route does with a field."""

    READ = "read"  # its parser checks the value
    NO_EFFECT = "accepted without effect"  # it cannot change the answer: any value
    NEUTRAL = "neutral values"  # it would change the answer: only the values that change nothing
    NAMED = "accepted and named"  # other models know it: the reply's header x-tourkit-ignored names it


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body. `values`: those that a NEUTRAL or NAMED field may have; null is always one."""

    name: str
    use: Use = Use.READ
    values: tuple[Any, ...] = ()


def _read(*names: str) -> tuple[Field, ...]:
    return tuple(map(Field, names))


def _no_effect(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, Use.NO_EFFECT) for name in names)


def _neutral(**values: tuple[Any, ...]) -> tuple[Field, ...]:
    return tuple(Field(name, Use.NEUTRAL, allowed) for name, allowed in values.items())


CONSTRAINTS = (
    *("response_format", "regex", "grammar", "choice", "json_schema"),
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
# The fields of the OpenAI APIs that make text.
_TEXT = (
    *_read("model", "stream", "stream_options", "seed", "stop"),
    *_read("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "logit_bias"),
    *_read(*CONSTRAINTS[1:]),
    # OpenAI: about accounts and caches.
    *_no_effect("user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    # vLLM, llama.cpp, Ollama: about queues, caches and progress.
    *_no_effect(
        "priority", "request_id", "cache_salt", "cache_prompt", "keep_alive", "id_slot", "guided_decoding_backend"
    ),
    *_no_effect("timings_per_token", "return_progress", "spaces_between_special_tokens"),
    # Each of these has an effect only beside a field below that is neutral.
    *_no_effect("repeat_last_n", "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "dry_base"),
    *_no_effect("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *_neutral(
        repetition_penalty=(1,),
        repeat_penalty=(1,),
        length_penalty=(1,),
        typical_p=(1,),
        tfs_z=(1,),
        mirostat=(0,),
        dynatemp_range=(0,),
        xtc_probability=(0,),
        dry_multiplier=(0,),
        top_a=(0,),
        top_n_sigma=(-1, 0),
        min_tokens=(0,),
        n_probs=(0,),
        n_keep=(-1, 0),
        ignore_eos=(False,),
        use_beam_search=(False,),
        early_stopping=(False,),
        skip_special_tokens=(True,),
        include_stop_str_in_output=(False,),
        return_tokens_as_token_ids=(False,),
        return_token_ids=(False,),
        return_tokens=(False,),
        stop_token_ids=([],),
        bad_words=([],),
        logits_processors=([],),
        add_special_tokens=(True,),
    ),
)
_GENERATION = (
    *_TEXT,
    *_read(CONSTRAINTS[0], "n", "max_tokens", "max_completion_tokens"),
    *_no_effect("store", "metadata", "prediction"),
)
CHAT = (
    *_GENERATION,
    *_read("messages", "logprobs", "top_logprobs", *THINKING_FIELDS, *TOOL_FIELDS),
    Field("verbosity", Use.NAMED, ("low", "medium", "high")),
    *_neutral(
        modalities=(["text"],),
        audio=({},),
        add_generation_prompt=(True,),
        continue_final_message=(False,),
        echo=(False,),
        suffix=("",),
        best_of=(1,),
        documents=([],),
    ),
)
COMPLETION = (
    *_GENERATION,
    *_read("prompt", "suffix", "echo", "best_of", "logprobs"),
    *_neutral(tools=([],), tool_choice=("none",)),
)
RESPONSES = (
    *_TEXT,
    *_read("input", "instructions", "previous_response_id", "max_output_tokens", "text", "reasoning", "truncation"),
    *_read("store", "metadata", "include", "top_logprobs"),
    *_read(*(name for name in THINKING_FIELDS if name != "reasoning_effort")),
    *_read("tools", "tool_choice", "parallel_tool_calls"),
    *_no_effect("prompt_cache_options", "max_tool_calls"),  # max_tool_calls is about OpenAI's own tools
    *_neutral(
        background=(False,),
        n=(1,),
        logprobs=(False,),
        add_generation_prompt=(True,),
        conversation=(),
        prompt=(),
        context_management=([],),
        moderation=(),
        modalities=(["text"],),
    ),
)
EMBEDDINGS = (
    *_read("model", "input", "encoding_format", "dimensions"),
    *_no_effect("user", "priority", "request_id", "keep_alive", "metadata", "store", "service_tier"),
    *_neutral(add_special_tokens=(True,), normalize=(True,)),
)
RERANK = (
    *_read("model", "query", "documents", "top_n", "return_documents", "max_tokens_per_doc"),
    # Cohere: `max_chunks_per_doc` is about documents that are longer than the context; those are refused here.
    *_no_effect("priority", "max_chunks_per_doc", "user", "request_id", "keep_alive", "metadata", "store"),
    *_neutral(rank_fields=(["text"],), return_embeddings=(False,), raw_scores=(False,)),
)
TOKENIZE = (*_read("model", "prompt", "add_special_tokens"), *_neutral(return_token_strs=(False,)))
DETOKENIZE = _read("model", "tokens")
_MESSAGES = (
    *_read("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "output_format"),
    *_read("thread"),
    *_no_effect("cache_control", "speed", "user_profile_id", "workspace_id"),
    *_no_effect("billing_policy", "fallbacks", "fallback_credit_token"),
    *_neutral(mcp_servers=([],), context_management=({}, {"edits": []})),
)
MESSAGES = (
    *_MESSAGES,
    *_read("max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k"),
    *_no_effect("metadata", "service_tier", "inference_geo", "diagnostics"),
)
COUNT_TOKENS = (
    *_MESSAGES,
    *_no_effect("max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k"),
    *_no_effect("metadata", "service_tier", "inference_geo", "diagnostics"),
)
_OLLAMA = (
    *_read("model", "stream", "format", "options", "think", "logprobs", "top_logprobs"),
    *_no_effect("keep_alive", "truncate", "shift"),
)
OLLAMA_CHAT = (*_OLLAMA, *_read("messages", "tools"))
OLLAMA_GENERATE = (
    *_OLLAMA,
    *_read("prompt", "system", "suffix", "raw", "images"),
    *_neutral(template=("",), context=([],), width=(0,), height=(0,), steps=(0,)),
)
OLLAMA_EMBED = (*_read("model", "input", "dimensions"), *_no_effect("truncate", "options", "keep_alive"))
OLLAMA_EMBEDDINGS = (*_read("model", "prompt"), *_no_effect("options", "keep_alive"))
# The fields of `options` in requests of Ollama's API.
OLLAMA_OPTIONS = (
    *_read("num_predict", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *_read("presence_penalty", "frequency_penalty"),
    # About loading: `tourkit serve` has planned this.
    *_no_effect("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv"),
    *_no_effect("use_mmap", "use_mlock", "vocab_only", "logits_all", "embedding_only", "num_keep"),
    # Each of these has an effect only beside a field below that is neutral.
    *_no_effect("repeat_last_n", "penalize_newline", "mirostat_tau", "mirostat_eta"),
    *_neutral(repeat_penalty=(1,), typical_p=(1,), tfs_z=(1,), mirostat=(0,)),
)
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/apply-template": CHAT,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/api/chat": OLLAMA_CHAT,
    "/api/generate": OLLAMA_GENERATE,
    "/api/embed": OLLAMA_EMBED,
    "/api/embeddings": OLLAMA_EMBEDDINGS,
}
# Of POST /api/show, which the gateway answers.
OLLAMA_SHOW = (*_read("model", "name"), *_no_effect("verbose", "system", "template", "options"))
_TABLES = (*ROUTES.values(), OLLAMA_OPTIONS, OLLAMA_SHOW)
_BY_NAME = {id(fields): {field.name: field for field in fields} for fields in _TABLES}


def check_fields(body: dict[str, Any], fields: tuple[Field, ...]) -> tuple[str, ...]:
    """Check the names of a body's fields, and the values of those that are not read. `fields`: a table of above.

    Return the names of the NAMED fields that it has. Raises RequestError with the field.
    """
    limits.FIELDS.check(len(body))
    known = _BY_NAME[id(fields)]
    named = []
    for key, value in body.items():
        field = known.get(key)
        if value is None or (field is not None and field.use in (Use.READ, Use.NO_EFFECT)):
            continue
        if field is None:
            raise _unknown(key, known)
        if not any(_same(value, allowed) for allowed in field.values):
            raise _not_neutral(field)
        if field.use is Use.NAMED:
            named.append(key)
    return tuple(named)


def _same(value: Any, allowed: Any) -> bool:
    """Whether a value of JSON is the allowed one. True is not 1, but 1.0 is."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _not_neutral(field: Field) -> RequestError:
    if field.use is Use.NAMED:
        return RequestError(f"{field.name} must be one of {', '.join(field.values)}", param=field.name)
    message = f"{field.name} is not supported here: leave it out"
    return RequestError(message, param=field.name, code="unsupported_parameter")


def _unknown(key: str, known: dict[str, Field]) -> RequestError:
    useful = [field.name for field in known.values() if field.use is Use.READ]
    near = difflib.get_close_matches(key, useful, n=1) if len(key) <= _LONGEST_GUESSED else []
    hint = f"did you mean {near[0]!r}?" if near else "leave it out"
    message = f"{quoted(key)} is not a supported parameter: {hint}"
    return RequestError(message, param=key, code="unsupported_parameter")

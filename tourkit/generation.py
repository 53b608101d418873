"""Plain data of generation, shared by all backends and the server. It needs no model and no thread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tourkit.calling.forms import Form
from tourkit.calling.tools import CallPiece, Offer
from tourkit.errors import EngineDead, EngineError, TourkitError


class Finish(StrEnum):
    """Why a sequence ended. Every sequence ends exactly once. Only the server says TOOL_CALLS: engines say STOP."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class PrefixSharing(StrEnum):
    """Which beginnings of earlier prompts a model need not compute again."""

    ANY = "any prefix"
    CHECKPOINTS = "from checkpoints"  # a hybrid model: up to where its fixed state was copied
    WHOLE = "whole prompts"  # a fixed state without copies: a prompt must begin with all of an earlier sequence
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are sampled. `max_tokens`: None means up to the end of the context. Temperature 0 is greedy."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no logprobs; 0: those of the chosen tokens only
    prompt_logprobs: bool = False  # those of the prompt's tokens too; needs top_logprobs
    scored: tuple[int, ...] = ()  # tokens to name in `top` instead of the likeliest; needs top_logprobs of their number


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that the text must have.

    `source`: the JSON text of the schema (kinds json_schema, json_object), the JSON text of the list of strings (kind
    choice), the regex or grammar itself (kinds regex, grammar), or calls of tools as `grammar/call_grammar` reads them
    (kind tools).
    """

    kind: str
    source: str

    @property
    def is_json(self) -> bool:
        return self.kind in ("json_schema", "json_object")

    @staticmethod
    def json_schema(schema: dict[str, Any]) -> Constraint:
        return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))

    @staticmethod
    def json_object() -> Constraint:
        return Constraint("json_object", '{"type": "object"}')


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model thinks before it answers.

    `enabled`: None for the default of the role, then of the model's chat template. `effort`: "" or a name such as
    "low", for templates that know it. `budget`: the most tokens of thinking; None if there is no limit.
    """

    enabled: bool | None = None
    effort: str = ""
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """`n` sequences from one prompt: either chat `messages` or a plain `prompt`, never both.

    `prompt`: a text, or token ids that are used unchanged. `suffix`: the text after the gap that the answer fills; None
    if there is no gap.
    `tight`: prefer a grammar that allows less than the schema over one that allows more; for second attempts.
    `client`: whose request it is; clients get slots in turn.
    `whole`: send only one delta for each sequence, the last one, with all its text; for answers that are not streamed.
    `template_kwargs`: names and values, as JSON text, for the model's chat template. `thinking_fields`: the names of
    the request's fields about thinking; a reply names those of them that do nothing for the model. `offer`: the tools
    that the answers may call; None if there are none. `malformed`: fields of messages that are passed on as text.
    `fitted`: max_tokens is lowered if the context has less room; else such a request is refused.
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    params: SamplingParams = SamplingParams()
    n: int = 1
    constraint: Constraint | None = None
    tight: bool = False
    whole: bool = False
    client: str = ""
    template_kwargs: tuple[tuple[str, str], ...] = ()
    thinking: Thinking = Thinking()
    thinking_fields: tuple[str, ...] = ()
    suffix: str | None = None
    offer: Offer | None = None
    malformed: tuple[str, ...] = ()
    fitted: bool = False

    @property
    def schema_source(self) -> str | None:
        """The JSON text of the schema that the answer must meet, None if there is none."""
        if self.constraint is None or self.constraint.kind != "json_schema":
            return None
        return self.constraint.source

    @property
    def asked(self) -> tuple[str, ...]:
        """The names of the features that this request needs beyond plain text, as in EngineInfo.emulated."""
        plain, params = SamplingParams(), self.params
        names = [self.constraint.kind] if self.constraint else []
        names += ["n"] if self.n > 1 else []
        names += ["logprobs"] if params.top_logprobs is not None else []
        fields = ("seed", "stop", "top_k", "top_p", "min_p", "frequency_penalty", "presence_penalty", "logit_bias")
        return (*names, *(name for name in fields if getattr(params, name) != getattr(plain, name)))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability in the model, before temperature, truncation and grammar.

    It is NaN for the first token of a prompt, because the model gives it no probability.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest tokens, best first; or those `scored`, in order


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of sequence `index`. The last delta of a sequence has `finish`, and `error` if that is ERROR.

    `logprobs`: of the tokens since the last delta. The text of these tokens may come later. `n_cached`: prompt tokens
    that the sequence found in the KV cache; only the last delta has it. `reasoning`: new text of the thinking.
    `n_reasoning`: how many of the `n_tokens` tokens are thinking. `prompt_logprobs`: of all tokens of the prompt, if
    the request asks for them; one delta of sequence 0 has them. `calls`: new pieces of calls. Engines leave them in
    `text`; the server takes them out. `stop`: the stop string that ended the sequence; only the last delta has it.
    """

    index: int
    text: str
    n_tokens: int
    finish: Finish | None = None
    error: TourkitError | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    n_cached: int = 0
    reasoning: str = ""
    n_reasoning: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()
    stop: str = ""

    @property
    def failure(self) -> TourkitError | None:
        """The error if the sequence ended without an answer, else None."""
        if self.finish is Finish.ERROR:
            return self.error or EngineError("generation failed")
        if self.finish is Finish.ABORT:
            return EngineDead("the server is shutting down")
        return None


Emit = Callable[[Delta], None]


@dataclass(frozen=True, slots=True)
class Enforced:
    """How far the grammar enforces the constraint. `level`: "none", "strict", "relaxed" or "generic".

    `dropped`: JSON pointers to the parts of the schema that the grammar does not enforce.
    """

    level: str = "none"
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submission:
    """What `submit` returns: the key for `abort`, and the size of the prompt in tokens.

    `ignored`: the names of the request's fields that do nothing for this model. `form`: how the answers call tools;
    None if they cannot.
    """

    id: int
    n_prompt: int
    constraint: Enforced = Enforced()
    ignored: tuple[str, ...] = ()
    form: Form | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine can do: at most `context` tokens per sequence, and `slots` sequences at once.

    `emulated`: the names of request fields that tourkit implements itself because the stack's library does not.
    `prefix_sharing`: a PrefixSharing, and the reason if it is one of the last two; empty if the library decides that.
    """

    stack: str
    context: int
    slots: int
    n_vocab: int
    emulated: tuple[str, ...] = ()
    prefix_sharing: str = ""


@dataclass(frozen=True, slots=True)
class Activity:
    """What an engine does now. `seconds`: since its last progress; 0 if it has nothing to do.

    `tokens`: how many the call under way computes; 0 for work without such a call. `rate`: tokens a second until now; 0
    if nothing was measured yet.
    """

    seconds: float = 0.0
    tokens: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The current load, and counters since the start, in tokens unless a comment names another unit."""

    running: int = 0  # sequences
    waiting: int = 0  # sequences
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that were found in the KV cache
    generated_tokens: int = 0
    forced_tokens: int = 0  # generated tokens that were not sampled because the grammar left no choice
    drafted_tokens: int = 0  # guessed by prompt lookup
    accepted_tokens: int = 0  # drafted tokens that were right
    decode_steps: int = 0  # calls of the model
    preemptions: int = 0  # sequences computed again because the KV cache was full
    prompt_cache_bytes: int = 0  # now in RAM, in bytes
    prompt_cache_limit_bytes: int = 0  # of RAM, in bytes
    prompt_cache_disk_bytes: int = 0  # now on disk, in bytes
    prompt_cache_entries: int = 0  # runs of tokens whose KV cells are in RAM or on disk
    prompt_cache_hits_total: int = 0  # prompts that got cells back from RAM or disk
    prompt_cache_tokens_total: int = 0  # tokens that these cells covered

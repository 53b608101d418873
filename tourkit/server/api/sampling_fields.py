"""The sampling fields of a request, and the defaults of those that it leaves out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tourkit.defaults import Sampling, stated
from tourkit.errors import RequestError, quoted
from tourkit.generation import Request, SamplingParams
from tourkit.server.api import limits
from tourkit.server.api.fields import boolean, integer, is_whole, number

MOST_DIGITS = 19  # of a token id; Python itself refuses to convert thousands of digits
_DEFAULTED = frozenset(field.name for field in fields(Sampling))


def sampling_of(body: dict[str, Any], usual: Sampling, top_logprobs: int | None) -> SamplingParams:
    """Return the sampling settings of a body. `usual`: what it gets if it leaves them out. Raises RequestError."""
    old, new = (_most_tokens(body, key) for key in ("max_tokens", "max_completion_tokens"))
    if old and new and old != new:
        raise RequestError("max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
    given = _given(body)
    if given.top_p == 0:
        raise RequestError("top_p must be above 0: for greedy decoding set temperature to 0", param="top_p")
    chosen: dict[str, Any] = stated(usual) | stated(given)
    return SamplingParams(
        max_tokens=new or old,
        seed=integer(body, "seed", *limits.SEEDS),
        frequency_penalty=number(body, "frequency_penalty", *limits.PENALTIES) or 0.0,
        presence_penalty=number(body, "presence_penalty", *limits.PENALTIES) or 0.0,
        logit_bias=_logit_bias(body.get("logit_bias")),
        stop=_stop(body.get("stop")),
        top_logprobs=top_logprobs,
        **chosen,
    )


def _most_tokens(body: dict[str, Any], key: str) -> int | None:
    """Return a limit of tokens; None if there is none. Clients of llama.cpp send -1 for no limit."""
    return None if _is_minus_one(body.get(key)) else integer(body, key, 1)


def _is_minus_one(value: Any) -> bool:
    return is_whole(value) and value == -1


def _given(body: dict[str, Any]) -> Sampling:
    """Return the settings that a body states itself. vLLM's and llama.cpp's clients send -1 for no top_k."""
    return Sampling(
        temperature=number(body, "temperature", *limits.TEMPERATURES),
        top_p=number(body, "top_p", *limits.PORTIONS),
        top_k=0 if _is_minus_one(body.get("top_k")) else integer(body, "top_k", *limits.TOP_KS),
        min_p=number(body, "min_p", *limits.PORTIONS),
    )


def features_of(body: dict[str, Any], request: Request) -> tuple[str, ...]:
    """Return the features that a body asks for beyond plain text. It does not ask for defaults."""
    return tuple(name for name in request.asked if name not in _DEFAULTED or body.get(name) is not None)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Parse the biases. Token ids are JSON keys, so they are strings. A bias of -100 is never, 100 is always."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise RequestError("logit_bias must be an object of token ids and biases", param="logit_bias")
    limits.BIASES.check(len(value))
    pairs = []
    for key in value:
        if not (key.isascii() and key.isdecimal()) or len(key) > MOST_DIGITS:
            raise RequestError(f"logit_bias: {quoted(key)} is not a token id", param="logit_bias")
        try:
            bias = number(value, key, *limits.BIAS_VALUES)
        except RequestError as exc:
            raise RequestError(f"logit_bias: {exc}", param="logit_bias") from exc
        pairs.append((int(key), bias or 0.0))
    return tuple(pairs)


def top_logprobs_of(body: dict[str, Any]) -> int | None:
    """Return how many likeliest tokens a body asks for at each position; None if it asks for no probabilities."""
    top = integer(body, "top_logprobs", 0, limits.TOP_LOGPROBS.most)
    if not boolean(body, "logprobs"):
        if top:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return None
    return top or 0


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("stop must be a non-empty string or a list of them", param="stop")
    limits.STOPS.check(len(stops))
    for i, stop in enumerate(stops):
        limits.STOP_LENGTH.check(len(stop), f"stop[{i}]")
    return tuple(stops)

"""The fields of POST /v1/completions: one prompt or many, echo, a suffix, log probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tourkit.defaults import RoleDefaults, defaults_of
from tourkit.errors import RequestError
from tourkit.generation import Request
from tourkit.server.api import limits
from tourkit.server.api.constraint_fields import constraint_of
from tourkit.server.api.fields import boolean, integer, is_whole
from tourkit.server.api.requests import NO_OPTIONS, StreamOptions, checked_model_of, is_token, stream_options_of
from tourkit.server.api.route_fields import COMPLETION
from tourkit.server.api.sampling_fields import features_of, sampling_of

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Complete:
    """A parsed request for plain completions: `requests` has one for each prompt, in order.

    `echo`: the prompt is put before each answer. `only_prompt`: the answer is the prompt alone (echo, max_tokens 0).
    `features`: what it asks for beyond text.
    """

    model: str
    requests: tuple[Request, ...]
    stream: bool
    options: StreamOptions = NO_OPTIONS
    features: tuple[str, ...] = ()
    echo: bool = False
    only_prompt: bool = False

    @property
    def n(self) -> int:
        """Answers to each prompt."""
        return self.requests[0].n

    @property
    def shows_logprobs(self) -> bool:
        return self.requests[0].params.top_logprobs is not None


def parse_completion(body: Any, defaults: tuple[RoleDefaults, ...] = ()) -> Complete:
    """Check and convert the body of POST /v1/completions. `defaults`: as in Launch. Raises RequestError."""
    model, _ = checked_model_of(body, COMPLETION)
    prompts, echo, stream = _prompts(body.get("prompt")), boolean(body, "echo"), boolean(body, "stream")
    only_prompt = echo and _is_zero(body.get("max_tokens"))
    top = _top_logprobs(body)
    usual = defaults_of(defaults, model)
    params = sampling_of(body | {"max_tokens": 1} if only_prompt else body, usual.sampling, top)
    n = integer(body, "n", 1, limits.N.most) or 1
    _check_best_of(body, n)
    limits.PROMPTS.check(len(prompts) * n)
    first = Request(
        prompt=prompts[0],
        params=replace(params, prompt_logprobs=echo and top is not None),
        n=n,
        constraint=constraint_of(body),
        whole=not stream,
        suffix=_suffix(body, prompts, echo=echo),
    )
    return Complete(
        model=model,
        requests=tuple(replace(first, prompt=prompt) for prompt in prompts),
        stream=stream,
        options=stream_options_of(body),
        features=features_of(body, first),
        echo=echo,
        only_prompt=only_prompt,
    )


def _prompts(value: Any) -> list[Prompt]:
    """Return the prompts of a body: one text, one list of token ids, or a list of either."""
    several = isinstance(value, list) and bool(value) and not is_token(value[0])
    given = value if several else [value]
    limits.PROMPTS.check(len(given))
    return [_prompt(each, f"prompt[{i}]" if several else "prompt") for i, each in enumerate(given)]


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(map(is_token, value)):
        return tuple(map(int, value))
    raise RequestError(f"{where} must be a non-empty string or a non-empty list of token ids", param="prompt")


def _top_logprobs(body: dict[str, Any]) -> int | None:
    """Return how many likeliest tokens a body asks for at each position; None if it asks for no probabilities.

    Clients of the chat API send false for none.
    """
    return None if body.get("logprobs") is False else integer(body, "logprobs", 0, limits.TOP_LOGPROBS.most)


def _check_best_of(body: dict[str, Any], n: int) -> None:
    best_of = integer(body, "best_of", 1, limits.N.most)
    if best_of not in (None, n):
        raise RequestError(
            f"best_of is {best_of}, but n is {n}: tourkit returns every answer, so give best_of the value of n",
            param="best_of",
            code="unsupported_parameter",
        )


def _suffix(body: dict[str, Any], prompts: list[Prompt], *, echo: bool) -> str | None:
    """Return the text after the gap; None if there is no gap. An empty suffix is none."""
    suffix = body.get("suffix")
    if not isinstance(suffix, str | None):
        raise RequestError("suffix must be a string", param="suffix")
    if not suffix:
        return None
    if echo or not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError("suffix needs prompts that are strings, and no echo", param="suffix")
    return suffix


def _is_zero(value: Any) -> bool:
    return is_whole(value) and value == 0

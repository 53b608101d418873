"""Translate our requests to vLLM's types, and vLLM's outputs to ours."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from tourkit.backends.text_side import EngineInput, Texts, Tokenizer
from tourkit.errors import EngineError
from tourkit.generation import Delta, Finish, Request, TokenLogprob


def sampling(request: Request, engine_input: EngineInput, ends: Collection[int]) -> Any:
    """Return a request as vLLM's SamplingParams. Every value is set, so that the model's own files set none."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    params, matcher = request.params, engine_input.matchers[0]
    grammar = None if matcher is None else StructuredOutputsParams(**_structured(matcher.grammar))
    return SamplingParams(
        n=request.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=1.0,
        seed=params.seed,
        stop=list(params.stop),
        stop_token_ids=sorted(ends),
        logit_bias=dict(params.logit_bias) or None,
        max_tokens=engine_input.max_tokens,
        logprobs=params.top_logprobs,
        logprob_token_ids=list(params.scored) or None,
        prompt_logprobs=params.top_logprobs if params.prompt_logprobs else None,
        skip_special_tokens=not engine_input.pieces,  # they mark calls of tools
        spaces_between_special_tokens=False,
        structured_outputs=grammar,
        output_kind=RequestOutputKind.FINAL_ONLY if request.whole else RequestOutputKind.DELTA,
        skip_clone=True,
    )


def _structured(grammar: str) -> dict[str, Any]:
    """Return vLLM's `structured_outputs` for a grammar in llguidance's serialised form."""
    if not grammar.startswith('{"grammars"'):
        return {"grammar": grammar}
    [only] = json.loads(grammar)["grammars"]
    return {"json": only["json_schema"]} if only.get("json_schema") is not None else {"grammar": only["lark_grammar"]}


def delta(choice: Any, request: Request, texts: Texts, *, first: bool, n_cached: int) -> Delta:
    """Return the new text of a sequence, from a CompletionOutput of vLLM. `first`: the sequence had no text before.

    `n_cached`: as in Delta.
    """
    text = texts.without_first_space(choice.text) if first else choice.text
    finish, error = finish_of(choice.finish_reason)
    logprobs: tuple[TokenLogprob, ...] = ()
    if request.params.top_logprobs is not None and choice.logprobs:
        params = request.params
        logprobs = logprobs_of(
            choice.token_ids, choice.logprobs, params.top_logprobs or 0, texts.tokenizer, params.scored
        )
    stop = choice.stop_reason if isinstance(choice.stop_reason, str) else ""  # a number is an end token
    n_cached = n_cached if finish else 0
    return Delta(choice.index, text, len(choice.token_ids), finish, error, logprobs, n_cached, stop=stop)


def logprobs_of(
    tokens: Sequence[int], rows: Sequence[Any], top: int, tokenizer: Tokenizer, scored: Sequence[int] = ()
) -> tuple[TokenLogprob, ...]:
    """Return log probabilities with the bytes of each token. The token that ended the answer is left out.

    `scored`: as in SamplingParams.
    """
    shown = []
    for token, row in zip(tokens, rows, strict=True):
        if token in tokenizer.eog:
            continue
        likeliest = sorted(row.items(), key=lambda each: -float(each[1].logprob))[:top]
        if scored:
            likeliest = [(each, row[each]) for each in scored]
        pieces = tuple((tokenizer.piece(other), float(found.logprob)) for other, found in likeliest)
        shown.append(TokenLogprob(tokenizer.piece(token), float(row[token].logprob), pieces))
    return tuple(shown)


def prompt_logprobs_of(
    tokens: Sequence[int], rows: Sequence[Any], top: int, tokenizer: Tokenizer
) -> tuple[TokenLogprob, ...]:
    """Return log probabilities of a prompt's tokens. `rows`: vLLM's, of which the first is None."""
    shown = [TokenLogprob(tokenizer.piece(tokens[0]), math.nan)]
    for token, row in zip(tokens[1:], rows[1:], strict=True):
        likeliest = sorted(row.items(), key=lambda each: -float(each[1].logprob))[:top]
        pieces = tuple((tokenizer.piece(other), float(found.logprob)) for other, found in likeliest)
        shown.append(TokenLogprob(tokenizer.piece(token), float(row[token].logprob), pieces))
    return tuple(shown)


def finish_of(reason: str | None) -> tuple[Finish | None, EngineError | None]:
    """Return why a sequence ended, and the error if it failed."""
    if reason is None:
        return None, None
    try:
        finish = Finish(reason)
    except ValueError:  # for example "repetition": vLLM can stop at repeated text
        return Finish.STOP, None
    return finish, EngineError("vllm: generation failed") if finish is Finish.ERROR else None


def refused_param(message: str, request: Request) -> str | None:
    """Return the field of a request that vLLM refuses; None if the message names none."""
    if "min_p and logit_bias" in message:
        return "min_p" if request.params.min_p else "logit_bias"
    return None

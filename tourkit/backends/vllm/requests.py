"""A request in vLLM's words, and text as every other stack reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tourkit.backends.text_side import Texts
from tourkit.backends.transformers.runner import converted_tokenizer
from tourkit.backends.vocabulary import Vocabulary
from tourkit.generation import Request
from tourkit.launch import Launch


def texts_of(folder: Path, launch: Launch, n_vocab: int) -> Texts:
    """Raises LocalError when the tokenizer is of a kind that is not known here."""
    source = None if (folder / "tokenizer.json").is_file() else converted_tokenizer(folder)
    return Texts(Vocabulary(folder, n_vocab, source), launch.context, launch.chat_template)


def structured(grammar: str) -> dict[str, Any]:
    """A grammar as llguidance serialises it, as vLLM's `structured_outputs`."""
    if not grammar.startswith('{"grammars"'):
        return {"grammar": grammar}
    [only] = json.loads(grammar)["grammars"]
    return {"json": only["json_schema"]} if only.get("json_schema") is not None else {"grammar": only["lark_grammar"]}


def sampling(request: Request, texts: Texts, grammar: str | None) -> Any:
    """A request as vLLM's SamplingParams, every default named: what a model's own files say must not show through."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    params = request.params
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
        stop_token_ids=sorted(texts.vocabulary.eog),
        logit_bias=dict(params.logit_bias) or None,
        max_tokens=params.max_tokens,
        logprobs=params.top_logprobs,
        spaces_between_special_tokens=False,
        structured_outputs=None if grammar is None else StructuredOutputsParams(**structured(grammar)),
        output_kind=RequestOutputKind.FINAL_ONLY if request.whole else RequestOutputKind.DELTA,
        skip_clone=True,
    )

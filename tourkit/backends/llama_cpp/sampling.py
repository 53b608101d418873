"""Sampling by llama.cpp's own sampler chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tourkit.generation import SamplingParams

_PENALTY_WINDOW = 1 << 16  # tokens: OpenAI's penalties count the whole answer


class LlamaSampler:
    """llama.cpp's sampler chain of one sequence.

    The order is llama.cpp's own: bias, penalties, top-k, top-p, min-p, temperature.
    """

    def __init__(self, lib: Any, context: Any, params: SamplingParams, seed: int, n_vocab: int) -> None:
        self._lib, self._context, self._n_vocab = lib, context, n_vocab
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for link in self._links(params, seed):
            lib.llama_sampler_chain_add(self._chain, link)

    def _links(self, params: SamplingParams, seed: int) -> list[Any]:
        lib, links = self._lib, []
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias)
            links.append(lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), biases))
        if params.frequency_penalty or params.presence_penalty:
            penalties = (params.frequency_penalty, params.presence_penalty)
            links.append(lib.llama_sampler_init_penalties(self._n_vocab, _PENALTY_WINDOW, 1.0, *penalties))
        if params.temperature <= 0:
            return [*links, lib.llama_sampler_init_greedy()]
        if params.top_k > 0:
            links.append(lib.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            links.append(lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            links.append(lib.llama_sampler_init_min_p(params.min_p, 1))
        links.append(lib.llama_sampler_init_temp(params.temperature))
        links.append(lib.llama_sampler_init_dist(seed))
        return links

    def sample(self, row: int) -> int:
        return int(self._lib.llama_sampler_sample(self._chain, self._context, row))

    def propose(self, row: int, allows: Callable[[int], bool]) -> int | None:
        return None  # this sampler cuts the candidates, and the mask must come before

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None

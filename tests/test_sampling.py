"""The numpy sampler compared with llama.cpp's: the same logits, parameters and seed give the same tokens."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tourkit.engine.sampling import NumpySampler, draw
from tourkit.generation import SamplingParams

N_VOCAB = 2048


class OneRow:
    """One row of logits that changes with each draw. It is flat, or only a few tokens are likely."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.row = np.zeros(N_VOCAB, dtype=np.float32)

    def next(self) -> np.ndarray:
        width = self._random.choice([0.5, 3, 12])
        self.row = (self._random.standard_normal(N_VOCAB) * width).astype(np.float32)
        return self.row

    def __call__(self, row: int) -> np.ndarray:
        return self.row


@pytest.fixture
def llama_chain() -> Iterator[Callable[[SamplingParams, int], Callable[[np.ndarray], int]]]:
    """Draw from given logits with llama.cpp's sampler chain, built as in the GGUF backend."""
    lib = pytest.importorskip("llama_cpp")
    from tourkit.backends.llama_cpp.sampling import LlamaSampler

    made: list[Any] = []

    def chain(params: SamplingParams, seed: int) -> Callable[[np.ndarray], int]:
        sampler = LlamaSampler(lib, None, params, seed, N_VOCAB)
        made.append(sampler)
        entries = (lib.llama_token_data * N_VOCAB)()
        rows = np.ctypeslib.as_array(ctypes.cast(entries, ctypes.POINTER(ctypes.c_byte)), (ctypes.sizeof(entries),))
        table = rows.view(dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])

        def draw(logits: np.ndarray) -> int:
            table["id"], table["logit"], table["p"] = np.arange(N_VOCAB), logits, 0
            array = lib.llama_token_data_array(data=entries, size=N_VOCAB, selected=-1, sorted=False)
            lib.llama_sampler_apply(sampler._chain, ctypes.byref(array))
            token = int(array.data[array.selected].id)
            sampler.accept(token)
            return token

        return draw

    yield chain
    for sampler in made:
        sampler.close()


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, 2**32 - 2])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=1),
        SamplingParams(top_k=40),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.05),
        SamplingParams(top_p=0.99),
        SamplingParams(min_p=0.05),
        SamplingParams(top_k=50, top_p=0.95, min_p=0.02, temperature=1.3),
        SamplingParams(top_k=40, top_p=0.95, min_p=0.05, temperature=0.8),
        SamplingParams(frequency_penalty=0.5, presence_penalty=1.0),
        SamplingParams(frequency_penalty=-2.0),
        SamplingParams(logit_bias=((5, 3.0), (7, -100.0)), top_p=0.8),
        SamplingParams(temperature=0.0, frequency_penalty=1.0, presence_penalty=-0.5),
    ],
    ids=lambda params: (
        "-".join(
            f"{name}={value}"
            for name in ("temperature", "top_k", "top_p", "min_p", "frequency_penalty", "logit_bias")
            if (value := getattr(params, name)) != getattr(SamplingParams(), name)
        )
        or "plain"
    ),
)
def test_draws_are_those_of_llama_cpp(params: SamplingParams, seed: int, llama_chain: Any) -> None:
    logits = OneRow(seed)
    ours, theirs = NumpySampler(logits, params, seed), llama_chain(params, seed)

    for _ in range(50):
        assert theirs(logits.next()) == ours.sample(0)


def by_full_sort(scores: np.ndarray, params: SamplingParams, uniform: float) -> int:
    """Draw from a vocabulary that is sorted as a whole, in double precision; equal scores in the order of ids."""
    order = np.argsort(-scores, kind="stable")
    order = order[: params.top_k] if params.top_k > 0 else order
    weights = np.exp(scores[order].astype(np.float64) - scores[order[0]])
    order = order[: int(np.searchsorted(np.cumsum(weights), params.top_p * weights.sum())) + 1]
    order = order[scores[order] >= scores[order[0]] + np.log(params.min_p)] if params.min_p > 0 else order
    weights = np.exp((scores[order].astype(np.float64) - scores[order[0]]) / params.temperature)
    return int(order[min(int(np.searchsorted(np.cumsum(weights), uniform * weights.sum())), len(order) - 1)])


@pytest.mark.parametrize("width", [0.0, 0.5, 4.0])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.9999, temperature=0.7),
        SamplingParams(top_k=40, top_p=0.95),
        SamplingParams(top_k=9000),
        SamplingParams(top_p=0.95, min_p=0.02, temperature=1.5),
    ],
    ids=str,
)
def test_a_large_vocabulary_is_cut_as_by_a_full_sort(params: SamplingParams, width: float) -> None:
    """Scores are rounded, so that many are equal. Some tokens are masked, as a grammar masks them."""
    random = np.random.default_rng(11)
    for _ in range(8):
        scores = (random.standard_normal(50_000) * width).round(2).astype(np.float32)
        scores[random.integers(0, 50_000, 9_000)] = -np.inf
        uniform = float(random.random())

        assert draw(scores, params, Counter(), lambda uniform=uniform: uniform) == by_full_sort(scores, params, uniform)


def test_a_masked_token_is_never_drawn() -> None:
    logits = OneRow(3)
    sampler = NumpySampler(logits, SamplingParams(temperature=2.0, top_p=0.99), 5)
    allowed = {17, 400, 2047}

    drawn = set()
    for _ in range(60):
        mask = np.full(N_VOCAB, -np.inf, dtype=np.float32)
        mask[list(allowed)] = logits.next()[list(allowed)]
        logits.row = mask
        drawn.add(sampler.sample(0))

    assert drawn == allowed


CUT = [
    SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
    SamplingParams(temperature=1.5, top_k=3, top_p=0.9, min_p=0.2),
    SamplingParams(temperature=0.5, top_k=2, min_p=0.01),
    SamplingParams(temperature=1.0, top_p=0.5, min_p=0.1),
    SamplingParams(temperature=1.0, min_p=0.1),
    SamplingParams(temperature=0.7, top_k=40, top_p=0.6, min_p=0.05, logit_bias=((3, 4.0),), presence_penalty=0.5),
]


@pytest.mark.parametrize("params", CUT, ids=str)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_proposal_is_the_token_that_is_drawn_if_the_mask_comes_first(params: SamplingParams, share: float) -> None:
    """Some rows are peaked, some have equal scores, and of each a `share` of the tokens is allowed."""
    random = np.random.default_rng(4)
    logits = OneRow(6)
    proposing, masking = NumpySampler(logits, params, 9), NumpySampler(logits, params, 9)
    proposed = 0
    for step in range(400):
        row = logits.next().round(1) if step % 2 else logits.next()
        allowed = random.random(N_VOCAB) < share
        allowed[row.argmax()] |= step % 3 > 0
        logits.row = row
        token = proposing.propose(0, lambda id_, allowed=allowed: bool(allowed[id_]))
        logits.row = np.where(allowed, row, -np.inf).astype(np.float32)
        if token is None:
            token = proposing.sample(0)
        else:
            proposing.accept(token)
            proposed += 1

        assert token == masking.sample(0)

    assert proposed > 100


def test_a_grammar_is_asked_for_few_tokens_only() -> None:
    """A mask costs about as much as some questions."""
    logits = OneRow(1)
    sampler = NumpySampler(logits, CUT[0], 2)
    for _ in range(100):
        logits.next()
        asked: list[int] = []
        sampler.propose(0, lambda token, asked=asked: not asked.append(token))

        assert len(asked) <= 8


def test_without_min_p_a_cut_waits_for_the_mask() -> None:
    assert NumpySampler(OneRow(1), SamplingParams(top_k=40), 2).propose(0, lambda token: True) is None


def test_logits_are_left_as_they_are() -> None:
    logits = OneRow(0)
    before = logits.next().copy()

    NumpySampler(logits, SamplingParams(logit_bias=((1, 50.0),), frequency_penalty=1.0, top_k=3), 0).sample(0)

    assert np.array_equal(before, logits.row)


def test_tokens_that_were_not_sampled_count_for_penalties() -> None:
    row = np.zeros(4, dtype=np.float32)
    row[2] = 1.5
    sampler = NumpySampler(lambda _: row, SamplingParams(temperature=0.0, presence_penalty=2.0), 0)

    sampler.accept(2)

    assert sampler.sample(0) != 2


def test_probabilities_are_those_asked_for() -> None:
    """Without truncation each token has the frequency given by the softmax at that temperature."""
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = NumpySampler(lambda _: row, SamplingParams(temperature=0.5), 1)
    expected = np.array([0.5, 0.3, 0.15, 0.05]) ** 2

    counts = np.bincount([sampler.sample(0) for _ in range(20_000)], minlength=4)

    assert np.abs(counts / 20_000 - expected / expected.sum()).max() < 0.01

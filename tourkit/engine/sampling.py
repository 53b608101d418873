"""Sampling in numpy, for stacks that give logits but no sampler that fits. Each sequence has a sampler and a seed.

The order and the arithmetic are the same as in llama.cpp's samplers. The random numbers are the same as those of its
generator in its usual builds. So the same logits and seed give the same token on every stack.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tourkit.generation import SamplingParams

_FEW = 256  # candidates that usually reach top_p together
_WORDS = 64  # random words drawn at a time: one call of the generator costs as much as hundreds of words
_BLOCK = 256  # weights in one partial sum
_ROOM = threading.local()


class NumpySampler:
    """Draws the tokens of one sequence. `logits` returns a row of the last decode, shape (n_vocab,)."""

    def __init__(self, logits: Callable[[int], np.ndarray], params: SamplingParams, seed: int) -> None:
        import numpy as np

        self._logits = logits
        self._params = params
        self._penalises = bool(params.frequency_penalty or params.presence_penalty)
        self._seen: Counter[int] = Counter()
        self._random = np.random.RandomState(seed)  # the Mersenne Twister, seeded in the same way as std::mt19937
        self._words: list[int] = []  # random words drawn in advance; the last one is used next

    def sample(self, row: int) -> int:
        token = draw(self._logits(row), self._params, self._seen, self._uniform)
        self.accept(token)
        return token

    def propose(self, row: int) -> int | None:
        params = self._params
        if params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0):
            return None
        return draw(self._logits(row), params, self._seen, self._uniform)

    def accept(self, token: int) -> None:
        if self._penalises:
            self._seen[token] += 1

    def close(self) -> None:
        """Nothing to free."""

    def _uniform(self) -> float:
        """Return a number in [0, 1) from two words, the lower word first, as libstdc++ makes a double."""
        if not self._words:
            self._words = self._random.randint(0, 2**32, size=_WORDS, dtype="uint32")[::-1].tolist()
        low, high = self._words.pop(), self._words.pop()
        return (low + high * 2.0**32) / 2.0**64


def draw(logits: np.ndarray, params: SamplingParams, seen: Counter[int], uniform: Callable[[], float]) -> int:
    """Draw one token. Order: bias, penalties, top-k, top-p, min-p, temperature, random draw. `logits` do not change."""
    scores = _adjusted(logits, params, seen)
    if params.temperature <= 0:
        return int(scores.argmax())
    ids: np.ndarray | None = None  # None: every token, in the order of ids; else the candidates, the likeliest first
    if params.top_k > 0:
        ids = _likeliest(scores, params.top_k)
    if params.top_p < 1:
        ids = _nucleus(scores, ids, params.top_p)
    if params.min_p > 0:
        import numpy as np

        ids = np.arange(len(scores)) if ids is None else ids
        ids = ids[scores[ids] >= scores[ids].max() + np.log(np.float32(params.min_p))]
    at = _by_chance(scores if ids is None else scores[ids], params.temperature, uniform())
    return at if ids is None else int(ids[at])


def _by_chance(scores: np.ndarray, temperature: float, uniform: float) -> int:
    """Return the index at which the running sum of the weights reaches the share `uniform` of the total.

    A running sum over a whole vocabulary takes several times as long as all the rest. So blocks are summed first, and
    only one block is summed weight by weight. After a decode the processor's caches hold none of this code. So the
    shortest path through numpy matters: argmax, reduce and accumulate instead of max, sum and cumsum.
    """
    import numpy as np

    weights = np.subtract(scores, scores[scores.argmax()], out=_scratch(len(scores)))
    weights /= np.float32(temperature)
    np.exp(weights, out=weights)
    even = len(weights) // _BLOCK * _BLOCK
    sums = np.add.reduce(weights[:even].reshape(-1, _BLOCK), axis=1).astype(np.float64)
    if even < len(weights):
        sums = np.append(sums, weights[even:].sum())
    reached = np.add.accumulate(sums)
    goal = reached[-1] * uniform
    block = int(reached.searchsorted(goal))
    inside = np.add.accumulate(weights[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64))
    at = int(inside.searchsorted(goal - (reached[block - 1] if block else 0.0)))
    return block * _BLOCK + min(at, len(inside) - 1)


def _scratch(size: int) -> np.ndarray:
    """Return a float32 buffer of `size` numbers, one buffer a thread: new memory costs more than the arithmetic."""
    room: np.ndarray | None = getattr(_ROOM, "weights", None)
    if room is None or len(room) < size:
        import numpy as np

        room = _ROOM.weights = np.empty(size, dtype=np.float32)
    return room[:size]


def _adjusted(logits: np.ndarray, params: SamplingParams, seen: Counter[int]) -> np.ndarray:
    """Return the logits with bias and penalties applied; the same array if there are none."""
    if not params.logit_bias and not seen:
        return logits
    import numpy as np

    scores = logits.copy()
    for token, bias in params.logit_bias:
        scores[token] += np.float32(bias)
    for token, count in seen.items():
        scores[token] -= np.float32(count * params.frequency_penalty + params.presence_penalty)
    return scores


def _likeliest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the ids of the `k` highest scores, the highest first."""
    import numpy as np

    if k < len(scores):
        ids = np.argpartition(scores, -k)[-k:]
        return ids[np.argsort(-scores[ids], kind="stable")]
    return np.argsort(-scores, kind="stable")


def _nucleus(scores: np.ndarray, ids: np.ndarray | None, top_p: float) -> np.ndarray:
    """Return the smallest set of candidates whose probabilities reach `top_p` together, the likeliest first."""
    import numpy as np

    highest = scores.max()
    total = np.exp((scores if ids is None else scores[ids]) - highest).sum(dtype=np.float64)
    for k in (_FEW, len(scores)) if ids is None else (len(ids),):  # a whole vocabulary rarely needs to be sorted
        best = _likeliest(scores, k) if ids is None else ids
        reached = np.cumsum(np.exp(scores[best] - highest), dtype=np.float64) / total
        if reached[-1] >= top_p:
            break
    return best[: int(np.searchsorted(reached, top_p)) + 1]

"""Sampling in numpy, for stacks that give logits but no sampler that fits. Each sequence has a sampler and a seed.

The order and the arithmetic are the same as in llama.cpp's samplers. The random numbers are the same as those of its
generator in its usual builds. So the same logits and seed give the same token on every stack.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tourkit.generation import SamplingParams

_WORDS = 64  # random words drawn at a time: one call of the generator costs as much as hundreds of words
_BLOCK = 256  # weights in one partial sum
_FEW = 8  # tokens that a grammar is asked about; a mask costs about as much as ten questions
_MANY = 64  # tokens; if more can be drawn, the likeliest one seldom is
_ROUNDING = 1e-5  # more than sums of float32 weights can be off
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
        self._unused: list[float] = []  # a number that was drawn and did not decide

    def sample(self, row: int) -> int:
        token = draw(self._logits(row), self._params, self._seen, self._uniform)
        self.accept(token)
        return token

    def propose(self, row: int, allows: Callable[[int], bool]) -> int | None:
        params = self._params
        scores = _adjusted(self._logits(row), params, self._seen)
        if params.temperature <= 0 or not (params.top_k > 0 or params.top_p < 1 or params.min_p > 0):
            token = _drawn(scores, params, self._uniform)
            return token if allows(token) else None
        if params.min_p <= 0:
            return None
        uniform = self._uniform()
        found = _among_few(scores, params, uniform, allows)
        if found is None:
            self._unused.append(uniform)  # the same number draws from the masked logits
        return found

    def accept(self, token: int) -> None:
        if self._penalises:
            self._seen[token] += 1

    def close(self) -> None:
        """Nothing to free."""

    def _uniform(self) -> float:
        """Return a number in [0, 1) from two words, the lower word first, as libstdc++ makes a double."""
        if self._unused:
            return self._unused.pop()
        if not self._words:
            self._words = self._random.randint(0, 2**32, size=_WORDS, dtype="uint32")[::-1].tolist()
        low, high = self._words.pop(), self._words.pop()
        return (low + high * 2.0**32) / 2.0**64


def draw(logits: np.ndarray, params: SamplingParams, seen: Counter[int], uniform: Callable[[], float]) -> int:
    """Draw one token. Order: bias, penalties, top-k, top-p, min-p, temperature, random draw. `logits` do not change.

    Candidates are sorted by score without their ids, because sorting numbers is many times faster than sorting ids. The
    id of the drawn score is looked up at the end.
    """
    return _drawn(_adjusted(logits, params, seen), params, uniform)


def _drawn(scores: np.ndarray, params: SamplingParams, uniform: Callable[[], float]) -> int:
    """Draw one token from scores that have bias and penalties."""
    if params.temperature <= 0:
        return int(scores.argmax())
    share = uniform()
    if params.min_p > 0 and (found := _among_few(scores, params, share, _allows_all)) is not None:
        return found
    if params.top_k <= 0 and params.top_p >= 1:
        return _unsorted(scores, params, share)
    import numpy as np

    best = _highest(scores, params.top_k) if params.top_k > 0 else None
    if params.top_p < 1 or best is None:
        best = _nucleus(scores, best, params.top_p)
    if params.min_p > 0:
        best = best[best >= best[0] + np.log(np.float32(params.min_p))]
    return _id_at(scores, best, _by_chance(best, params.temperature, share))


def _among_few(scores: np.ndarray, params: SamplingParams, uniform: float, allows: Callable[[int], bool]) -> int | None:
    """Return the token that would be drawn if refused tokens were masked first. None if only the mask can tell.

    It needs a min-p: only the tokens that reach it can be drawn. Often the likeliest token is drawn, whichever of the
    others are allowed. If not, and there are few of them, `allows` is asked for each. What stays unknown is the weight
    of all other tokens, of which top-p counts a share; each weighs less than min-p. If the least and the most that they
    can weigh give the same token, it is this one.
    """
    import numpy as np

    top = int(scores.argmax())
    reaching = scores >= scores[top] + np.log(np.float32(params.min_p))
    if np.count_nonzero(reaching) > _MANY or not allows(top):
        return None
    ids = np.flatnonzero(reaching)
    is_sorted = params.top_k > 0 or params.top_p < 1
    low, high = uniform * (1 - _ROUNDING), uniform * (1 + _ROUNDING)
    if is_sorted and high * _weights(scores[ids], params.temperature).sum() <= 1:
        return top
    if len(ids) > _FEW:
        return None
    if is_sorted:
        ids = ids[np.argsort(-scores[ids], kind="stable")]
    most = params.top_k or len(scores)
    kept = [token for token in ids.tolist() if token == top or allows(token)][:most]
    below = scores[kept] - scores[top]
    weights, heated = np.exp(below).tolist(), np.exp(below / np.float32(params.temperature)).tolist()
    least = sum(weights)
    total = least + (most - len(kept)) * params.min_p
    share = params.top_p if params.top_p < 1 else math.inf
    first = _place(weights, heated, share * least * (1 - _ROUNDING), low)
    last = _place(weights, heated, share * total * (1 + _ROUNDING), high)
    return kept[first] if first == last else None


def _place(weights: list[float], heated: list[float], share: float, uniform: float) -> int:
    """Return the place that is drawn among the first `weights` that reach `share` together.

    `heated`: the weights by temperature.
    """
    reached = list(accumulate(weights))
    sums = list(accumulate(heated[: bisect_left(reached, share) + 1]))
    return min(bisect_left(sums, uniform * sums[-1]), len(sums) - 1)


def _allows_all(token: int) -> bool:
    return True


def _unsorted(scores: np.ndarray, params: SamplingParams, uniform: float) -> int:
    """Draw from every token, or from those that min-p leaves, in the order of ids."""
    if params.min_p <= 0:
        return _by_chance(scores, params.temperature, uniform)
    import numpy as np

    ids = np.flatnonzero(scores >= scores[scores.argmax()] + np.log(np.float32(params.min_p)))
    return int(ids[_by_chance(scores[ids], params.temperature, uniform)])


def _by_chance(scores: np.ndarray, temperature: float, uniform: float) -> int:
    """Return the index at which the running sum of the weights reaches the share `uniform` of the total.

    After a decode the processor's caches hold none of this code. So the shortest path through numpy matters: argmax,
    reduce and accumulate instead of max, sum and cumsum.
    """
    weights = _weights(scores, temperature)
    reached = _running_sums(weights)
    return _reaching(weights, reached, reached[-1] * uniform)


def _weights(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the weight of each score relative to the highest, in the buffer of this thread."""
    import numpy as np

    weights: np.ndarray = np.subtract(scores, scores[scores.argmax()], out=_scratch(len(scores)))
    if temperature != 1:
        weights /= np.float32(temperature)
    np.exp(weights, out=weights)
    return weights


def _running_sums(weights: np.ndarray) -> np.ndarray:
    """Return the running sum at the end of each block of weights. The last one is the total.

    A running sum over a whole vocabulary takes several times as long as all the rest. So blocks are summed first, and
    `_reaching` sums only one block weight by weight.
    """
    import numpy as np

    even = len(weights) // _BLOCK * _BLOCK
    sums = np.add.reduce(weights[:even].reshape(-1, _BLOCK), axis=1).astype(np.float64)
    if even < len(weights):
        sums = np.append(sums, weights[even:].sum())
    return np.add.accumulate(sums)


def _reaching(weights: np.ndarray, reached: np.ndarray, goal: float) -> int:
    """Return the index at which the running sum of the weights reaches `goal`; the last one if it stays below."""
    import numpy as np

    block = min(int(reached.searchsorted(goal)), len(reached) - 1)
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


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the `k` highest scores, the highest first."""
    import numpy as np

    return _descending(np.partition(scores, -k)[-k:] if k < len(scores) else scores)


def _descending(scores: np.ndarray) -> np.ndarray:
    """Return a sorted copy. It lies in memory in this order: numpy is twice as slow on a reversed view."""
    import numpy as np

    best: np.ndarray = np.negative(scores)
    best.sort()
    np.negative(best, out=best)
    return best


def _nucleus(scores: np.ndarray, best: np.ndarray | None, top_p: float) -> np.ndarray:
    """Return the fewest scores whose probabilities reach `top_p` together, the highest first.

    `best`: the scores that top-k left, the highest first. None: all of `scores` are candidates.
    """
    if best is None:
        best = _descending(_likely(scores, (1 - top_p) / len(scores)))
    else:
        scores = best
    # The buffer of weights is used twice, so the total of all scores comes first.
    total = _running_sums(_weights(scores))[-1] if len(best) < len(scores) else None
    weights = _weights(best)
    reached = _running_sums(weights)
    return best[: _reaching(weights, reached, top_p * (reached[-1] if total is None else total)) + 1]


def _likely(scores: np.ndarray, share: float) -> np.ndarray:
    """Return the scores with at least half of this share of the highest weight; all if fewer than half can be left out.

    `share`: (1 - top_p) / the number of scores. All that weigh less have together a probability below 1 - top_p, so the
    nucleus is in the rest. Half of the share leaves room for rounding. If the logits have a peak, few are left to sort.
    """
    if share <= 0:
        return scores
    import numpy as np

    left = scores >= scores[scores.argmax()] + np.float32(np.log(share / 2))
    return scores[left.nonzero()[0]] if 2 * np.count_nonzero(left) < len(scores) else scores


def _id_at(scores: np.ndarray, best: np.ndarray, at: int) -> int:
    """Return the token with the score `best[at]`. Tokens with equal scores stand in the order of ids.

    `best`: the highest scores, the highest first.
    """
    import numpy as np

    equal = np.flatnonzero(scores == best[at])
    return int(equal[at - int((best[: at + 1] != best[at]).sum())])

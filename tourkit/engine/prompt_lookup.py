"""Guessing the next tokens by prompt lookup: what followed the last few tokens earlier in the same sequence.

Right for extraction, where answers copy the prompt. Pure: no model. A guess is only ever checked, never believed: the
engine samples at each guessed position and keeps what it sampled.
"""

from __future__ import annotations

_KEY = 3  # tokens that must have occurred before
_FIRST = 4  # tokens guessed at first
_LONGEST = 16
_REST = 24  # tokens to be generated before trying again once guessing has stopped paying


class PromptLookup:
    """The guesses of one sequence. Their length follows their success; after failures it rests for a while."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}  # the last tokens → where what followed them begins
        self._indexed = 0  # keys ending before this position are in `_seen`
        self._length = _FIRST
        self._resume = 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `tokens`; empty when nothing like it came before, or at rest."""
        if len(tokens) < _KEY + 1 or len(tokens) < self._resume:
            return []
        self._index(tokens)
        start = self._seen.get(tuple(tokens[-_KEY:]))
        if start is None:
            return []
        return tokens[start : start + min(self._length, most)]

    def learn(self, proposed: int, accepted: int, n_tokens: int) -> None:
        """Take note of how a guess went, at a sequence of `n_tokens` now."""
        if accepted == proposed:
            self._length = min(self._length * 2, _LONGEST)
            return
        self._length = max(accepted, self._length // 2)
        if self._length == 0:
            self._length = 1
            self._resume = n_tokens + _REST

    def _index(self, tokens: list[int]) -> None:
        """Enter every key but the last one, which nothing follows yet."""
        for end in range(max(self._indexed, _KEY), len(tokens)):
            self._seen[tuple(tokens[end - _KEY : end])] = end
        self._indexed = len(tokens)

"""Guess the next tokens by prompt lookup: the tokens that followed the last few tokens earlier in the same sequence.

This works well for extraction, because answers copy from the prompt. A wrong guess does no harm: the engine samples at
each guessed position and keeps the sampled token. Pure: no model.
"""

from __future__ import annotations

# On a CPU a guessed token takes nearly as long as a step of its own, so wrong guesses cost time. With a key of 4 and a
# first guess of 1, 18 of 768 tokens of SmolLM2's free text were guessed wrong; with 3 and 4 it was 49. Text that is
# copied gains as much, because right guesses double the next one.
_KEY = 4  # tokens that must have occurred before
_FIRST = 1  # tokens guessed at first
_LONGEST = 16  # tokens guessed at most
_REST = 24  # tokens generated without guesses after a guess of a single token was wrong


class PromptLookup:
    """The guesses of one sequence. Right guesses make the next ones longer; after failures guessing pauses."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}  # a key of _KEY tokens → the position right after its last place
        self._indexed = 0  # keys ending before this position are in `_seen`
        self._length = _FIRST
        self._resume = 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow `tokens`; empty if there is no guess or guessing pauses."""
        if len(tokens) < _KEY + 1 or len(tokens) < self._resume:
            return []
        self._index(tokens)
        start = self._seen.get(tuple(tokens[-_KEY:]))
        if start is None:
            return []
        return tokens[start : start + min(self._length, most)]

    def learn(self, proposed: int, accepted: int, n_tokens: int) -> None:
        """Record the result of a guess: tokens proposed and accepted. The sequence has `n_tokens` tokens now."""
        if accepted == proposed:
            self._length = min(self._length * 2, _LONGEST)
            return
        self._length = max(accepted, self._length // 2)
        if self._length == 0:
            self._length = 1
            self._resume = n_tokens + _REST

    def _index(self, tokens: list[int]) -> None:
        """Record every new key except the last one, because no token follows it yet."""
        for end in range(max(self._indexed, _KEY), len(tokens)):
            self._seen[tuple(tokens[end - _KEY : end])] = end
        self._indexed = len(tokens)

"""The log probabilities of the tokens of a prompt, for requests that ask for them. They are computed in its prefill."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tourkit.engine.next_tokens import log_softmax, token_logprob
from tourkit.generation import TokenLogprob

if TYPE_CHECKING:
    from tourkit.engine.runner import Runner
    from tourkit.engine.scheduler import Chunk


class PromptScores:
    """Those of one prompt so far. `size`: tokens of the prompt. `top`: likeliest tokens to name at each position.

    No cells of other prompts are reused for such a prompt, because each of its tokens needs logits.
    """

    def __init__(self, first: bytes, size: int, top: int) -> None:
        """`first`: the bytes of the prompt's first token, which has no probability."""
        self._size = size
        self._top = top
        self._found = [TokenLogprob(first, math.nan)]
        self._is_sent = False

    def wants(self, pos: int) -> bool:
        """Whether the logits at a position are needed. They give the probability of the next token."""
        return len(self._found) <= pos + 1 < self._size

    def add(self, runner: Runner, tokens: list[int], pos: int, row: int) -> None:
        """Take a row of logits: those at position `pos` of `tokens`."""
        self._found.append(token_logprob(log_softmax(runner.logits(row)), tokens[pos + 1], self._top, runner.piece))

    def unsent(self) -> tuple[TokenLogprob, ...]:
        """Return the log probabilities of all tokens once, when they are complete; else nothing."""
        if self._is_sent or len(self._found) < self._size:
            return ()
        self._is_sent = True
        return tuple(self._found)


def take_scores(runner: Runner, chunk: Chunk, rows: list[int]) -> list[int]:
    """Give the rows of logits of a prompt's tokens to its scores. Return the other rows."""
    scores, tokens = chunk.sequence.scores, chunk.sequence.tokens
    if scores is None:
        return rows
    wanted = [pos for pos in range(chunk.start, chunk.end) if scores.wants(pos)]
    for pos, row in zip(wanted, rows, strict=False):
        scores.add(runner, tokens, pos, row)
    return rows[len(wanted) :]

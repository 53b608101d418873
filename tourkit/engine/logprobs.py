"""Log probabilities of tokens: of one token, and of all tokens of a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tourkit.generation import TokenLogprob

if TYPE_CHECKING:
    import numpy as np

    from tourkit.engine.runner import Runner


class PromptScores:
    """Those of one prompt so far, which its prefill computes.

    No cells of other prompts are reused for such a prompt, because each of its tokens needs logits.
    """

    def __init__(self, runner: Runner, tokens: Sequence[int], top: int | None) -> None:
        """`tokens`: of the prompt. `top`: likeliest tokens to name at each position."""
        self._size = len(tokens)
        self._top = top or 0
        self._found = [TokenLogprob(runner.piece(tokens[0]), math.nan)]  # the first token has no probability
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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log probabilities, float32, shape (n_vocab,). A copy: a later mask on the logits does not change it."""
    import numpy as np

    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def token_logprob(
    logprobs: np.ndarray, token: int, top: int, piece: Callable[[int], bytes], scored: Sequence[int] = ()
) -> TokenLogprob:
    """Return the log probability of the chosen token and of the `top` likeliest tokens here, best first.

    `scored`: the tokens to name instead of the likeliest, in this order.
    """
    import numpy as np

    best = list(scored)
    if top and not best:
        candidates = np.argpartition(logprobs, -top)[-top:]
        best = [int(t) for t in candidates[np.argsort(logprobs[candidates])[::-1]]]
    likeliest = tuple((piece(t), float(logprobs[t])) for t in best)
    return TokenLogprob(piece(token), float(logprobs[token]), likeliest)

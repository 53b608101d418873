"""Log probabilities out of logits. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tourkit.engine.types import TokenLogprob

if TYPE_CHECKING:
    import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log probabilities, shape (n_vocab,), float32: a copy, so that masking the logits later is no matter."""
    import numpy as np

    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def token_logprob(logprobs: np.ndarray, token: int, top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """The chosen token's log probability, and the `top` likeliest tokens of the position, best first."""
    import numpy as np

    best: list[int] = []
    if top:
        candidates = np.argpartition(logprobs, -top)[-top:]
        best = [int(t) for t in candidates[np.argsort(logprobs[candidates])[::-1]]]
    likeliest = tuple((piece(t), float(logprobs[t])) for t in best)
    return TokenLogprob(piece(token), float(logprobs[token]), likeliest)

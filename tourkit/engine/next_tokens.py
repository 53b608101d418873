"""The next tokens of a sequence: one token is drawn; tokens that the grammar forces after it need no draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tourkit.generation import TokenLogprob

if TYPE_CHECKING:
    import numpy as np

    from tourkit.engine.runner import Runner
    from tourkit.engine.sequence import Sequence
    from tourkit.grammar.matcher import Matcher


def next_tokens(runner: Runner, seq: Sequence, row: int) -> list[int]:
    """Draw a token from a row of logits and return it with the tokens that the grammar forces after it.

    Never more tokens than the sequence may still generate. Raises RequestError if a grammar hits its limits,
    EngineError if it fails.
    """
    matcher = seq.matcher
    raw = log_softmax(runner.logits(row)) if seq.top_logprobs is not None else None
    token = seq.sampler.sample(row) if matcher is None else _constrained(runner, seq, matcher, row)
    if raw is not None and token not in runner.eog:
        seq.logprobs.append(token_logprob(raw, token, seq.top_logprobs or 0, runner.piece))
    if matcher is None or token in runner.eog:
        return [token]
    matcher.accept([token])
    # The model gives no logits for a forced token, so there is no probability to report.
    return [token] if matcher.done or raw is not None else [token, *forced_tokens(seq, taken=1)]


def forced_tokens(seq: Sequence, taken: int = 0) -> list[int]:
    """Return the tokens that the grammar forces now. The grammar and the sampler have accepted them.

    `taken`: new tokens that are not yet in the sequence; they count against its limit.
    """
    if seq.matcher is None:
        return []
    forced = seq.matcher.forced()[: seq.n_left - taken]
    if forced:
        seq.matcher.accept(forced)
        for token in forced:
            seq.sampler.accept(token)
    return forced


def _constrained(runner: Runner, seq: Sequence, matcher: Matcher, row: int) -> int:
    logits = runner.logits(row)
    if seq.n_left <= matcher.reserve:
        return matcher.closing_token(logits)
    token = seq.sampler.propose(row, matcher.allows)
    if token is not None:  # much cheaper than computing and applying the mask
        seq.sampler.accept(token)
        return token
    matcher.mask(logits)
    return seq.sampler.sample(row)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log probabilities, float32, shape (n_vocab,). A copy: a later mask on the logits does not change it."""
    import numpy as np

    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def token_logprob(logprobs: np.ndarray, token: int, top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """Return the log probability of the chosen token and of the `top` likeliest tokens here, best first."""
    import numpy as np

    best: list[int] = []
    if top:
        candidates = np.argpartition(logprobs, -top)[-top:]
        best = [int(t) for t in candidates[np.argsort(logprobs[candidates])[::-1]]]
    likeliest = tuple((piece(t), float(logprobs[t])) for t in best)
    return TokenLogprob(piece(token), float(logprobs[token]), likeliest)

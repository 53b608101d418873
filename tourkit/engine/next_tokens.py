"""The next tokens of a sequence: one is drawn, those that a grammar forces after it follow without a draw."""

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
    """The token drawn from a row of logits and those the grammar forces after it, at most as many as are left.

    Raises RequestError when a grammar hits its limits, EngineError when it fails.
    """
    matcher = seq.matcher
    raw = log_softmax(runner.logits(row)) if seq.top_logprobs is not None else None
    token = seq.sampler.sample(row) if matcher is None else _constrained(runner, seq, matcher, row)
    if raw is not None and token not in runner.eog:
        seq.logprobs.append(token_logprob(raw, token, seq.top_logprobs or 0, runner.piece))
    if matcher is None or token in runner.eog:
        return [token]
    matcher.accept([token])
    # A forced token is never looked at by the model, so it has no probability to report.
    return [token] if matcher.done or raw is not None else [token, *forced_tokens(seq, taken=1)]


def forced_tokens(seq: Sequence, taken: int = 0) -> list[int]:
    """The tokens the grammar forces now, at most as many as are left when `taken` are; it has accepted them."""
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
    token = seq.sampler.propose(row)
    if token is not None and matcher.allows(token):  # far cheaper than computing the mask and applying it
        seq.sampler.accept(token)
        return token
    matcher.mask(logits)
    return seq.sampler.sample(row)


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

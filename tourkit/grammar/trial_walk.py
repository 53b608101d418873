"""Follows a compiled grammar for some steps, to find out whether generating under it is fast and within its limits."""

from __future__ import annotations

import random
import time
from typing import Any

from tourkit.grammar.matcher import MAX_STEP, error_line

_STEPS = 24  # tokens of a random text
_KNOWN_STEPS = 48  # tokens of a text that is known to be a document
_SEEDS = (1, 2)


def fault(matcher: Any, known: list[int]) -> str:
    """Return why a grammar cannot be followed, in one line; "" if no step failed.

    `known`: the tokens of a document, or of the start of one. Two seeded random texts are tried too. Each step computes
    a mask. `matcher` stays as it is.
    """
    said = _walk(matcher.deep_copy(), None, known[:_KNOWN_STEPS])
    for seed in _SEEDS:
        said = said or _walk(matcher.deep_copy(), random.Random(seed), [])
    return said


def _walk(matcher: Any, rng: random.Random | None, known: list[int]) -> str:
    """Follow the known tokens, or else random ones, until a step fails or the text ends."""
    import numpy as np

    known = known[: matcher.validate_tokens(known)] if known else []
    for step in range(_STEPS if rng else len(known)):
        began = time.thread_time()
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        if matcher.is_error():
            return error_line(matcher)
        if rng:
            tokens = np.flatnonzero(allowed)
            if not tokens.size or matcher.is_stopped():
                return ""
            token = int(tokens[rng.randrange(tokens.size)])
        else:
            token = known[step]
        matcher.consume_token(token)
        if not matcher.is_stopped():
            matcher.compute_ff_tokens()
        took = time.thread_time() - began
        if took > MAX_STEP:
            return f"too complex: one step took {took * 1000:.0f} ms"
        if matcher.is_error():
            return error_line(matcher)
        if matcher.is_stopped():
            return ""
    return ""

"""Follows a compiled grammar for some steps, to find out whether generating under it is fast and within its limits."""

from __future__ import annotations

import random
import time
from typing import Any

from tourkit.errors import RequestError
from tourkit.grammar.matcher import error_line, slow_time

_KNOWN = 16  # tokens of a text that is known to be a document
_RANDOM = 8  # tokens of a random text
_SEEDS = (1, 2)


def fault(matcher: Any, known: list[int]) -> str:
    """Return why a grammar cannot be followed, in one line; "" if no step failed.

    `known`: the tokens of a document, or of the start of one. Two seeded random texts are tried too. Each step computes
    a mask. `matcher` stays as it is.
    """
    try:
        said = _walk(matcher.deep_copy(), None, known[:_KNOWN])
        for seed in _SEEDS:
            said = said or _walk(matcher.deep_copy(), random.Random(seed), [])
    except RequestError as exc:
        return f"too complex: {exc}"
    return said


def _walk(matcher: Any, rng: random.Random | None, known: list[int]) -> str:
    """Follow the known tokens, or else random ones, until a step fails or the text ends. Return why it failed."""
    known = known[: matcher.validate_tokens(known)] if known else []
    slow = 0.0
    for step in range(_RANDOM if rng else len(known)):
        began = time.thread_time()
        mask = matcher.compute_bitmask()
        token = _drawn(mask, rng) if rng else known[step]
        if token is None or matcher.is_error():
            break
        matcher.consume_token(token)
        if not matcher.is_stopped():
            matcher.compute_ff_tokens()
        slow = slow_time(slow, began)
        if matcher.is_stopped():
            break
    return error_line(matcher) if matcher.is_error() else ""


def _drawn(mask: bytes, rng: random.Random) -> int | None:
    """Return a random token of a mask, None if it has none."""
    import numpy as np

    bits = np.frombuffer(mask, dtype=np.uint8)
    places = np.flatnonzero(bits)
    if not places.size:
        return None
    place = int(places[rng.randrange(places.size)])
    return place * 8 + rng.choice([bit for bit in range(8) if int(bits[place]) >> bit & 1])

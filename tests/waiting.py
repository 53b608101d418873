"""Wait for a condition of another process. Only a failing test reaches the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 120  # seconds


def until(condition: Callable[[], bool]) -> None:
    """Ask until the condition holds, with short pauses so that the servers get the processors."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"the condition did not come true within {DEADLINE} seconds"
        time.sleep(0.02)

"""Waiting for a condition of another process, with a deadline that only a failure reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 120  # seconds


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again, and leave the processors to the servers meanwhile."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"the condition did not come true within {DEADLINE} seconds"
        time.sleep(0.02)

"""How much memory something takes: a process with its children, or one call."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_PAGE = 4096  # bytes


def with_peak(work: Callable[[], T]) -> tuple[T, int]:
    """Return the result of a call, and the most memory that Python had for it at once, in bytes."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def memory(pid: int) -> int:
    """Return the resident memory of a process and of its children, in bytes."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            resident = int((path / "statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue  # it has just ended
        total += resident if int(path.name) == pid or parent == pid else 0
    return total

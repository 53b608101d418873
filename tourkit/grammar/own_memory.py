"""The memory of this process, as Linux tells it; 0 where the system does not tell."""

from __future__ import annotations

import mmap
from pathlib import Path


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return _pages(1)


def address_space() -> int:
    """Return the bytes of address space that this process has now."""
    return _pages(0)


def _pages(column: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[column]) * mmap.PAGESIZE
    except OSError:
        return 0

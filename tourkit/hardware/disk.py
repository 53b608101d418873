"""Reads the beginning of a file to measure its disk."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tourkit.units import MIB

_BLOCK = 4 * MIB
_MOST_BYTES = 256 * MIB
_MOST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A timed read. `size`: bytes. `direct`: the bytes came from the drive, not from memory."""

    size: int
    seconds: float
    direct: bool

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / max(self.seconds, 1e-6)


def read_some(path: Path) -> Reading:
    """Read the beginning of a file, at most 256 MiB and about 2 seconds. Raises OSError.

    Linux reads past the page cache if the file system allows it, so a file that was just copied is measured too. The
    page cache keeps its content.
    """
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            return _read(path, direct)
        except OSError:  # tmpfs and some FUSE drives refuse it; another error comes again below
            pass
    return _read(path, 0)


def _read(path: Path, flags: int) -> Reading:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | flags)
    size, start = 0, time.perf_counter()
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # its memory begins at a page, as O_DIRECT needs it
            while size < _MOST_BYTES and time.perf_counter() - start < _MOST_SECONDS:
                count = _read_into(descriptor, block, size)
                size += count
                if count < _BLOCK:
                    break
    finally:
        os.close(descriptor)
    return Reading(size, time.perf_counter() - start, bool(flags))


def _read_into(descriptor: int, block: mmap.mmap, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [block], offset)
    data = os.read(descriptor, _BLOCK)
    block[: len(data)] = data
    return len(data)

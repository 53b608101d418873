"""Measures how many bytes a second all threads together read from memory. Needs no library but C's own."""

from __future__ import annotations

import ctypes
import mmap
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tourkit.hardware.machine import Bandwidth
from tourkit.units import MIB

_SIZES = (8 * MIB, 64 * MIB, 512 * MIB)  # small models stay in the processor's caches, which are faster than RAM
_PART_OF_FREE = 8  # at most this part of the free RAM is used
_CHUNK = 4 * MIB  # of one timed read
# Processor time of a thread, so that other programs do not count. Windows counts it in steps of 16 ms.
_CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time
_SECONDS = 0.06  # for each size
_FILL, _ABSENT = 1, 0  # bytes


def measured(threads: int, free: int) -> tuple[Bandwidth, ...]:
    """Read blocks of memory with `threads` threads, and return the bandwidth of each size. `free`: bytes of RAM.

    It takes about half a second. The block is in huge pages if the system has them, as a worker's weights are.
    """
    sizes = [size for size in _SIZES if size * _PART_OF_FREE <= free] or [_SIZES[0]]
    with mmap.mmap(-1, sizes[-1]) as block, ThreadPoolExecutor(threads) as pool:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        view = ctypes.c_char.from_buffer(block)
        start = ctypes.addressof(view)
        try:
            ctypes.memset(start, _FILL, sizes[-1])
            return tuple(Bandwidth(size, round(_rate(pool, threads, start, size))) for size in sizes)
        finally:
            del view  # a mapping that is still referred to cannot be closed


def _rate(pool: ThreadPoolExecutor, threads: int, start: int, size: int) -> float:
    """Return bytes a second of all threads. Each reads its part of the `size` bytes at `start`, again and again.

    The median of all chunks counts.
    """
    part = size // threads
    chunk = min(part, _CHUNK)
    end = time.perf_counter() + _SECONDS
    reading = [pool.submit(_read, start + number * part, part, chunk, end) for number in range(threads)]
    return threads * chunk / statistics.median([seconds for each in reading for seconds in each.result()])


def _read(start: int, size: int, chunk: int, end: float) -> list[float]:
    """Read the chunks of a part until the time `end`, once at least. Return the seconds of each.

    C's search for a byte reads a block as fast as memory gives it, without Python's lock. The byte is never found.
    """
    search = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memchr
    search.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    search.restype = ctypes.c_void_p
    taken: list[float] = []
    while not taken or time.perf_counter() < end:
        for offset in range(0, size - chunk + 1, chunk):
            began = _CLOCK()
            search(start + offset, _ABSENT, chunk)
            taken.append(_CLOCK() - began)
    return taken

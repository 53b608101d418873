"""Measures how many bytes a second all threads together read from memory. Needs no library but C's own."""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tourkit.hardware.machine import Bandwidth
from tourkit.units import MIB

_SIZES = (8 * MIB, 64 * MIB, 512 * MIB)  # small models stay in the processor's caches, which are faster than RAM
_PART_OF_FREE = 8  # at most this part of the free RAM is used
_SECONDS = 0.1  # for each size
_LEAST_PASSES = 2  # the first pass wakes threads
_FILL, _ABSENT = 1, 0  # bytes


def measured(threads: int, free: int) -> tuple[Bandwidth, ...]:
    """Read blocks of memory with `threads` threads, and return the fastest pass of each size. `free`: bytes of RAM.

    It takes about half a second. The block is in huge pages if the system has them, as a worker's weights are.
    """
    sizes = [size for size in _SIZES if size * _PART_OF_FREE <= free] or [_SIZES[0]]
    with mmap.mmap(-1, sizes[-1]) as block, ThreadPoolExecutor(threads) as pool:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        view = ctypes.c_char.from_buffer(block)
        start = ctypes.addressof(view)
        try:
            _each(pool, threads, lambda at, size: ctypes.memset(at, _FILL, size), start, sizes[-1])
            return tuple(Bandwidth(size, round(_rate(pool, threads, start, size))) for size in sizes)
        finally:
            del view  # a mapping that is still referred to cannot be closed


def _rate(pool: ThreadPoolExecutor, threads: int, start: int, size: int) -> float:
    """Return bytes a second of the fastest pass over `size` bytes at `start`: other programs make a pass slower."""
    search = _memchr()
    taken: list[float] = []
    while len(taken) < _LEAST_PASSES or sum(taken) < _SECONDS:
        began = time.perf_counter()
        _each(pool, threads, lambda at, length: search(at, _ABSENT, length), start, size)
        taken.append(time.perf_counter() - began)
    return size / min(taken)


def _each(pool: ThreadPoolExecutor, threads: int, call: Callable[[int, int], object], start: int, size: int) -> None:
    """Call with address and length of each thread's part, all at once: C functions run without Python's lock."""
    part = size // threads
    for done in [pool.submit(call, start + number * part, part) for number in range(threads)]:
        done.result()


def _memchr() -> Callable[[int, int, int], object]:
    """Return C's search for a byte: it reads a block as fast as memory gives it."""
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    search: Callable[[int, int, int], object] = library.memchr
    library.memchr.argtypes, library.memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    return search

"""Limits the memory of this process and its children with a cgroup of its own, version 1 or 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tourkit.hardware import cgroups
from tourkit.hardware.cgroups import Files


@dataclass(frozen=True, slots=True)
class Cap:
    """Whether the limit holds. `refusal`: why it does not; "" if it does."""

    refusal: str = ""


@contextmanager
def capped(limit: int, files: Files | None = None) -> Iterator[Cap]:
    """Limit this process and all that it starts to `limit` bytes within the block, without swap.

    The block runs without the limit if the system does not let this user make a cgroup.
    """
    own = _own(files or Files())
    made = None if own is None else _made(own, limit)
    if own is None or made is None:
        yield Cap("this user may not make a cgroup with a memory limit")
        return
    try:
        yield Cap()
    finally:
        with contextlib.suppress(OSError):  # a process that still ends keeps the cgroup, which is then empty
            _join(own)
            made.rmdir()


def _own(files: Files) -> Path | None:
    """Return this process's cgroup. None if it is not seen here, as in some containers."""
    for folder in cgroups.folders(files, "memory"):
        with contextlib.suppress(OSError):
            if str(os.getpid()) in (folder / "cgroup.procs").read_text().split():
                return folder
    return None


def _made(own: Path, limit: int) -> Path | None:
    """Make a cgroup with the limit and move this process into it. None if that is not possible.

    Version 1 puts it into the process's own cgroup. Version 2 allows this only if no process is in that one, so the new
    one is put beside it.
    """
    one = (own / "memory.limit_in_bytes").exists()
    folder = (own if one else own.parent) / f"tourkit-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        return None
    try:
        (folder / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(limit))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        _join(folder)
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder


def _join(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))

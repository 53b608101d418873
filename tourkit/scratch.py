"""Temporary folders that do not outlive their process for long: the next one removes those of killed processes.

A process that is killed cannot clean up. Each folder has a file that its process keeps locked; the system releases the
lock when the process ends in any way. So a folder whose lock is free belongs to nobody.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tourkit import net
from tourkit.files import take_lock

PREFIX = "tourkit-"
_LOCK = ".owner.lock"


@contextlib.contextmanager
def folder(kind: str, *, parent: str | None = None) -> Iterator[Path]:
    """Make a temporary folder that only this user can read, and remove it at the end of the block.

    First remove the folders that killed processes left. `kind`: part of its name. `parent`: None for the system's
    temporary folder. Raises OSError, and LocalError if other users can open it.
    """
    where = Path(parent or tempfile.gettempdir())
    _sweep(where)
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=where))  # with mode 0700
    # Locked before it has its name: else another process could take the lock first, and remove the folder.
    lock = os.open(made / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        net.make_private(made)
        _take(lock)
        (made / f"{_LOCK}.new").rename(made / _LOCK)
        yield made
    finally:
        os.close(lock)
        shutil.rmtree(made, ignore_errors=True)


def _sweep(where: Path) -> None:
    """Remove the folders below `where` whose process has ended. Folders of other users and of other programs stay."""
    for path in where.glob(f"{PREFIX}*"):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue  # no folder of this module, or another user's
        try:
            if _take(lock):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _take(lock: int) -> bool:
    """Lock an open file without waiting. Return False if another process holds it, or if the system has no such lock.

    Without locks nobody knows whose a folder is, so each process removes only its own.
    """
    try:
        return sys.platform != "win32" and take_lock(lock)
    except OSError:
        return False

"""One process at a time: the lock of a folder that a command writes into."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.fetch.download import FetchListener
from tourkit.files import open_plain, take_lock

LOCK_FILE = ".prefetch.lock"


@contextlib.contextmanager
def only_one(root: Path, listener: FetchListener) -> Iterator[None]:
    """Hold the lock of the folder `root`. The system releases it when the process ends in any way.

    Raises LocalError if another process holds it.
    """
    path = root / LOCK_FILE
    while True:
        fd = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            if not take_lock(fd):
                raise LocalError(
                    f"{root}: another `tourkit prefetch` is writing here ({path}): wait for it, or stop it"
                )
            if _is_named(fd, path):
                break
        except OSError as exc:
            listener.on_note(f"{root}: this drive has no locks ({exc.strerror}): run one prefetch at a time")
            break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file; see below
            path.unlink()
        os.close(fd)
        if sys.platform == "win32":
            with contextlib.suppress(OSError):
                path.unlink()


def _is_named(fd: int, path: Path) -> bool:
    """Return False if the last holder removed the file after we opened it: our lock would then protect nothing."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False

"""Write a file whole or not at all, and hash a file. This module knows nothing about bundles, locks or hubs."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

_BLOCK = 1 << 20  # bytes of one read: so large that the hashing takes the time, not the calls


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data` to `path`. A crash leaves the old file or the new one, never half a file.

    `data`: the whole content, or blocks that are written one after another. The folder must exist. Raises OSError, or
    what the blocks raise; the temporary file beside `path` is then removed.
    """
    temp = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")  # same folder, so the same volume
    try:
        with temp.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make the names in folder `path` durable. Does nothing on Windows, which cannot sync a folder."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some FUSE file systems refuse fsync on a folder
            os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as 64 hex digits; `progress` gets the bytes of each step. Raises OSError."""
    digest = hashlib.sha256()
    block = bytearray(_BLOCK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(view[:size])
            if progress is not None:
                progress(size)
    return digest.hexdigest()

"""Writing a file so that it is whole or absent, and hashing one quickly. It knows nothing of bundles, locks or hubs."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

_BLOCK = 1 << 20  # bytes a read: large enough that hashing, not the call, is what takes the time


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Put `data` under `path` so that a crash leaves the old file or the new one, never half of one.

    `data` is the whole content, or blocks that are written one after another. The folder must exist. Raises OSError,
    or what the blocks raise; the temporary file beside `path` is removed then.
    """
    temp = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")  # same folder, hence the same volume
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
    """Make the names in folder `path` durable; does nothing where a folder cannot be synced (Windows)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some FUSE file systems refuse fsync on a folder
            os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as 64 hex digits; `progress` gets the bytes of each step. Raises OSError."""
    digest = hashlib.sha256()
    block = bytearray(_BLOCK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(view[:size])
            if progress is not None:
                progress(size)
    return digest.hexdigest()

"""Write a file whole or not at all, hash a file, and open only plain files below a folder.

This module knows nothing about bundles, locks or hubs.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from uuid import uuid4

_BLOCK = 1 << 20  # bytes of one read: so large that the hashing takes the time, not the calls
# A link is not followed, and a FIFO does not wait for another process. Windows has neither flag.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotPlainError(OSError):
    """A link or a special file is where a plain file, or a folder on the way to it, must be. `strerror` says which."""

    def __init__(self, path: Path, mode: int, wanted: str) -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "a plain file" if stat.S_ISREG(mode) else "a special file")
        super().__init__(errno.EINVAL, f"it is {kind}, not a {wanted}", str(path))


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


def open_below(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Open the plain file `path` below the folder `root`, and return its descriptor. Only `root` may be a link.

    `path`: relative, with "/". `flags`: as for os.open. A link is never followed, and nothing else than a plain file is
    read or written, so an open never waits. Raises OSError: NotPlainError for a link or a special file.
    """
    check_folders_below(root, str(PurePosixPath(path).parent))
    return open_plain(root / path, flags)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file that is no link, and return its descriptor. Raises OSError, as `open_below` does."""
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as exc:
        mode = _mode(path)  # a link gives ELOOP, a socket ENXIO, a folder EISDIR
        if mode is not None and not stat.S_ISREG(mode):
            raise NotPlainError(path, mode, "plain file") from exc
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotPlainError(path, mode, "plain file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_below(root: Path, path: str) -> bytes:
    """Return the content of a plain file, as `open_below` opens it."""
    with os.fdopen(open_below(root, path), "rb") as file:
        return file.read()


def check_folders_below(root: Path, folder: str) -> None:
    """Refuse a link, or anything else than a folder, on the way from `root` to `folder`. What is missing is no error.

    Raises NotPlainError.
    """
    way = root
    for part in PurePosixPath(folder).parts:
        way = way / part
        mode = _mode(way)
        if mode is None:
            return
        if not stat.S_ISDIR(mode):
            raise NotPlainError(way, mode, "folder")


def make_folder_below(root: Path, folder: str) -> None:
    """Make `folder` below `root`, and the folders on the way to it. Raises OSError as `open_below` does."""
    check_folders_below(root, folder)
    (root / folder).mkdir(parents=True, exist_ok=True)


def take_lock(fd: int) -> bool:
    """Lock an open file without waiting. Return False if another process holds it. Raises OSError without locks."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mode(path: Path) -> int | None:
    """Return the mode of what is at `path` itself, None if nothing is there."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as 64 hex digits; `progress` gets the bytes of each step. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return _sha256(file, progress)


def sha256_below(root: Path, path: str, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a plain file below `root`, as `open_below` opens it."""
    with os.fdopen(open_below(root, path), "rb", buffering=0) as file:
        return _sha256(file, progress)


def _sha256(file: io.FileIO, progress: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    block = bytearray(_BLOCK)
    view = memoryview(block)
    while size := file.readinto(block):
        digest.update(view[:size])
        if progress is not None:
            progress(size)
    return digest.hexdigest()

"""List everything below a folder, and hash many files in parallel."""

import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tourkit.errors import NotSo
from tourkit.files import open_below, sha256_below

_MOST_JOBS = 8  # hashing threads; eight cores hash faster than any drive reads


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything below a folder. Paths are relative to it, with "/"."""

    plain: dict[str, int]  # path: bytes
    other: dict[str, str]  # path: what is there instead of a plain file
    unreadable: dict[str, str]  # folder: why it could not be listed


def scan(root: Path) -> Contents:
    """List every entry below `root` that is not a folder, without following links."""
    found = Contents({}, {}, {})
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        _add(entry, path, found)
        except OSError as exc:
            found.unreadable[folder] = f"cannot be read: {exc.strerror or exc}"
    return found


def _add(entry: os.DirEntry[str], path: str, found: Contents) -> None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as exc:
        found.other[path] = f"cannot be read: {exc.strerror or exc}"
        return
    if stat.S_ISREG(status.st_mode):
        found.plain[path] = status.st_size
    else:
        found.other[path] = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a plain file"


def check_plain(root: Path, paths: Iterable[str]) -> None:
    """Refuse a bundle in which one of `paths` is a link or a special file, or lies behind a link to another folder.

    A native loader would follow it out of the bundle, or wait for ever. Raises NotSo.
    """
    for path in paths:
        try:
            os.close(open_below(root, path))
        except FileNotFoundError:
            continue  # what uses the file reports that it is missing
        except OSError as exc:
            where = exc.filename or root / path
            raise NotSo(f"{where}: {exc.strerror}: run `tourkit verify {root}`, then restore the file") from exc


def sha256_of_all(
    root: Path, sizes: Mapping[str, int], jobs: int | None = None, progress: Callable[[int], None] | None = None
) -> dict[str, str | OSError]:
    """Return the SHA-256 of each file by its path below `root`, or the error that stopped the reading.

    `sizes`: bytes by path. `jobs`: threads (default: the cores this process may use, at most 8); the biggest files go
    first, so that the threads end at about the same time. `progress` gets the bytes hashed, one call at a time.
    """
    stop = threading.Event()
    gate = threading.Lock()

    def step(size: int) -> None:
        if stop.is_set():
            raise InterruptedError("stopped")
        if progress is not None:
            with gate:
                progress(size)

    def one(path: str) -> str | OSError:
        try:
            return sha256_below(root, path, step)
        except OSError as exc:
            return exc

    paths = sorted(sizes, key=lambda path: (-sizes[path], path))
    pool = ThreadPoolExecutor(max_workers=max(1, jobs or _cores()))
    try:
        return dict(zip(paths, pool.map(one, paths), strict=True))
    finally:
        stop.set()  # after Ctrl-C the threads stop at once, not after gigabytes
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_JOBS)

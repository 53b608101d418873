"""Fetching the files of a lock into a bundle folder, several files at once and one process at a time.

download.py fetches one file. extras.py writes the files beside the weights and makes the index.
"""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tourkit.bundle.index import Index, write_index
from tourkit.errors import LocalError, ManifestError, TourkitError, Unreachable
from tourkit.fetch.download import (
    FetchListener,
    SilentListener,
    StoppedError,
    download,
    is_out_of_space,
    local_error,
    part_path,
)
from tourkit.fetch.extras import assemble, clear_leftovers
from tourkit.fetch.hub import Hub
from tourkit.manifest.choice import chosen
from tourkit.manifest.lock import Lock, LockedVariant, UnresolvedVariant, check_current, path_of
from tourkit.manifest.models import Manifest, PinnedFile, Source
from tourkit.manifest.paths import check_path

LOCK_FILE = ".prefetch.lock"
JOBS = 4
_SPARE = 64 << 20  # bytes that must stay free: templates, index, the file system's own needs


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the lock and how much of it is on disk, judged by name and size. Nothing is hashed for it."""

    file: PinnedFile[Source]
    whole: bool  # a file of this size is at its place
    part_bytes: int  # bytes in the part file of an earlier run, 0 when whole

    @property
    def to_fetch_bytes(self) -> int:
        return 0 if self.whole else self.file.size - self.part_bytes


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The files and variants of a prefetch. All sizes in bytes."""

    files: tuple[PlannedFile, ...]
    variants: tuple[LockedVariant, ...]

    @property
    def total_bytes(self) -> int:
        return sum(planned.file.size for planned in self.files)

    @property
    def to_fetch_bytes(self) -> int:
        return sum(planned.to_fetch_bytes for planned in self.files)


def fetch_plan(
    manifest: Manifest, lock: Lock, root: Path, *, roles: Sequence[str] = (), stacks: Sequence[str] = ()
) -> FetchPlan:
    """Return the files that the lock names for the given roles and stacks (none given: all). Writes nothing.

    Raises UsageError for an unknown role or stack or an empty choice, ManifestError if the lock does not fit the
    manifest or a chosen file is not pinned.
    """
    check_current(manifest, lock)
    wanted = chosen(manifest, roles, stacks)
    unresolved = [v for v in lock.variants if v.id in wanted and isinstance(v, UnresolvedVariant)]
    if unresolved:
        raise _not_pinned(manifest, unresolved)
    variants = tuple(variant for variant in lock.resolved if variant.id in wanted)
    files = tuple(_planned(file, root) for variant in variants for file in variant.files)
    return FetchPlan(files, variants)


def prefetch(
    manifest: Manifest,
    lock: Lock,
    root: Path,
    hub: Hub,
    *,
    roles: Sequence[str] = (),
    stacks: Sequence[str] = (),
    jobs: int = JOBS,
    listener: FetchListener | None = None,
) -> Index:
    """Fetch everything that the lock names into `root`, then write the index. A second run resumes.

    `jobs`: files that are downloaded at once. If one file fails, the others are still fetched. Raises what `fetch_plan`
    raises, HubError, WrongContent and LocalError (a full drive, another prefetch into the same folder).
    """
    listener = listener or SilentListener()
    fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)  # refuse before the folder is created
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_one(root, listener):
            todo = fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)
            _check_space(root, todo)
            listener.on_start(todo.total_bytes, todo.to_fetch_bytes)
            _download_all([planned.file for planned in todo.files], root, hub, max(1, jobs), listener)
            index = assemble(manifest, lock, todo.variants, root, listener)
            clear_leftovers(root, todo.variants)
            write_index(root, index)
            return index
    except OSError as exc:
        raise local_error(exc, root) from exc


def _not_pinned(manifest: Manifest, unresolved: Sequence[UnresolvedVariant]) -> ManifestError:
    """The error for variants of which the lock does not know everything; each is named."""
    reasons = tuple(f"{variant.id}: {_missing(variant)}" for variant in unresolved)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    fix = f"run `tourkit lock {manifest.path}`, or fetch a part with --role or --stack"
    line = f"{path_of(manifest.path)}: {reasons[0]}{more}: {fix}"
    return ManifestError(line, details=reasons if more else ())


def _missing(variant: UnresolvedVariant) -> str:
    for file in variant.files:
        if variant.commit is None or file.size is None or file.sha256 is None:
            return f"{file.path} of {variant.repo} is not pinned yet"
    return f"the files of {variant.repo} are not all pinned yet"


def _planned(file: PinnedFile[Source], root: Path) -> PlannedFile:
    check_path(file.path, file.source.repo)  # a program may have built the lock; only lock.read checks
    whole = _size(root / file.path) == file.size
    left = 0 if whole else _size(part_path(file, root)) or 0
    return PlannedFile(file, whole, left if left <= file.size else 0)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _check_space(root: Path, todo: FetchPlan) -> None:
    free = shutil.disk_usage(root).free
    needed = todo.to_fetch_bytes + _SPARE
    if todo.to_fetch_bytes and free < needed:
        fix = "free some space, choose another drive, or fetch less with --role or --stack"
        raise LocalError(f"{root}: {_gib(needed)} needed, {_gib(free)} free on this drive: {fix}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


# ---- several files at once ---------------------------------------------------------------------------


def _download_all(
    files: Sequence[PinnedFile[Source]], root: Path, hub: Hub, jobs: int, listener: FetchListener
) -> None:
    """Download every file. The biggest come first, so that no thread ends alone with a big one.

    After all files were tried, the failures are raised as one error: the first by path, with all of them as details.
    Ctrl-C ends the wait at once. The threads end within a block; their part files stay.
    """
    stop = threading.Event()

    def fetch(file: PinnedFile[Source]) -> TourkitError | None:
        try:
            download(file, root, hub, listener, stop)
        except StoppedError:
            return None
        except TourkitError as exc:
            if isinstance(exc, Unreachable) or (isinstance(exc, LocalError) and is_out_of_space(exc)):
                stop.set()  # every other file would fail in the same way
                hub.interrupt()
            return exc
        return None

    order = sorted(files, key=lambda file: (-file.size, file.path))
    pool = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="prefetch")
    try:
        running = {pool.submit(fetch, file): file for file in order}
        waiting = set(running)
        while waiting:  # in steps, because Windows delivers Ctrl-C only between them
            _, waiting = wait(waiting, timeout=0.5)
    except BaseException:
        stop.set()
        hub.interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        hub.close()
    failed = {file.path: error for future, file in running.items() if (error := future.result())}
    if failed:
        first = failed[min(failed)]
        problems = tuple(dict.fromkeys(str(failed[path]) for path in sorted(failed)))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise type(first)(f"{first}{more}", details=problems if more else ()) from first


# ---- one process at a time ---------------------------------------------------------------------------


@contextlib.contextmanager
def _only_one(root: Path, listener: FetchListener) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when the process ends in any way."""
    path = root / LOCK_FILE
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _take(fd):
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


def _take(fd: int) -> bool:
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

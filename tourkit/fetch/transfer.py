"""Several downloads at once, and the free space they need."""

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from tourkit.errors import LocalError, TourkitError, Unreachable
from tourkit.fetch.download import FetchListener, StoppedError, download, is_out_of_space
from tourkit.fetch.stream import Server
from tourkit.manifest.models import Link, PinnedFile, Source

JOBS = 4
_SPARE = 64 << 20  # bytes that must stay free: templates, index, the file system's own needs
_From = TypeVar("_From", Source, Link)


def check_space(root: Path, to_fetch_bytes: int, less: str) -> None:
    """Raise LocalError if the drive of `root` has no room for the bytes. `less`: how to fetch less."""
    free = shutil.disk_usage(root).free
    needed = to_fetch_bytes + _SPARE
    if to_fetch_bytes and free < needed:
        fix = f"free some space, choose another drive, or {less}"
        raise LocalError(f"{root}: {_gib(needed)} needed, {_gib(free)} free on this drive: {fix}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def transfer(
    files: Sequence[PinnedFile[_From]], root: Path, server: Server[_From], jobs: int, listener: FetchListener
) -> None:
    """Download every file into the folder `root`, `jobs` at once, the biggest first.

    After all files were tried, the failures are raised as one error: the first by path, with all of them as details.
    Ctrl-C ends the wait at once. The threads end within a block; their part files stay.
    """
    stop = threading.Event()

    def fetch(file: PinnedFile[_From]) -> TourkitError | None:
        try:
            download(file, root, server, listener, stop)
        except StoppedError:
            return None
        except TourkitError as exc:
            if isinstance(exc, Unreachable) or (isinstance(exc, LocalError) and is_out_of_space(exc)):
                stop.set()  # every other file would fail in the same way
                server.interrupt()
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
        server.interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        server.close()
    failed = {file.path: error for future, file in running.items() if (error := future.result())}
    if failed:
        raise joined([failed[path] for path in sorted(failed)]) from failed[min(failed)]


def joined(failed: Sequence[TourkitError]) -> TourkitError:
    """Return one error for several: of the kind of the first, with all of them as details."""
    problems = tuple(dict.fromkeys(line for error in failed for line in error.details or (str(error),)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return type(failed[0])(f"{problems[0]}{more}", details=problems if more else ())

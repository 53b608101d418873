"""Download one file from the hub: part file, resume, hash, retries, and the move to its final name.

tourkit/fetch/prefetch.py decides which files are downloaded, in which thread and into which folder.
"""

import errno
import hashlib
import io
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Generic, Protocol, TypeVar

from tourkit.errors import LocalError, WrongContent
from tourkit.fetch.stream import PassingError, RangeRefusedError, Server, Stream
from tourkit.files import NotPlainError, fsync_dir, make_folder_below, open_plain, sha256_of
from tourkit.manifest.models import Link, PinnedFile, Source

BLOCK = 1 << 20  # bytes: the most that is in memory only, and lost if the process is killed
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_From = TypeVar("_From", Source, Link)


class StoppedError(Exception):
    """The download was asked to stop. The bytes so far stay in the part file."""


class FetchListener(Protocol):
    """Gets the events of a prefetch. It is called from several threads."""

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        """`total_bytes`: all bytes of the selected files. `to_fetch`: those of files not here by name and size."""

    def on_bytes(self, n: int, kind: str) -> None:
        """`n` more bytes were "fetched" from the hub or "checked" on the drive."""

    def on_again(self, n: int) -> None:
        """`n` bytes that `on_bytes` counted are wrong or cannot be continued. They come again."""

    def on_note(self, text: str) -> None:
        """One line to show, such as a repeated attempt."""


class SilentListener:
    """A FetchListener that does nothing."""

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        pass

    def on_bytes(self, n: int, kind: str) -> None:
        pass

    def on_again(self, n: int) -> None:
        pass

    def on_note(self, text: str) -> None:
        pass


def part_path(file: PinnedFile[Source | Link], root: Path) -> Path:
    """Return the part file of `file` below the bundle `root`. It holds the bytes downloaded so far.

    Its name contains the hash, so that a part of another version is never resumed.
    """
    dest = root / file.path
    return dest.with_name(f"{dest.name}.{file.sha256[:12]}.part")


@dataclass(slots=True)
class _Part:
    """An open part file: `size` bytes are written to it and counted in `digest`."""

    file: io.FileIO
    size: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def append(self, view: memoryview) -> None:
        self.digest.update(view)
        while view:
            written = self.file.write(view)
            self.size += written
            view = view[written:]

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size = 0
        self.digest = hashlib.sha256()


@dataclass(frozen=True, slots=True)
class _Download(Generic[_From]):
    """One download: the bytes go into `part`, which is then renamed to `dest`."""

    file: PinnedFile[_From]
    dest: Path
    part: Path
    server: Server[_From]
    listener: FetchListener
    stop: threading.Event

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise StoppedError

    def restart(self, part: _Part) -> None:
        """Begin the part file again at byte 0."""
        self.listener.on_again(part.size)
        part.restart()

    def checked(self, size: int) -> None:
        self.listener.on_bytes(size, "checked")
        self.check_stop()


def download(
    file: PinnedFile[_From], root: Path, server: Server[_From], listener: FetchListener, stop: threading.Event
) -> None:
    """Bring `file` to its place in the bundle `root`: check what is there, else resume its part file.

    Raises HubError, WrongContent (the bytes are set aside as `<name>.<hash>.bad`), LocalError, and StoppedError
    soon after `stop` is set.
    """
    job = _Download(file, root / file.path, part_path(file, root), server, listener, stop)
    try:
        job.check_stop()
        if is_whole(file, root, listener, stop):
            return
        make_folder_below(root, str(PurePosixPath(file.path).parent))
        _fetch(job)
    except OSError as exc:
        raise local_error(exc, job.dest, file.size) from exc


def is_out_of_space(error: LocalError) -> bool:
    """Return True if every other file on the same drive would fail in the same way."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (*_NO_SPACE, errno.EROFS)


def local_error(exc: OSError, path: Path, size: int = 0) -> LocalError:
    """Return an OSError of the drive as one line with the fix."""
    again = "and run it again; it resumes"
    if isinstance(exc, NotPlainError):
        return LocalError(f"{exc.filename}: {exc.strerror}, and tourkit does not write through it: remove it {again}")
    if exc.errno in _NO_SPACE:
        return LocalError(f"{path}: no space left on this drive: free some {again}")
    if exc.errno == errno.EFBIG:
        fix = "use a drive formatted as exFAT or ext4 (FAT32 ends at 4 GiB), or lift `ulimit -f`"
        return LocalError(f"{path}: {size / 2**30:.2f} GiB is too large for one file here: {fix}")
    if exc.errno == errno.EROFS:
        return LocalError(f"{path}: the drive is read-only: choose another folder, or mount it for writing")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return LocalError(f"{path}: no permission to write: choose another folder, or fix its permissions")
    if exc.errno == errno.ENAMETOOLONG:
        return LocalError(f"{path}: the name is too long for this drive: choose a shorter folder")
    return LocalError(f"{path}: {exc.strerror or exc}: check the folder and the drive {again}")


def is_whole(
    file: PinnedFile[Source | Link], root: Path, listener: FetchListener, stop: threading.Event | None = None
) -> bool:
    """Return True if the right bytes are already in place. The size is a hint, the hash decides.

    Raises OSError, and StoppedError once `stop` is set.
    """

    def checked(size: int) -> None:
        listener.on_bytes(size, "checked")
        if stop is not None and stop.is_set():
            raise StoppedError

    dest = root / file.path
    if dest.is_symlink() or not dest.is_file() or dest.stat().st_size != file.size:
        return False
    if sha256_of(dest, checked) == file.sha256:
        return True
    listener.on_again(file.size)
    return False


def _fetch(job: _Download[_From]) -> None:
    """Fetch the file and move it to its place. Wrong bytes are fetched once more from 0.

    One wrong hash can be an accident: a power cut can leave zeros in a part file, or a bit flips. Two are an error.
    """
    found = _receive(job)
    if found != job.file.sha256:
        job.listener.on_note(f"{job.dest.name}: the hash is not the one of the lock; fetching once more from 0")
        job.part.unlink()
        job.listener.on_again(job.file.size)
        found = _receive(job)
    if found != job.file.sha256:
        bad = job.dest.with_name(f"{job.dest.name}.{found[:12]}.bad")
        job.part.replace(bad)
        what = f"sha256 is {found[:12]}…, the lock says {job.file.sha256[:12]}… (kept as {bad.name})"
        raise WrongContent(f"{job.dest}: {what}: {job.server.words.wrong_bytes}")
    job.part.replace(job.dest)
    fsync_dir(job.dest.parent)


def _receive(job: _Download[_From]) -> str:
    """Fill the part file up to the size in the lock, sync it to disk, and return the SHA-256 of its bytes."""
    fd = open_plain(job.part, os.O_RDWR | os.O_CREAT)
    with io.FileIO(fd, "r+") as file:
        part = _Part(file)
        _take_over(job, part)
        _fill(job, part)
        os.fsync(fd)
        return part.digest.hexdigest()


def _take_over(job: _Download[_From], part: _Part) -> None:
    """Hash the bytes that an earlier run left, so that the download can continue after them."""
    length = os.fstat(part.file.fileno()).st_size
    if length > job.file.size:  # tourkit did not write this
        part.restart()
        return
    block = memoryview(bytearray(min(BLOCK, length)))
    while part.size < length and (got := part.file.readinto(block)):
        part.digest.update(block[:got])
        part.size += got
        job.checked(got)


def _fill(job: _Download[_From], part: _Part) -> None:
    """Request bytes until the part file is full. Only failures in a row without a new byte count."""
    patience = job.server.patience
    block = memoryview(bytearray(min(BLOCK, job.file.size)))
    failures, furthest = 0, part.size
    while part.size < job.file.size:
        try:
            _stream(job, part, block)
        except RangeRefusedError as exc:
            job.restart(part)
            problem = PassingError(f"the file ends before byte {furthest} ({exc})")
        except PassingError as exc:
            job.check_stop()  # an interrupt looks like a broken connection
            problem = exc
        else:
            continue
        if part.size > furthest:
            failures, furthest = 0, part.size
        failures += 1
        if failures >= patience.attempts:
            raise job.server.given_up(job.server.name(job.file.source), problem) from problem
        pause_s = patience.pause_s(failures, problem.wait_s)
        job.listener.on_note(f"{job.dest.name}: {problem}; retry in {pause_s:.0f} s")
        job.stop.wait(pause_s)
        job.check_stop()


def _stream(job: _Download[_From], part: _Part, block: memoryview) -> None:
    """Send one GET, from the end of the part file to the end of the file."""
    file = job.file
    with job.server.open(file.source, start=part.size) as stream:
        _check_announced(job, stream)
        if stream.start != part.size:  # the server cannot resume
            job.restart(part)
        while part.size < file.size:
            got = stream.readinto(block[: file.size - part.size])
            job.check_stop()
            if not got:
                raise PassingError(f"the file ended at byte {part.size} of {file.size}")
            part.append(block[:got])
            job.listener.on_bytes(got, "fetched")
        if stream.total is None and stream.readinto(block[:1]):
            raise _wrong(job, f"more than the {file.size} bytes that the lock says")


def _check_announced(job: _Download[_From], stream: Stream) -> None:
    """Refuse the answer before its first byte if its headers show that it is another file."""
    file = job.file
    if stream.is_html and not file.path.endswith((".html", ".htm")):
        name = job.server.name(file.source)
        raise WrongContent(f"{name}: a web page came instead of the file: {job.server.words.web_page}")
    if stream.total is not None and stream.total != file.size:
        raise _wrong(job, f"{stream.total} bytes, the lock says {file.size}")
    if stream.sha256 is not None and stream.sha256 != file.sha256:
        raise _wrong(job, f"sha256 {stream.sha256[:12]}…, the lock says {file.sha256[:12]}…")


def _wrong(job: _Download[_From], what: str) -> WrongContent:
    where, words = job.server.pinned_name(job.file.source), job.server.words
    return WrongContent(f"{where}: the {words.server} offers {what}: {words.other_file}")

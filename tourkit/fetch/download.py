"""Moving one file from the hub to its place: part file, resume, hash, further attempts, publication.

Knows nothing of bundles, locks or threads; tourkit/fetch/prefetch.py decides what is moved and by whom.
"""

import errno
import hashlib
import io
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tourkit.errors import LocalError, WrongContent
from tourkit.fetch.hub import Hub, PassingError, RangeRefusedError, Stream
from tourkit.files import fsync_dir, sha256_of

BLOCK = 1 << 20  # bytes: the most that is held in memory, and lost, when the process is killed
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class StoppedError(Exception):
    """The transfer was asked to stop; what has arrived stays in the part file."""


class FetchListener(Protocol):
    """Hears of a prefetch; called from several threads, so it must not mind that."""

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        """All bytes of the selected files, and how many of them are not here by name and size."""

    def on_bytes(self, n: int, kind: str) -> None:
        """`n` more bytes "fetched" from the hub or "checked" on the drive; a repeated byte counts again."""

    def on_note(self, text: str) -> None:
        """One line worth showing, such as a repeated attempt."""


class Silent:
    """FetchListener nobody hears of."""

    def on_start(self, total_bytes: int, to_fetch: int) -> None:
        pass

    def on_bytes(self, n: int, kind: str) -> None:
        pass

    def on_note(self, text: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Item:
    """One file to have at `dest`: `source` in `repo` at `commit`, `size` in bytes."""

    repo: str
    commit: str
    source: str
    dest: Path
    size: int
    sha256: str

    @property
    def part(self) -> Path:
        """Holds what has arrived. The hash in its name keeps another version's bytes from being continued."""
        return self.dest.with_name(f"{self.dest.name}.{self.sha256[:12]}.part")


@dataclass(slots=True)
class _Part:
    """An open part file; `size` bytes of it are written and in `digest`."""

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
class _Move:
    """One file on its way."""

    item: Item
    hub: Hub
    progress: FetchListener
    stop: threading.Event

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise StoppedError

    def checked(self, size: int) -> None:
        self.progress.on_bytes(size, "checked")
        self.check_stop()


def fetch(item: Item, hub: Hub, progress: FetchListener, stop: threading.Event) -> None:
    """Have `item` whole at its place: check what is there, else fetch it from where its part file ends.

    Raises HubError, WrongContent (the bytes are set aside as `<dest>.<hash>.bad`), LocalError, and StoppedError
    soon after `stop` is set.
    """
    move = _Move(item, hub, progress, stop)
    try:
        move.check_stop()
        if _is_whole(move):
            return
        item.dest.parent.mkdir(parents=True, exist_ok=True)
        _fetch(move)
    except OSError as exc:
        raise local_error(exc, item.dest, item.size) from exc


def is_out_of_space(error: LocalError) -> bool:
    """Whether every other file of the same drive would fail in the same way."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (*_NO_SPACE, errno.EROFS)


def local_error(exc: OSError, path: Path, size: int = 0) -> LocalError:
    """An OSError of the drive as one line with the mend."""
    again = "and run it again; it goes on where it stopped"
    if exc.errno in _NO_SPACE:
        return LocalError(f"{path}: no space left on this drive: free some {again}")
    if exc.errno == errno.EFBIG:
        mend = "use a drive formatted as exFAT or ext4 (FAT32 ends at 4 GiB), or lift `ulimit -f`"
        return LocalError(f"{path}: {size / 2**30:.2f} GiB is more than a file may have here: {mend}")
    if exc.errno == errno.EROFS:
        return LocalError(f"{path}: the drive is read-only: choose another folder, or mount it for writing")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return LocalError(f"{path}: no permission to write: choose another folder, or mend its rights")
    if exc.errno == errno.ENAMETOOLONG:
        return LocalError(f"{path}: the name is too long for this drive: choose a shorter folder")
    return LocalError(f"{path}: {exc.strerror or exc}: check the folder and the drive {again}")


def _is_whole(move: _Move) -> bool:
    """Whether the right bytes are at their place already: the size is a hint, the hash decides."""
    item = move.item
    if not item.dest.is_file() or item.dest.stat().st_size != item.size:
        return False
    return sha256_of(item.dest, move.checked) == item.sha256


def _fetch(move: _Move) -> None:
    """Fetch and publish. Wrong bytes are fetched once more from 0: a power cut may have left zeros in a part
    file, and a bit may flip once; bytes that are wrong twice are not ours to believe.
    """
    item = move.item
    found = _receive(move)
    if found != item.sha256:
        move.progress.on_note(f"{item.dest.name}: the bytes have another hash than the lock says, once more from 0")
        item.part.unlink()
        found = _receive(move)
    if found != item.sha256:
        bad = item.dest.with_name(f"{item.dest.name}.{found[:12]}.bad")
        item.part.replace(bad)
        mend = "try another network or endpoint; `tourkit lock` if the lock is not from this hub"
        raise WrongContent(
            f"{item.dest}: sha256 is {found[:12]}…, the lock says {item.sha256[:12]}… (kept as {bad.name}): {mend}"
        )
    item.part.replace(item.dest)
    fsync_dir(item.dest.parent)


def _receive(move: _Move) -> str:
    """Fill the part file up to the size that the lock names; returns the SHA-256 of what is then in it, on disk."""
    fd = os.open(move.item.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    with io.FileIO(fd, "r+") as file:
        part = _Part(file)
        _take_over(move, part)
        _fill(move, part)
        os.fsync(fd)
        return part.digest.hexdigest()


def _take_over(move: _Move, part: _Part) -> None:
    """Hash what an earlier run left, so that the transfer can go on behind it."""
    length = os.fstat(part.file.fileno()).st_size
    if length > move.item.size:  # nothing that we wrote
        part.restart()
        return
    block = memoryview(bytearray(min(BLOCK, length)))
    while part.size < length and (got := part.file.readinto(block)):
        part.digest.update(block[:got])
        part.size += got
        move.checked(got)


def _fill(move: _Move, part: _Part) -> None:
    """Ask until the part file is full; only attempts in a row without one new byte are counted."""
    item, patience = move.item, move.hub.patience
    block = memoryview(bytearray(min(BLOCK, item.size)))
    failures, furthest = 0, part.size
    while part.size < item.size:
        try:
            _stream(move, part, block)
        except RangeRefusedError as exc:
            part.restart()
            problem = PassingError(f"the file ends before byte {furthest} ({exc})")
        except PassingError as exc:
            move.check_stop()  # an interrupt looks like a broken line
            problem = exc
        else:
            continue
        if part.size > furthest:
            failures, furthest = 0, part.size
        failures += 1
        if failures >= patience.attempts:
            raise move.hub.given_up(f"{item.repo}/{item.source}", problem) from problem
        pause_s = patience.pause_s(failures, problem.wait_s)
        move.progress.on_note(f"{item.dest.name}: {problem}, again in {pause_s:.0f} s")
        move.stop.wait(pause_s)
        move.check_stop()


def _stream(move: _Move, part: _Part, block: memoryview) -> None:
    """One GET from where the part file ends to the end of the file."""
    item = move.item
    with move.hub.open(item.repo, item.commit, item.source, start=part.size) as stream:
        _check_announced(item, stream)
        if stream.start != part.size:  # the server cannot resume
            part.restart()
        while part.size < item.size:
            got = stream.readinto(block[: item.size - part.size])
            move.check_stop()
            if not got:
                raise PassingError(f"the file ended at byte {part.size} of {item.size}")
            part.append(block[:got])
            move.progress.on_bytes(got, "fetched")
        if stream.total is None and stream.readinto(block[:1]):
            raise WrongContent(_wrong(item, f"more than the {item.size} bytes of the lock"))


def _check_announced(item: Item, stream: Stream) -> None:
    """Refuse before the first byte what says itself that it is something else."""
    if stream.is_html and not item.source.endswith((".html", ".htm")):
        mend = "log in to the network if it shows a login page, or correct HF_ENDPOINT"
        raise WrongContent(f"{item.repo}/{item.source}: a web page came instead of the file: {mend}")
    if stream.total is not None and stream.total != item.size:
        raise WrongContent(_wrong(item, f"{stream.total} bytes, the lock says {item.size}"))
    if stream.sha256 is not None and stream.sha256 != item.sha256:
        raise WrongContent(_wrong(item, f"sha256 {stream.sha256[:12]}…, the lock says {item.sha256[:12]}…"))


def _wrong(item: Item, what: str) -> str:
    where = f"{item.repo}/{item.source} at {item.commit[:12]}"
    return f"{where}: the hub offers {what}: check HF_ENDPOINT; `tourkit lock` if the lock is not from this hub"

"""Runs of KV cells as files on a disk, so that they outlive RAM and the process.

A file has one run of prompt_tree.py: a header, the tokens and the cells, with a checksum. Its name is the run's name.
It is written beside its place and then renamed, so a kill leaves whole files and perhaps one `.part`, which the next
start removes. A thread writes and removes files. It never touches the model: it gets bytes and nothing else.

The rule for the disk: the store takes at most half of the space that is free when it is opened. Its own files count as
free. So at least the other half stays free of it, however many stores share the disk.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.engine.prompt_tree import run_name
from tourkit.files import make_folder_below, open_below, take_lock

if TYPE_CHECKING:
    from tourkit.engine.prompt_tree import Run

_HEADER = struct.Struct("<8s16s16sQIQI")  # magic, name, parent's name, start, tokens, bytes of cells, their CRC-32
_MAGIC = b"tkitrun1"
_NO_PARENT = bytes(16)
MOST_TOKENS = 1 << 16  # in a file; a header that says more is wrong
_FILE = re.compile(r"[0-9a-f]{32}\.run")
_CUT_SHORT = re.compile(r"[0-9a-f]{32}\.run\.part")
_LOCK = "lock"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_CLOSE_SECONDS = 5.0  # to write what is left at the end; the gateway kills a worker after 10 s


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The header of a file. `n_bytes`: of its cells. `used`: when it was last used, in nanoseconds."""

    name: bytes
    parent: bytes
    start: int
    tokens: array[int]
    n_bytes: int
    used: int


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a write. `seconds`: how long it took."""

    run: Run
    done: bool
    seconds: float


def open_store(root: Path, identity: str, say: Callable[[str], None]) -> RunStore | None:
    """Open the store of one model below `root`, and make its folder. None if it cannot be used: `say` gets a line why.

    `identity`: the folder's name; it stands for everything that the cells depend on.
    """
    fix = "prompts are not kept on disk"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_folder_below(root, identity)
        (root / identity).chmod(0o700)  # the files hold prompts
        lock = open_below(root, f"{identity}/{_LOCK}", os.O_RDWR | os.O_CREAT)
    except OSError as exc:
        say(f"{root}: cannot be used as prompt cache ({exc.strerror}): {fix}")
        return None
    try:
        free = take_lock(lock)
    except OSError:
        free = True  # a disk without locks: two servers there would only write the same files
    if not free:
        os.close(lock)
        say(f"{root}: another server uses the prompt cache of this model: {fix}")
        return None
    return RunStore(root, identity, lock, say)


class RunStore:
    """The files of one model. All methods are called from the engine's thread. `limit`: most bytes of all files."""

    def __init__(self, root: Path, identity: str, lock: int, say: Callable[[str], None]) -> None:
        self._root, self._identity, self._lock, self._say = root, identity, lock, say
        self._folder = root / identity
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        own = 0
        with contextlib.suppress(OSError):
            own = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self._folder))
        self.limit = self._keep_free = (shutil.disk_usage(self._folder).free + own) // 2

    def scan(self) -> list[StoredRun]:
        """Return the headers of all files, parents first. Other files are left alone; `say` gets a line about them."""
        found, foreign = [], 0
        for path in sorted(self._folder.iterdir()):
            if path.name == _LOCK:
                continue
            if _CUT_SHORT.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            try:
                found.append(self._header(path.name))
            except (OSError, ValueError):
                foreign += 1
        if foreign:
            self._say(f"{self._folder}: {foreign} files are no whole files of the prompt cache: ignored; remove them")
        return sorted(found, key=lambda run: run.start)

    def read(self, run: Run) -> bytearray | None:
        """Return the cells of a run; None if its file is missing or damaged."""
        name = _file_name(run.name)
        try:
            with os.fdopen(open_below(self._root, f"{self._identity}/{name}"), "rb", buffering=0) as file:
                head, crc = _read_header(file.read(_HEADER.size + 4 * len(run.tokens)), name)
                cells = bytearray(head.n_bytes)
                if head.n_bytes == run.n_bytes and file.readinto(cells) == len(cells) and zlib.crc32(cells) == crc:
                    return cells
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            pass  # as damaged as one with a wrong checksum
        self._say(f"{self._folder / name}: damaged: its prompt is computed again")
        return None

    # --- the thread -----------------------------------------------------------------------------------------------

    def write(self, run: Run) -> None:
        """Write the cells of a run later. The result comes from `settle`; it is a failure if RAM dropped the cells."""
        self._order(lambda: self._write(run))

    def remove(self, name: bytes) -> None:
        """Remove a file later."""
        path = self._folder / _file_name(name)
        self._order(lambda: path.unlink(missing_ok=True))

    def use(self, name: bytes) -> None:
        """Note on the disk that a run is used now."""
        path = self._folder / _file_name(name)
        self._order(lambda: os.utime(path))

    def settle(self) -> Iterator[Written]:
        """Yield the writes that have ended since the last call, in their order."""
        while not self._written.empty():
            yield self._written.get()

    def close(self) -> None:
        """Write what is left, for 5 seconds at most, and let others use the folder."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(_CLOSE_SECONDS)
            self._closing = True
        os.close(self._lock)

    def _order(self, order: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tourkit-prompt-cache", daemon=True)
            self._thread.start()
        self._orders.put(order)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None and not self._closing:
            with contextlib.suppress(OSError):  # it is only a cache: what is not there is computed again
                order()

    def _write(self, run: Run) -> None:
        began, done = time.perf_counter(), False
        try:
            cells = run.cells
            if cells is not None and shutil.disk_usage(self._folder).free - len(cells) >= self._keep_free:
                self._write_file(run, cells)
                done = True
        finally:
            self._written.put(Written(run, done, time.perf_counter() - began))

    def _write_file(self, run: Run, cells: bytearray) -> None:
        name = _file_name(run.name)
        parent = run.parent.name if run.parent and run.parent.name else _NO_PARENT
        crc = zlib.crc32(cells)
        header = _HEADER.pack(_MAGIC, run.name, parent, run.start, len(run.tokens), len(cells), crc)
        temp = self._folder / f"{name}.part"
        try:
            with os.fdopen(open_below(self._root, f"{self._identity}/{temp.name}", _WRITE), "wb", buffering=0) as file:
                for part in (header, run.tokens.tobytes(), cells):
                    view = memoryview(part)
                    while view:
                        view = view[file.write(view) :]
            temp.replace(self._folder / name)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise

    # --- files ----------------------------------------------------------------------------------------------------

    def _header(self, name: str) -> StoredRun:
        """Read the header of a file. Raises OSError, and ValueError if it is none of ours or not whole."""
        if not _FILE.fullmatch(name):
            raise ValueError(name)
        with os.fdopen(open_below(self._root, f"{self._identity}/{name}"), "rb", buffering=0) as file:
            head, _ = _read_header(file.read(_HEADER.size + 4 * MOST_TOKENS), name)
            about = os.fstat(file.fileno())
        if about.st_size != file_size(head.n_bytes, len(head.tokens)):
            raise ValueError(name)
        return StoredRun(head.name, head.parent, head.start, head.tokens, head.n_bytes, about.st_mtime_ns)


def file_size(n_bytes: int, n_tokens: int) -> int:
    """Return the bytes of the file of a run."""
    return _HEADER.size + 4 * n_tokens + n_bytes


def _file_name(name: bytes) -> str:
    return f"{name.hex()}.run"


def _read_header(data: bytes, file_name: str) -> tuple[StoredRun, int]:
    """Return the header of a file, and the checksum of its cells. Raises ValueError if the header is wrong."""
    if len(data) < _HEADER.size:
        raise ValueError(file_name)
    magic, name, parent, start, n_tokens, n_bytes, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC or not 0 < n_tokens <= MOST_TOKENS or len(data) < _HEADER.size + 4 * n_tokens:
        raise ValueError(file_name)
    tokens = array("i", data[_HEADER.size : _HEADER.size + 4 * n_tokens])
    parent = b"" if parent == _NO_PARENT else parent
    if _file_name(name) != file_name or run_name(parent, start, tokens) != name:
        raise ValueError(file_name)
    return StoredRun(name, parent, start, tokens, n_bytes, 0), crc

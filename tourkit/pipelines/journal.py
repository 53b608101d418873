"""The journal of a batch: each finished record is appended at once, so that a killed run loses none of them.

One line per record: a checksum, then JSON with the number and hash of its input line. The journal survives the process
(kill -9), but maybe not a power cut. A torn or damaged line counts as missing, and its document is done again.
"""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from tourkit.errors import LocalError
from tourkit.pipelines.lines import Line


def path_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


class Journal:
    """Finished records on disk, found by line number. With `keep` it takes over the good records of an earlier run.

    Only one thread may use it. Raises OSError.
    """

    def __init__(self, path: Path, lines: Iterable[Line], *, keep: bool) -> None:
        self.damaged = 0  # lines of an earlier run whose checksum is wrong
        self._places: dict[int, tuple[int, int]] = {}  # line number -> [start, end) in the file
        self._file = path.open("r+b" if keep and path.exists() else "w+b")
        try:
            self._take_over({line.number: line.sha256 for line in lines} if keep else {})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def append(self, line: Line, record: dict[str, Any]) -> None:
        """Write the record of a line. When this returns, the operating system has the bytes."""
        entry = {"line": line.number, "sha256": line.sha256, "ok": record["ok"], "record": record}
        data = _sealed(entry)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._file.flush()
        self._places[line.number] = (start, start + len(data))

    def record(self, number: int) -> dict[str, Any]:
        """Return the record of a line that is in the journal. Raises LocalError if its bytes were damaged since."""
        start, end = self._places[number]
        self._file.seek(start)
        entry = _opened(self._file.read(end - start))
        if entry is None:
            raise LocalError(f"{self._file.name}: the record of line {number} is damaged: run again with --resume")
        record: dict[str, Any] = entry["record"]
        return record

    def _take_over(self, hashes: dict[int, str]) -> None:
        """Find the good records whose input line is unchanged, and cut off a torn end."""
        start = 0
        for data in self._file:
            if not data.endswith(b"\n"):
                break
            entry = _opened(data)
            self.damaged += entry is None
            if entry is not None and entry["ok"] is True and hashes.get(entry["line"]) == entry["sha256"]:
                self._places[entry["line"]] = (start, start + len(data))
            start += len(data)
        self._file.truncate(start)


def _sealed(entry: dict[str, Any]) -> bytes:
    """Return an entry as one line: its checksum, a space, its JSON."""
    data = encoded(entry)
    return f"{zlib.crc32(data):08x} ".encode() + data


def _opened(line: bytes) -> dict[str, Any] | None:
    """Return the entry of a line that `_sealed` made; None if its bytes have changed since."""
    checksum, _, data = line.partition(b" ")
    if checksum != f"{zlib.crc32(data):08x}".encode():
        return None
    entry: dict[str, Any] = json.loads(data)
    return entry


def encoded(record: dict[str, Any]) -> bytes:
    """Return a record as one line of UTF-8. Raises ValueError or TypeError for values that JSON does not have."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can write it as an escape only
        return json.dumps(record, allow_nan=False).encode() + b"\n"

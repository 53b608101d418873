"""Reads a GGUF header value by value, within bounds: keys and values, the vocabulary, the list of tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tourkit.errors import LocalError
from tourkit.headers.bounds import refused, shown

UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # type codes of the format
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAGIC = b"GGUF"  # the first bytes of every such file
_LENGTH = struct.Struct("<Q")

_MOST_KEYS = 1 << 16  # a header has 20 to 60
_LONGEST_KEY = (1 << 16) - 1  # bytes, by the GGUF specification
_LONGEST_TEXT = 1 << 20  # bytes; a chat template has some thousands
_MOST_BYTES = 1 << 24  # without the vocabulary; usual are some kilobytes
_MOST_VALUES = 1 << 18  # in all arrays but those of the vocabulary; usual is one per layer
_MOST_ENTRIES = 1 << 22  # of an array of the vocabulary: a list of merges has more entries than there are tokens
_MOST_TENSORS = 1 << 17  # DeepSeek V3 has 1,086
_LONGEST_NAME = 64  # bytes of a tensor's name, by ggml
_HEAD = "cls"  # how the names of the tensors of a head that gives scores begin
_MOST_DIMENSIONS = 4  # of a tensor, by ggml

TEMPLATE = "tokenizer.chat_template"


class GgufReader:
    """Reads a GGUF header from its start to its end, and never beyond the `size` of the file in bytes.

    Each method raises LocalError, which names the file and the key, for what is truncated or beyond a bound.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._left = size  # bytes of the file after what was read
        self._room = _MOST_BYTES  # bytes that may still be read, without the vocabulary
        self._values = 0  # in arrays so far
        self._key = "its first bytes"  # what is read now, for messages
        magic, version = self._numbers("<4sI")
        if magic != MAGIC or version not in (2, 3):
            raise self._unreadable("not a GGUF file of version 2 or 3")
        self._tensors, self._count = self._numbers("<QQ")

    def each_key(self) -> Iterator[tuple[str, int]]:
        """Yield each key and the type of its value. The caller must read the value before it asks for the next key."""
        if self._count > _MOST_KEYS:
            raise refused(self._path, f"its header states {self._count} keys, more than {_MOST_KEYS}")
        for number in range(self._count):
            self._key = f"key {number + 1} of {self._count}"
            key = self._text(_LONGEST_KEY).decode(errors="replace")
            self._key = key if key.isprintable() and len(key) <= _LONGEST_NAME else shown(key)
            (kind,) = self._numbers("<I")
            yield key, kind

    def value(self, kind: int) -> Any:
        """Return the value of the last key, whose type is `kind`. An array becomes a list."""
        if kind == STRING:
            return self._decoded()
        if kind != ARRAY:
            return self._numbers(f"<{self._code(kind)}")[0]
        inner, length = self._array_inside()
        self._values += length
        if self._values > _MOST_VALUES:
            raise refused(self._path, f"{self._key} is an array of {length} values, which is too long")
        if inner == STRING:
            return [self._decoded() for _ in range(length)]
        return list(self._numbers(f"<{length}{_SCALARS[inner]}"))

    def array_head(self) -> tuple[int, int]:
        """Return the type and the count of an array's values, as they are stated."""
        inner, length = self._numbers("<IQ")
        if inner == ARRAY:
            raise refused(self._path, f"{self._key} is an array of arrays, which no loader reads")
        return inner, length

    def entries(self, *, distinct: bool) -> tuple[int, int]:
        """Pass over an array of the vocabulary. Return the type and the count of its values.

        `distinct`: refuse a text that is there twice. An empty one may be: llama.cpp gives each a name of its own.
        """
        inner, length = self._array_inside()
        if length > _MOST_ENTRIES:
            raise refused(self._path, f"{self._key} is an array of {length} values, more than {_MOST_ENTRIES}")
        if inner != STRING:
            self._pass(length * struct.calcsize(f"<{_SCALARS[inner]}"))
            return inner, length
        read, unpack, begin = self._file.read, _LENGTH.unpack, self._file.tell()  # a vocabulary has 500,000 texts
        texts: set[bytes] = set()
        empty = 0
        for number in range(length):
            head = read(_LENGTH.size)
            size = unpack(head)[0] if len(head) == _LENGTH.size else 0
            if size > _LONGEST_KEY:
                raise refused(self._path, f"{self._key}[{number}] is a text of {size} bytes, more than {_LONGEST_KEY}")
            text = read(size)
            if len(head) + len(text) < _LENGTH.size + size:
                raise self._unreadable(f"it ends too early, in {self._key}")
            if distinct and text:
                texts.add(text)
            elif distinct:
                empty += 1
        self._left -= self._file.tell() - begin
        if distinct and len(texts) + empty < length:
            raise refused(self._path, f"{self._key} has the same token twice")
        return inner, length

    def pass_text(self) -> int:
        """Pass over a text of the vocabulary, and return its bytes. Some files have a whole tokenizer.json here."""
        (length,) = self._numbers("<Q")
        self._pass(length)
        return int(length)

    def check_tensors(self) -> bool:
        """Check the list of tensors: each begins inside the file. The loader checks where each one ends.

        Return whether one of them belongs to a head that gives scores.
        """
        if self._tensors > _MOST_TENSORS:
            raise refused(self._path, f"its header states {self._tensors} tensors, more than {_MOST_TENSORS}")
        last, has_head = (0, ""), False
        for number in range(self._tensors):
            self._key = f"tensor {number + 1} of {self._tensors}"
            name = self._text(_LONGEST_NAME).decode(errors="replace")
            self._key = f"tensor {shown(name)}"
            (dimensions,) = self._numbers("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise refused(self._path, f"{self._key} has {dimensions} dimensions, more than {_MOST_DIMENSIONS}")
            self._numbers(f"<{dimensions}Q")
            _, start = self._numbers("<IQ")
            last = max(last, (start, name))
            has_head = has_head or name.startswith(_HEAD)
        if last[0] > self._left:
            raise refused(self._path, f"tensor {shown(last[1])} begins {last[0]} bytes on, after the end of the file")
        return has_head

    def _array_inside(self) -> tuple[int, int]:
        """Return the type and the count of an array's values. The rest of the file has room for them."""
        inner, length = self.array_head()
        least = _LENGTH.size if inner == STRING else struct.calcsize(f"<{self._code(inner)}")
        if length * least > self._left:
            raise self._unreadable(f"it ends too early for {self._key}, an array of {length} values")
        return inner, length

    def _decoded(self) -> str:
        """Return a text. Loaders read a chat template as UTF-8, and only replace wrong bytes elsewhere."""
        raw = self._text(_LONGEST_TEXT)
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            if self._key.startswith(TEMPLATE):
                raise refused(self._path, f"{self._key} is not UTF-8 text at byte {exc.start}") from exc
            return raw.decode(errors="replace")

    def _text(self, longest: int) -> bytes:
        (length,) = self._numbers("<Q")
        if longest < length <= self._left:
            raise refused(self._path, f"{self._key} is a text of {length} bytes, more than {longest}")
        return self._take(length)

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise refused(self._path, f"{self._key} has a value of unknown type {kind}")
        return _SCALARS[kind]

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        self._room -= count
        if self._room < 0 and count <= self._left:
            raise refused(self._path, f"its header has more than {_MOST_BYTES} bytes at {self._key}")
        self._pass_over(count)
        data = self._file.read(count)
        if len(data) < count:  # the file became shorter while it was read
            raise self._unreadable(f"it ends too early, in {self._key}")
        return data

    def _pass(self, count: int) -> None:
        self._pass_over(count)
        self._file.seek(count, 1)

    def _pass_over(self, count: int) -> None:
        """Count bytes of the file as read."""
        if count > self._left:
            raise self._unreadable(f"it ends too early, in {self._key}")
        self._left -= count

    def _unreadable(self, why: str) -> LocalError:
        return refused(self._path, f"its GGUF header cannot be read ({why})")

"""Reads the description of a model: GGUF headers and config.json. Needs no library that could load the model.

This module returns the facts as they are written. planning/model_shape.py says what they mean.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_TEXT = 1 << 20  # bytes; a chat template has a few thousand
_GGUF = b"GGUF"  # the first bytes of every such file
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Return whether a file starts as every GGUF file does. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_GGUF)) == _GGUF


def gguf_parts(name: str) -> tuple[str, ...]:
    """Return the file names of all parts of the split GGUF that the file `name` belongs to, the first part first.

    The answer is `name` alone for a model in one file.
    """
    found = _SPLIT.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{number:05}-of-{count:05}{found['suffix']}" for number in range(1, count + 1))


def gguf_header(path: Path) -> dict[str, Any]:
    """Return the keys and values of a GGUF file up to its vocabulary: `general.*` and those of the architecture.

    Writers put these first. The vocabulary is the first array with a key `tokenizer.*`: only its length is kept, and
    nothing after it is read. So only some kilobytes are read, whatever the size of the file. Raises OSError, ValueError
    or struct.error if the file is no GGUF or is truncated.
    """
    with path.open("rb") as file:
        magic, version = struct.unpack("<4sI", file.read(8))
        if magic != _GGUF or version not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        _, count = struct.unpack("<QQ", file.read(16))
        return dict(_entries(file, count))


def folder_config(folder: Path) -> dict[str, Any]:
    """Return all keys of the config.json in a folder of safetensors. The file has some kilobytes.

    Raises OSError if there is none, ValueError if it is no JSON object.
    """
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a JSON object")
    return config


def _entries(file: BinaryIO, count: int) -> Iterator[tuple[str, Any]]:
    """Yield keys and values in the file's order. Stop at the vocabulary: the architecture's keys are before it."""
    for _ in range(count):
        key = _text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if kind == _ARRAY and key.startswith("tokenizer."):
            _, length = struct.unpack("<IQ", file.read(12))
            yield key, length
            return
        yield key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, length = struct.unpack("<IQ", file.read(12))
        if length > _MOST_TEXT:
            raise ValueError(f"an array of {length} values before the vocabulary is too long")
        return [_value(file, inner) for _ in range(length)]
    if kind not in _SCALARS:
        raise ValueError(f"a value of unknown type {kind}")
    code = "<" + _SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _MOST_TEXT:
        raise ValueError(f"a text of {length} bytes in the header is too long")
    return file.read(length).decode(errors="replace")

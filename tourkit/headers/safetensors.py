"""Checks the header of a safetensors file: a JSON object that names each tensor, its type, its shape and its bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from tourkit.headers.bounds import opened, refused, shown
from tourkit.headers.config import parsed_object

_LENGTH = struct.Struct("<Q")
_MOST_HEADER = 32 << 20  # bytes: about 250,000 tensors; the largest known files have some thousands
_MOST_DIMENSIONS = 64  # of a tensor, by torch
_LARGEST = (1 << 63) - 1  # of a dimension, by torch
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
_BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
_BITS |= dict.fromkeys(("U32", "I32", "F32"), 32) | dict.fromkeys(("U64", "I64", "F64"), 64)


def check_safetensors(path: Path) -> None:
    """Read the header of a safetensors file. Raises OSError; LocalError, which names the file and the tensor."""
    with opened(path) as (file, size):
        head = file.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise refused(path, "its header cannot be read (it ends too early)")
        (length,) = _LENGTH.unpack(head)
        left = size - len(head) - length  # bytes of the tensors
        if length > _MOST_HEADER:
            raise refused(path, f"its header states a length of {length} bytes, more than {_MOST_HEADER}")
        if left < 0:
            raise refused(path, f"its header states a length of {length} bytes, and the file has {size}")
        header = parsed_object(file.read(length), f"{path}: its header")
    for name, about in header.items():
        if name == "__metadata__":
            _check_metadata(path, about)
        else:
            _check_tensor(path, f"tensor {shown(name)}", about, left)


def _check_metadata(path: Path, about: Any) -> None:
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise refused(path, "__metadata__ is not an object of texts")


def _check_tensor(path: Path, key: str, about: Any, left: int) -> None:
    """Check one tensor. `left`: bytes of all tensors."""
    if not isinstance(about, dict):
        raise refused(path, f"{key} is {shown(about)}, not an object")
    shape, offsets, kind = about.get("shape"), about.get("data_offsets"), about.get("dtype")
    if not isinstance(kind, str):
        raise refused(path, f"{key}: dtype is {shown(kind)}, not a name")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not _are_sizes(shape, _LARGEST):
        raise refused(path, f"{key}: shape is not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_sizes(offsets, left) or offsets[0] > offsets[1]:
        raise refused(path, f"{key}: data_offsets are not two positions in the {left} bytes after the header")
    begin, end = offsets
    if kind in _BITS and math.prod(shape) * _BITS[kind] != (end - begin) * 8:
        raise refused(path, f"{key}: its shape does not fit its {end - begin} bytes of {kind}")


def _are_sizes(values: list[Any], most: int) -> bool:
    """Return whether all values are whole numbers from 0 to `most`."""
    return all(type(each) is int and 0 <= each <= most for each in values)

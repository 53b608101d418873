"""Reads and writes a machine as JSON, so that one machine can be planned for on another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from tourkit.errors import UsageError
from tourkit.hardware.machine import Bandwidth, Gpu, Hardware, InstalledStack, Kernel
from tourkit.stacks import STACKS

_MAKE = "make it with `tourkit plan --json` or `tourkit doctor --json` on that machine"
# How messages name the types of the fields.
_NAMES = {"int": "a whole number", "str": "a text", "bool": "true or false"}
_LISTS = {"gpus": Gpu, "stacks": InstalledStack, "bandwidth": Bandwidth, "kernels": Kernel}
_Item = TypeVar("_Item", Gpu, InstalledStack, Bandwidth, Kernel)
_RUNTIMES = ("cuda", "rocm", "metal")


def machine_json(hardware: Hardware) -> dict[str, Any]:
    """Return the machine as plain data, which `read_machine` reads."""
    return asdict(hardware)


def read_machine(path: Path) -> Hardware:
    """Read a machine from a JSON file: the machine itself, or an object that has it under the key "machine".

    Raises UsageError with the file and the key.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read ({exc.strerror}): {_MAKE}") from exc
    except ValueError as exc:
        raise UsageError(f"{path}: not JSON ({exc}): {_MAKE}") from exc
    if isinstance(raw, dict) and "machine" in raw:
        raw = raw["machine"]
    try:
        return _machine(raw)
    except _Wrong as exc:
        raise UsageError(f"{path}: {exc}") from exc


class _Wrong(Exception):
    """A key whose value cannot be used. The message is "key: problem: fix"."""


def _machine(raw: object) -> Hardware:
    given = _checked(Hardware, raw, "")
    for key, kind in _LISTS.items():
        items = _list(given.get(key, []), key)
        given[key] = tuple(_item(kind, item, f"{key}[{i}]") for i, item in enumerate(items))
    problems = _list(given.get("problems", []), "problems")
    given["problems"] = tuple(_typed(line, "str", f"problems[{i}]") for i, line in enumerate(problems))
    return Hardware(**given)


def _item(kind: type[_Item], raw: object, key: str) -> _Item:
    given = _checked(kind, raw, key)
    if given.get("capability") is not None:
        where = f"{key}.capability"
        pair = _list(given["capability"], where)
        if len(pair) != 2:
            raise _Wrong(f"{where}: {pair!r}: give two numbers, such as [8, 0]")
        given["capability"] = tuple(_typed(number, "int", where) for number in pair)
    if kind is InstalledStack and given["name"] not in STACKS:
        raise _Wrong(f"{key}.name: {given['name']!r}: unknown stack: use {', '.join(STACKS)}")
    if kind is Gpu and given["runtime"] not in _RUNTIMES:
        raise _Wrong(f"{key}.runtime: {given['runtime']!r}: unknown runtime: use {', '.join(_RUNTIMES)}")
    return kind(**given)


def _checked(kind: type, raw: object, key: str) -> dict[str, Any]:
    """Return the fields of an object whose keys and simple values are those of the dataclass `kind`."""
    if not isinstance(raw, Mapping):
        raise _Wrong(f"{key or 'the file'}: not an object: {_MAKE}")
    place = f"{key}." if key else ""
    known = {field.name: field for field in fields(kind)}
    for name, value in raw.items():
        if name not in known:
            raise _Wrong(f"{place}{name}: unknown key: use {', '.join(known)}")
        declared = str(known[name].type)
        if declared in _NAMES:
            _typed(value, declared, f"{place}{name}")
        elif declared == "int | None" and value is not None:
            _typed(value, "int", f"{place}{name}")
    for name, field in known.items():
        if field.default is MISSING and name not in raw:
            raise _Wrong(f"{place}{name}: missing: add it")
    return dict(raw)


def _typed(value: object, declared: str, key: str) -> object:
    is_right = type(value).__name__ == declared and (declared != "int" or int(str(value)) >= 0)
    if not is_right:
        raise _Wrong(f"{key}: {value!r}: give {_NAMES[declared]}{' of at least 0' if declared == 'int' else ''}")
    return value


def _list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f"{key}: {value!r}: give a list")
    return value

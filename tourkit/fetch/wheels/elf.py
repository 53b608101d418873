"""Reads what a shared library of Linux needs: other libraries, symbol versions, and the code of single functions.

Only 64-bit little-endian files (x86-64 and Arm). Nothing is loaded or run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x7fELF"
_MACHINES = {62: "x86_64", 183: "aarch64"}
_LOADED, _DYNAMIC = 1, 2  # kinds of program headers
_SYMBOLS = 11  # SHT_DYNSYM
_END, _NEEDED, _STRINGS, _SONAME = 0, 1, 5, 14  # tags of the dynamic section
_VERSIONS, _VERSION_COUNT = 0x6FFFFFFE, 0x6FFFFFFF
_SYMBOL_BYTES = 24


@dataclass(frozen=True, slots=True)
class Elf:
    """`machine`: "x86_64" or "aarch64". `versions`: those it needs from other libraries, such as "GLIBC_2.34"."""

    machine: str
    soname: str
    needed: tuple[str, ...]
    versions: frozenset[str]


def read(data: bytes) -> Elf:
    """Return what the library needs. `data`: the whole file. Raises ValueError if it is damaged or of another kind."""
    try:
        return _read(data)
    except (struct.error, LookupError) as exc:
        raise ValueError("a library in it is damaged") from exc


def code(data: bytes, functions: frozenset[str], size: int) -> dict[str, bytes]:
    """Return the first `size` bytes of each exported function in `functions` that the library has.

    Raises ValueError if the file is damaged. Without section headers, the answer is empty.
    """
    try:
        return dict(_functions(data, functions, size))
    except (struct.error, LookupError) as exc:
        raise ValueError("a library in it is damaged") from exc


def _read(data: bytes) -> Elf:
    if data[:6] != MAGIC + b"\x02\x01":
        raise ValueError("a library in it is not of 64 bits, little-endian")
    (number,) = struct.unpack_from("<H", data, 18)
    entries = list(_dynamic(data))
    places = dict(entries)
    strings = _offset(data, places[_STRINGS])
    return Elf(
        machine=_MACHINES.get(number, f"machine {number}"),
        soname=_text(data, strings + places[_SONAME]) if _SONAME in places else "",
        needed=tuple(_text(data, strings + value) for tag, value in entries if tag == _NEEDED),
        versions=frozenset(_versions(data, strings, places)),
    )


def _headers(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the kind, file offset, address and size of each program header."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for place in range(start, start + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, place)
        yield kind, offset, address, length


def _offset(data: bytes, address: int) -> int:
    """Return where the byte at an address of the loaded library is in the file."""
    for kind, offset, start, length in _headers(data):
        if kind == _LOADED and start <= address < start + length:
            return offset + address - start
    raise ValueError("a library in it is damaged")


def _dynamic(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, offset, _, length in _headers(data):
        if kind == _DYNAMIC:
            for place in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<qQ", data, place)
                if tag == _END:
                    return
                yield tag, value


def _versions(data: bytes, strings: int, places: dict[int, int]) -> Iterator[str]:
    """Yield the names in the list of needed versions: for each library, a chain of versions."""
    if _VERSIONS not in places:
        return
    place = _offset(data, places[_VERSIONS])
    for _ in range(places[_VERSION_COUNT]):
        _, count, _, first, step = struct.unpack_from("<HHIII", data, place)
        inner = place + first
        for _ in range(count):
            _, _, _, name, next_one = struct.unpack_from("<IHHII", data, inner)
            yield _text(data, strings + name)
            inner += next_one
        place += step


def _functions(data: bytes, wanted: frozenset[str], size: int) -> Iterator[tuple[str, bytes]]:
    (start,) = struct.unpack_from("<Q", data, 40)
    entry, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQI", data, start + entry * number) for number in range(count)]
    for _, kind, _, _, offset, length, link in sections:
        if kind != _SYMBOLS:
            continue
        strings = sections[link][4]
        for place in range(offset, offset + length, _SYMBOL_BYTES):
            name, _, _, section, address = struct.unpack_from("<IBBHQ", data, place)
            text = _text(data, strings + name)
            if section and text in wanted:
                begin = _offset(data, address)
                yield text, data[begin : begin + size]


def _text(data: bytes, place: int) -> str:
    end = data.find(b"\0", place)
    if not 0 <= place < len(data) or end < 0:
        raise ValueError("a library in it is damaged")
    return data[place:end].decode(errors="replace")

"""Parses and formats sizes and counts as people read and write them."""

from __future__ import annotations

import re

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# A unit without its B is binary, as in the names of GPUs: 20G is 20GiB.
_UNITS = {
    "": 1,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "K": KIB,
    "M": MIB,
    "G": GIB,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


def parse_size(text: str) -> int:
    """Return the bytes of "20GiB", "500 MB" or "8G". Only 0 may have no unit. Raises ValueError with the fix."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or (not found[2] and float(found[1])):
        raise ValueError(f"{text!r} is not a size: write a number and a unit, such as 20GiB")
    return int(float(found[1]) * unit)


def parse_seconds(text: str) -> float:
    """Return the seconds of "90s", "25m", "1.5h" or "30". Raises ValueError with the fix."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        return float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a length of time: write 90s, 25m or 1.5h") from None


def size_text(size: int) -> str:
    """Format bytes for people: binary units, one decimal."""
    if size < 1024:
        return f"{size} B"
    value = size / 1024
    for unit in ("KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def seconds_text(seconds: float) -> str:
    """Format a time for people: seconds, and minutes from 100 seconds on."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def counted(n: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: 1 file, 2 files."""
    return f"{n} {one if n == 1 else many or one + 's'}"

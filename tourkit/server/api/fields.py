"""Read fields of a body by their type. A wrong value is a RequestError with the name of the field."""

from __future__ import annotations

from typing import Any

from tourkit.errors import RequestError
from tourkit.server.api.limits import INT_64


def boolean(body: dict[str, Any], key: str) -> bool:
    """Return the value of a field that is true or false; False if it is absent or null."""
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false", param=key)
    return bool(value)


def integer(body: dict[str, Any], key: str, low: int, high: int | None = None) -> int | None:
    """Return a whole number from `low` to `high`; None if it is absent or null. In JSON, 1.0 is a whole number too."""
    value = body.get(key)
    if value is None:
        return None
    if not is_whole(value) or value < low or (high is not None and value > high):
        allowed = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise RequestError(f"{key} must be a whole number {allowed}", param=key)
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def number(body: dict[str, Any], key: str, low: float, high: float) -> float | None:
    """Return a number from `low` to `high`; None if it is absent or null."""
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not -INT_64 <= value <= INT_64:
        raise RequestError(f"{key} must be a number from {low} to {high}", param=key)
    if not low <= value <= high:
        raise RequestError(f"{key} is {value}: it must be from {low} to {high}", param=key)
    return float(value)

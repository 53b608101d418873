"""Messages between the worker, the trial process and its children: a length of four bytes, then the content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

LENGTH = 4  # bytes


def framed(content: bytes) -> bytes:
    """Return the content with its length in front."""
    return len(content).to_bytes(LENGTH, "big") + content


def message(value: dict[str, Any]) -> bytes:
    """Return plain data as a frame of JSON text in ASCII."""
    return framed(json.dumps(value, separators=(",", ":")).encode())


class Incoming:
    """Bytes that have arrived; they become frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def take(self, arrived: bytes) -> Iterator[bytes]:
        """Add bytes; yield the content of every frame that is complete now."""
        self._bytes += arrived
        while len(self._bytes) >= LENGTH:
            end = LENGTH + int.from_bytes(self._bytes[:LENGTH], "big")
            if len(self._bytes) < end:
                return
            content = bytes(self._bytes[LENGTH:end])
            del self._bytes[:end]
            yield content

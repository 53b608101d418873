"""A request's bytes to data. Nesting and counts are checked before the parser makes anything of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from tourkit.errors import RequestError, excerpt
from tourkit.server.api.limits import CONTAINERS, DEPTH, KEYS, VALUES, Limit

_BLOCK = 65_536  # bytes; Python can switch threads between two blocks
_SMALL = min(limit.most for limit in (CONTAINERS, KEYS, VALUES))  # bytes; fewer bytes cannot be over these limits
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}:]', re.DOTALL)  # a string may be cut off


def load(body: bytes) -> Any:
    """Parse a request's body. Raises RequestError if it is not JSON, or is nested too deeply, or has too many parts."""
    check_shape(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RequestError(f"the body is not JSON: {exc}", param="body", code="invalid_json") from exc


def check_shape(body: bytes) -> None:
    """Check nesting and counts, in one pass over the bytes and with little memory. Raises RequestError.

    A short body of a few bytes can become a hundred times as many bytes of lists and objects.
    """
    if len(body) <= _SMALL and body.count(b"[") + body.count(b"{") <= DEPTH.most:
        return
    depth = containers = keys = values = end = 0
    for outside in _outside_strings(body):
        end += _BLOCK
        opened = outside.count(b"[") + outside.count(b"{")
        containers += opened
        keys += outside.count(b":")
        values += outside.count(b",") + opened
        for limit, found in ((CONTAINERS, containers), (KEYS, keys), (VALUES, values)):
            if found > limit.most:
                raise _too_complex(limit, body, end)
        for bracket in outside.translate(None, _NOT_BRACKETS):
            depth += 1 if bracket in b"[{" else -1
            if depth > DEPTH.most:
                raise _too_complex(DEPTH, body, end)
            if depth < 0:
                return  # not JSON: the parser says where


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """Yield the text that is outside of strings, one block of the body after the other."""
    inside, escape = False, b""
    for start in range(0, len(body), _BLOCK):
        block, escape = escape + body[start : start + _BLOCK], b""
        if b"\\" in block:
            block = block.replace(b"\\\\", b"")
            escape = b"\\" if block.endswith(b"\\") else b""  # the character that it escapes is in the next block
            block = block.removesuffix(escape).replace(b'\\"', b"")
        parts = block.split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0


def _too_complex(limit: Limit, body: bytes, end: int) -> RequestError:
    """Return the error for the part of the body before `end` that is over the limit. It names the body's field."""
    depth, field, last = 0, "", b""
    for found in _TOKEN.finditer(body, 0, end):
        token = found[0]
        if token == b":" and depth == 1:
            field = last[1:-1].decode(errors="replace")
        elif token in b"[{":
            depth += 1
        elif token in b"]}":
            depth -= 1
        elif depth == 1:
            last = token
        if depth > DEPTH.most:
            break
    return limit.error(f"has too many {limit.unit}", excerpt(field) or None)

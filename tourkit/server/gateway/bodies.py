"""What the gateway reads of a request: its headers' size, its body, the model that it names, and whether it streams."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from tourkit.errors import RequestError, quoted
from tourkit.server.api.dialects import Dialect
from tourkit.server.api.limits import BODY, HEADER
from tourkit.server.api.off_loop import parsed
from tourkit.server.api.requests import model_of

# zlib's numbers of the formats that a body may be compressed with.
_CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_MOST_DROPPED = 4 * BODY.most  # bytes


def check_headers(scope: Scope) -> None:
    """Raise RequestError if the headers of a request are too large."""
    HEADER.check(sum(len(name) + len(value) for name, value in scope["headers"]))


async def read_body(request: Request) -> bytes:
    """Return the body. Raises RequestError if it is over the limit, and ClientDisconnect.

    The rest of a body that is too large is read and dropped, because most clients read no answer while they send. It
    is not read to its end if it is several times too large. A compressed body is limited before and after.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    body, size = bytearray(), 0
    async for block in request.stream():
        size += len(block)
        if size <= BODY.most:
            body += block
        else:
            body.clear()
        if size > _MOST_DROPPED:
            break
    if size > BODY.most:
        raise _too_large()
    if coding in _CODINGS:
        return await asyncio.to_thread(_unpacked, bytes(body), _CODINGS[coding])
    if coding not in ("", "identity"):
        message = f"content-encoding {quoted(coding)} is not supported: send gzip, deflate, or no content-encoding"
        raise RequestError(message, param=BODY.field, code="unsupported_encoding", status=415)
    return bytes(body)


def _too_large() -> RequestError:
    message = f"the body is over {BODY.most >> 20} MiB"
    return RequestError(message, param=BODY.field, code=BODY.code, status=BODY.status)


def _unpacked(packed: bytes, window: int) -> bytes:
    """Return a body without its compression. `window`: zlib's number of the format. Raises RequestError."""
    body = bytearray()
    try:
        while packed:  # gzip may have several members, one after the other
            member = zlib.decompressobj(window)
            body += member.decompress(packed, BODY.most + 1 - len(body))
            if len(body) > BODY.most:
                raise _too_large()
            if not member.eof:
                raise RequestError("the compressed body ends too early", param=BODY.field, code="invalid_encoding")
            packed = member.unused_data
    except zlib.error as exc:
        raise RequestError(f"the body cannot be unpacked: {exc}", param=BODY.field, code="invalid_encoding") from exc
    return bytes(body)


@dataclass(frozen=True, slots=True)
class Named:
    """What a body says about its way: the model, and whether the answer shall be a stream."""

    model: str
    streams: bool


async def named(body: bytes, dialect: Dialect) -> Named:
    """Return what a body says about its way, in the form of an API. Raises RequestError."""
    return await parsed(body, partial(_named, dialect=dialect))


def _named(body: Any, dialect: Dialect) -> Named:
    model, streams = model_of(body).removesuffix(dialect.tag), body.get("stream")
    return Named(model, dialect.streams if streams is None else streams is True)

"""What the gateway reads of a request: its headers' size, its body, and the model that it names."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from tourkit.errors import RequestError
from tourkit.server.api.limits import BODY, HEADER
from tourkit.server.api.off_loop import parsed
from tourkit.server.api.requests import model_of

_MOST_DROPPED = 4 * BODY.most  # bytes


def check_headers(scope: Scope) -> None:
    """Raise RequestError if the headers of a request are too large."""
    HEADER.check(sum(len(name) + len(value) for name, value in scope["headers"]))


async def read_body(request: Request) -> bytes:
    """Return the body. Raises RequestError if it is over the limit, and ClientDisconnect.

    The rest of a body that is too large is read and dropped, because most clients read no answer while they send. It
    is not read to its end if it is several times too large.
    """
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
        message = f"the body is over {BODY.most >> 20} MiB"
        raise RequestError(message, param=BODY.field, code=BODY.code, status=BODY.status)
    return bytes(body)


async def model_name(body: bytes) -> str:
    """Return the model that a body names. Raises RequestError."""
    return await parsed(body, model_of)

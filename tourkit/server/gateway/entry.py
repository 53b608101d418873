"""What comes first and last in each request: its path as the routes have it, its id, and its time."""

from __future__ import annotations

import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tourkit.server.gateway.paths import canonical

_ID = b"x-request-id"
_GOOD_ID = re.compile(rb"[!-~]{1,128}")


class Entry:
    """An ASGI application around another one. Each answer has `x-request-id` and `openai-processing-ms`.

    The id is the client's, if it sends one of 1 to 128 visible ASCII characters; else a new one. The time is that until
    the answer begins, in whole milliseconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        scope["path"] = canonical(scope["path"])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = str(round((time.monotonic() - began) * 1000)).encode()
                more = [(_ID, _id_of(scope)), (b"openai-processing-ms", took)]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, noted)


def _id_of(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == _ID), b"")
    return bytes(given) if _GOOD_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}".encode()

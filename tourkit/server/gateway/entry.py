"""What comes first and last in each request: its path as the routes have it, its id, its time, its errors' form."""

from __future__ import annotations

import re
import secrets
import time

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tourkit.server.api.dialects import OPENAI, Dialect, dialect_of
from tourkit.server.gateway.paths import canonical

_ID = b"x-request-id"
_FIRST_ERROR = 400  # of the HTTP statuses
_GOOD_ID = re.compile(rb"[!-~]{1,128}")


class Entry:
    """An ASGI application around another one. Each answer has `x-request-id` and `openai-processing-ms`.

    The id is the client's, if it sends one of 1 to 128 visible ASCII characters; else a new one. Anthropic's clients
    read it from `request-id`. The time is that until the answer begins, in whole milliseconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        scope["path"] = canonical(scope["path"])
        dialect = dialect_of(scope["path"])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = str(round((time.monotonic() - began) * 1000)).encode()
                id_ = _id_of(scope)
                more = [*((name, id_) for name in dialect.id_headers), (b"openai-processing-ms", took)]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, noted if dialect is OPENAI else _Rewritten(noted, dialect))


class _Rewritten:
    """A `send` that rewrites errors from OpenAI's form to that of another API."""

    def __init__(self, send: Send, dialect: Dialect) -> None:
        self._send = send
        self._dialect = dialect
        self._start: Message | None = None  # of an error
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._rewrite(self._start)

    async def _rewrite(self, start: Message) -> None:
        body = self._body
        if body:  # an answer to HEAD has none
            body = orjson.dumps(self._dialect.error(start["status"], orjson.loads(body)))
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _id_of(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == _ID), b"")
    return bytes(given) if _GOOD_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}".encode()

"""Requests to an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass
class Answer:
    """A whole answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """The data of the server-sent events, without the last one, [DONE]."""
        lines = [line[6:] for line in self.raw.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


async def ask(
    app: ASGIApp, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] | None = None
) -> Answer:
    """Send one request. `body`: bytes, or data that is sent as JSON. The client stays until the answer has ended.

    `path`: may have a query.
    """
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    names = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    answer, sent = Answer(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        answer.raw += message.get("body", b"")

    await app({**scope, "headers": names, "client": ("127.0.0.1", 5)}, receive, send)
    return answer

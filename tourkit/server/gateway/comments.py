"""Comment lines in streams. Clients and proxies give up a connection on which nothing comes.

A role that is swapped in, or a long prompt, can take minutes before the first token.
"""

from __future__ import annotations

import asyncio

import orjson
from starlette.types import Message, Send

from tourkit.server.api.dialects import OPENAI, Dialect

PERIOD = 15.0  # seconds without a byte


class Commented:
    """A `send` for a client that asked for a stream. While `run` runs, it gets a comment whenever nothing else is sent.

    If the answer has not begun by then, the stream begins with the comment, with status 200. An error that comes after
    that is an event of the stream. `model`: for the header x-tourkit-model. `dialect`: of the request; one that has
    something to send meanwhile. `period`: seconds.
    """

    def __init__(self, send: Send, model: str, dialect: Dialect = OPENAI, period: float = PERIOD) -> None:
        self._send = send
        self._dialect = dialect
        self._type = dialect.stream_type.encode()
        self._status = 500  # of the answer that becomes an event
        self._model = model
        self._period = period
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()  # when something was sent
        self._is_sending = False  # the client does not read what was sent before
        self._has_begun = False
        self._is_early = False  # the stream was begun here
        self._is_stream = True  # as far as is known
        self._is_whole = True  # no event is half sent
        self._error: bytearray | None = None  # the body of an answer that becomes an event

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            is_stream = any(
                name == b"content-type" and value.startswith(self._type) for name, value in message["headers"]
            )
            if self._is_early:
                self._error = None if is_stream else bytearray()
                self._status = message["status"]
                return
            self._has_begun, self._is_stream = True, is_stream
        elif self._error is not None:
            self._error += message.get("body", b"")
            if message.get("more_body", False):
                return
            message = {**message, "body": self._dialect.failure(self._status, orjson.loads(self._error))}
        elif block := message.get("body", b""):
            self._is_whole = block.endswith(self._dialect.ends)
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        self._is_sending = True
        await self._send(message)
        self._is_sending = False
        self._last = self._clock()

    async def run(self) -> None:
        """Send comments until cancelled."""
        while True:
            await asyncio.sleep(max(0.0, self._last + self._period - self._clock()))
            if self._clock() < self._last + self._period:  # something was sent meanwhile
                continue
            self._last = self._clock()
            if self._is_stream and self._is_whole and not self._is_sending and self._error is None:
                await self._comment()

    async def _comment(self) -> None:
        if not self._has_begun:
            self._has_begun = self._is_early = True
            headers = [(b"content-type", self._type + b"; charset=utf-8"), (b"cache-control", b"no-cache")]
            headers += [(b"x-accel-buffering", b"no"), (b"x-tourkit-model", self._model.encode())]
            await self._pass({"type": "http.response.start", "status": 200, "headers": headers})
        await self._pass({"type": "http.response.body", "body": self._dialect.waiting, "more_body": True})

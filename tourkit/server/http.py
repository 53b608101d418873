"""The HTTP server of gateway and workers, and how both hear of a client that hangs up."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive

CLIENT_LEFT = 499  # the status that nginx logs for a client that hung up; nobody reads it
_GRACE_SECONDS = 3  # for answers under way when the server is told to stop


class EndingServer(uvicorn.Server):
    """A uvicorn server that first ends what runs when it is told to stop, so that no client waits for nothing."""

    def __init__(self, app: ASGIApp, end: Callable[[], Awaitable[None]]) -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **options))
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._end()
        await super().shutdown(sockets)


async def hung_up(receive: Receive) -> None:
    """Return once the client has closed its connection. The body of its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass

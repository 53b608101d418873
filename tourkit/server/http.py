"""The HTTP server of gateway and workers, and how both notice that a client hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

import uvicorn
from starlette.types import ASGIApp, Receive

from tourkit.connections import BoundedServer, ConnectionLimits

T = TypeVar("T")

CLIENT_LEFT = 499  # the status that nginx logs for a client that hung up; no client reads it
_GRACE_SECONDS = 3  # for running answers when the server must stop


class EndingServer(BoundedServer):
    """A server that calls `end` first when it must stop, so that no client waits in vain for a request to end.

    `is_hurried`: it is to stop at once, after Ctrl-C or a second signal.
    """

    def __init__(self, app: ASGIApp, end: Callable[[], Awaitable[None]], limits: ConnectionLimits) -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **options), limits)
        self._end = end
        self.is_hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.is_hurried = self.should_exit or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a hang-up of the terminal as at SIGTERM, so that workers and folders are cleaned up.

        uvicorn knows SIGINT and SIGTERM only. `nohup` has the signal ignored, and then it stays ignored.
        """
        hang_up = getattr(signal, "SIGHUP", None)
        with super().capture_signals():
            before = None if hang_up is None else signal.getsignal(hang_up)
            if hang_up is None or before is signal.SIG_IGN:
                yield
                return
            signal.signal(hang_up, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hang_up, before)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._end()
        await super().shutdown(sockets)


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`. If the client closes its connection first, cancel `work` and return None.

    The body of the client's request must be read before.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(hung_up(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()


async def hung_up(receive: Receive) -> None:
    """Wait until the client closes its connection. The body of its request must be read before."""
    while (await receive())["type"] != "http.disconnect":
        pass

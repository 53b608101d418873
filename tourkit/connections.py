"""HTTP connections of a server: time limits, limits on their number, and the accept loop.

uvicorn has none of them. asyncio's accept loop tries again at once when no file descriptor is left, and logs each try.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_KEPT_FREE = 64  # file descriptors for everything that is no connection: pipes to workers, logs, libraries
_FEWEST = 16  # connections, however few file descriptors there are
_MOST = 4096  # connections, however many file descriptors there are
_LONGEST_HEADER = 64 * 1024  # bytes; httptools has no limit
_STATUS_LINE = b"HTTP/1.1 "  # how an answer begins
_CALM = 60.0  # seconds without a refusal, after which the next refusal is told again
_TICKS = 5  # of uvicorn's main loop, 0.1 s each, between two looks at the time limits
_LOG = logging.getLogger("tourkit.connections")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on the connections of one server. Times in seconds.

    `header`: for the header of a request, from the first byte or from the opening of the connection. `body`: for the
    whole request, plus one second for each `body_rate` bytes. `idle`: between two requests. `unread`: while a client
    reads nothing of its answer. `most_idle`: connections that have sent no whole header; the oldest is closed first,
    but none that is idle for less than `fresh`: many clients may connect at once, and their headers are on the way.
    `most`: open connections, None for as many as the file descriptors allow. `pause`: without accepting when the system
    refuses, unless a connection ends earlier.
    """

    header: float = 20.0
    body: float = 20.0
    body_rate: int = 1024
    idle: float = 75.0
    unread: float = 300.0
    most_idle: int = 128
    fresh: float = 2.0
    most: int | None = None
    pause: float = 1.0


USUAL = ConnectionLimits()


def most_connections() -> int:
    """Return how many connections the file descriptors of this process allow: each may need a second one."""
    if sys.platform == "win32":
        return _MOST
    import resource

    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if granted == resource.RLIM_INFINITY:
        return _MOST
    return min(_MOST, max(_FEWEST, (granted - _KEPT_FREE) // 2))


class OncePerSecond(logging.Filter):
    """Lets one record of each kind pass in a second. The next one that passes says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, str(record.msg)), self._clock()
        if now - self._passed.get(kind, -1.0) < 1:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        if len(self._passed) > 100:  # messages that a library wrote in full each differ
            self._passed.clear()
            self._left_out.clear()
        self._passed[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like this)", ()
        return True


_QUIET = OncePerSecond()


class JoinedWrites:
    """A transport around another one, which sends the header of an answer together with the body's first bytes.

    uvicorn writes them one after the other. Each write is a system call, and the other end wakes up for each. The
    header waits for the next write, at most until the next turn of the loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._header = b""  # that waits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if data.startswith(_STATUS_LINE) and not self._header:
            self._header = data
            self._loop.call_soon(self._write_header)
        else:
            data, self._header = self._header + data, b""
            self._transport.write(data)

    def close(self) -> None:
        self._write_header()
        self._transport.close()

    def abort(self) -> None:
        self._header = b""
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return len(self._header) + self._transport.get_write_buffer_size()

    def _write_header(self) -> None:
        data, self._header = self._header, b""
        if data:
            self._transport.write(data)


class Connection(HttpToolsProtocol):
    """One connection. `since`: when its present state began. `received`: bytes of the request that arrives now."""

    def __init__(self, among: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._among = among
        self.since = 0.0
        self.received = 0
        self._unsent = 0  # bytes in the write buffer at the last look
        self._unsent_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))
        self.since = self.loop.time()
        self._among.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._among.closed(self)

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.since = self.loop.time()
        self.received += len(data)
        super().data_received(data)
        if self.received > _LONGEST_HEADER and self._expects_header:
            self.refuse(431, "Request Header Fields Too Large", "header_too_large", "the header is over 64 KiB")

    def on_response_complete(self) -> None:
        self.since, self.received = self.loop.time(), 0
        super().on_response_complete()
        self._among.changed.set()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is under way: it is idle, or the header of the next request has not ended."""
        cycle: Any = self.cycle  # None before the first request
        return cycle is None or bool(cycle.response_complete)

    @property
    def _has_asked(self) -> bool:
        return bool(self.cycle)

    @property
    def is_answering(self) -> bool:
        """Whether a whole request is here and its answer is not finished."""
        return not self.is_waiting and not self.cycle.more_body

    @property
    def _expects_header(self) -> bool:
        """Whether the next byte belongs to a header, not to the rest of a body that was answered too early."""
        cycle: Any = self.cycle
        return self.is_waiting and (cycle is None or not cycle.more_body)

    def overdue(self, now: float, limits: ConnectionLimits) -> str:
        """Return a line about the time limit that this connection is over; empty if it is over none."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        if unsent:
            late = now - self._unsent_since > limits.unread
            return "a client does not read its answer: its connection is closed" if late else ""
        if self.is_answering or self.flow.read_paused or self.transport.is_closing():  # read_paused: by the server
            return ""
        if self.is_waiting:
            # After an answer, uvicorn's timer ends an idle connection.
            late = (self.received > 0 or not self._has_asked) and now - self.since > limits.header
            return "a client sent no whole header in time: its connection is closed" if late else ""
        late = now - self.since > limits.body + self.received / limits.body_rate
        return "a client sent no whole body in time: its connection is closed" if late else ""

    def end(self) -> None:
        """Close the connection because of a limit. A request that has begun to arrive gets 408."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait until the client reads
        elif self.received:
            self.refuse(408, "Request Timeout", "request_timeout", "the request did not arrive in time: send it again")
        else:
            self.transport.close()

    def refuse(self, status: int, phrase: str, code: str, message: str) -> None:
        """Answer without the application, and close. If an answer has begun, only close."""
        if self.transport.is_closing():
            return
        if self.is_waiting or not self.cycle.response_started:
            body = f'{{"error":{{"message":"{message}","type":"invalid_request_error","param":null,"code":"{code}"}}}}'
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            self.transport.write(f"{head}\r\nconnection: close\r\n\r\n{body}".encode())
        self.transport.close()


class Connections:
    """The open connections of one server. All methods belong to its event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._most = limits.most if limits.most is not None else most_connections()
        self._open: set[Connection] = set()
        self.changed = asyncio.Event()  # set when a connection or an answer has ended
        self._refused_at = -_CALM
        self._looked_at: float | None = None

    def opened(self, new: Connection) -> None:
        self._open.add(new)
        if len(self._open) <= self._limits.most_idle:
            return
        idle = [each for each in self._open if each.is_waiting and not each.transport.is_closing()]
        oldest = min(idle, key=lambda each: each.since, default=new)
        if len(idle) > self._limits.most_idle and new.since - oldest.since >= self._limits.fresh:
            oldest.transport.abort()

    def closed(self, gone: Connection) -> None:
        self._open.discard(gone)
        self.changed.set()

    def look(self) -> None:
        """End the connections that are over a time limit. Call it about twice a second."""
        now = asyncio.get_running_loop().time()
        was_blocked = self._looked_at is not None and now - self._looked_at > 10 * _TICKS * 0.1
        self._looked_at = now
        if was_blocked:  # the loop stood still: what clients sent meanwhile is not read yet
            return
        for each in list(self._open):
            if line := each.overdue(now, self._limits):
                _LOG.warning(line)
                each.end()

    async def room(self) -> None:
        """Wait until one more connection may be served. Idle connections make way."""
        while len(self._open) >= self._most:
            self.changed.clear()
            if not self._close_oldest():
                _LOG.warning("all %d connections are in use: new clients wait until one ends", self._most)
            await self.changed.wait()

    async def refused(self, error: OSError) -> None:
        """The system refuses to accept. Close an idle connection, and wait for its end or for a second."""
        now = asyncio.get_running_loop().time()
        if now - self._refused_at > _CALM:
            _LOG.warning("cannot accept a connection (%s): new clients wait until another one ends", error.strerror)
        self._refused_at = now
        self.changed.clear()
        self._close_oldest()
        try:
            await asyncio.wait_for(self.changed.wait(), self._limits.pause)
        except TimeoutError:
            return

    def _close_oldest(self) -> bool:
        """Close the oldest idle connection, else the oldest one whose request is still arriving. False: neither."""
        unanswered = [each for each in self._open if not each.is_answering]
        closing = any(each.transport.is_closing() for each in unanswered)
        if not closing and unanswered:
            min(unanswered, key=lambda each: (not each.is_waiting, each.since)).transport.abort()
        return bool(unanswered)


class Listener:
    """Accepts the connections of one listening socket, one after the other. uvicorn closes it as its own servers."""

    def __init__(self, sock: socket.socket, connections: Connections, make: Callable[[], Connection]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._connections = connections
        self._make = make
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._sock)
            except ConnectionAbortedError:  # the client has gone already
                continue
            except OSError as exc:
                await self._connections.refused(exc)
                continue
            try:
                await self._connections.room()
                await loop.connect_accepted_socket(self._make, accepted)
            except (OSError, asyncio.CancelledError) as exc:  # OSError: on macOS, if the client has gone already
                accepted.close()
                if not isinstance(exc, OSError):
                    raise

    def close(self) -> None:
        self._task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._task])


class BoundedServer(uvicorn.Server):
    """A uvicorn server whose connections have limits. Give its sockets to `run` or `serve`."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        config.timeout_keep_alive = limits.idle  # type: ignore[assignment]  # any number of seconds works
        config.ws = "none"
        super().__init__(config)
        self._limits = limits
        self._connections: Connections | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # without sockets it accepts nothing
        for name in ("uvicorn.error", "asyncio", _LOG.name):
            logging.getLogger(name).addFilter(_QUIET)
        connections = self._connections = Connections(self._limits)
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(
                connections,
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            )

        listeners: list[Any] = [Listener(sock, connections, make) for sock in sockets or ()]
        self.servers.extend(listeners)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0 and self._connections is not None:
            self._connections.look()
        return await super().on_tick(counter)

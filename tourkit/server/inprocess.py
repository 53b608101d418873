"""Models in the caller's own process, with the interface of `tourkit.client`: no server, no worker, no socket.

A thread runs an event loop with the routes that a worker has. Requests go to these routes as messages, and answers come
back in queues. So every field means the same as over HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import http.client
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Scope, Send

from tourkit import backends
from tourkit.bundle.index import INDEX
from tourkit.client import AsyncClient, Client, ClientError
from tourkit.errors import LocalError, TourkitError
from tourkit.hardware import probe
from tourkit.planning.plan import CPU, Placement
from tourkit.server.api.off_loop import parsed
from tourkit.server.api.replies import error_response, json_response
from tourkit.server.api.requests import model_of, unknown_model
from tourkit.server.contract import SECRET_HEADER, fingerprint_of
from tourkit.server.gateway.launch import (
    ServeOptions,
    has_one_gpu,
    placements_on,
    source_of_bundle,
    source_of_weights,
)
from tourkit.server.gateway.process import LIBRARY_SETTINGS, has_own_server
from tourkit.server.worker.app import ModelServer

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch

_URL, _BUNDLE = "TOURKIT_URL", "TOURKIT_BUNDLE"
_HERE = "the model in this process"


def load(
    role: str,
    path: str | Path | None = None,
    *,
    context: int | None = None,
    slots: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Client:
    """Return a client of the model for a role: in this process, or of a running server.

    `path`: a bundle, or weights as `tourkit serve FILE` takes them. Without it, $TOURKIT_URL names a server, else
    $TOURKIT_BUNDLE or ./bundle is the bundle. `context`: tokens a sequence, `slots`: sequences at once; None for those
    of the plan. `say`: gets the notes of the plan. `settings`: as in Client. The memory of the model is free when the
    client and all its clones are closed.

    Raises what `tourkit serve` would print: UsageError, NotSo, LocalError.
    """
    if path is None and os.environ.get(_URL):
        return Client(model=role, **settings)
    where = Path(path or os.environ.get(_BUNDLE) or "bundle")
    is_weights = path is not None and not (where / INDEX).exists()
    source = source_of_weights(where) if is_weights else source_of_bundle(where)
    machine = probe.probe()
    ours = tuple(stack for stack in machine.stacks if not has_own_server(stack.name))
    options = ServeOptions((role,), context, slots)
    [placement] = placements_on(source, options, replace(machine, stacks=ours), say)
    engine, used = _loaded(placement, say, only_gpu=has_one_gpu(machine))
    names = (role, used.launch.model)
    return Client(model=role, transport=InProcess(engine, names, used.launch), **settings)


async def load_async(role: str, path: str | Path | None = None, **options: Any) -> AsyncClient:
    """Return what `load` returns, with the same arguments, for asyncio."""
    return AsyncClient(await asyncio.to_thread(lambda: load(role, path, **options)))


def _loaded(placement: Placement, say: Callable[[str], None], *, only_gpu: bool) -> tuple[Engine, Placement]:
    """Load the planned variant, or the first of its fallbacks that can be loaded. Raises LocalError."""
    passed_over: list[str] = []
    for candidate in (placement, *placement.fallbacks):
        _set_environment(candidate, only_gpu=only_gpu)
        try:
            return backends.load(candidate.launch), candidate
        except LocalError as exc:
            passed_over.append(f"{candidate.launch.title}: {exc}")
            say(f"{passed_over[-1]}; it is passed over")
    raise LocalError("; ".join(passed_over))


def _set_environment(placement: Placement, *, only_gpu: bool) -> None:
    """Set the variables that the libraries of a stack read when they are loaded. Variables of the user stay.

    `only_gpu`: this process sees one GPU alone.
    """
    for name, value in (LIBRARY_SETTINGS | dict(placement.launch.environment)).items():
        os.environ.setdefault(name, value)
    if placement.device != CPU and not only_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = placement.device


class InProcess:
    """A Transport to an engine. It belongs to one client; further clients get clones of it.

    `names`: what requests may give as `model`. `launch`: what was loaded.
    """

    def __init__(self, engine: Engine, names: tuple[str, ...], launch: Launch) -> None:
        self._site = _Site(engine, names, launch)
        self.name = _HERE

    def connect(self, timeout: float) -> _Connection:
        return _Connection(self._site, timeout)

    def clone(self) -> InProcess:
        self._site.join()
        return self

    def close(self) -> None:
        self._site.leave()


class _Site:
    """An engine, its routes, and the thread with their event loop. It ends when no client uses it any more."""

    def __init__(self, engine: Engine, names: tuple[str, ...], launch: Launch) -> None:
        self._users = 1
        self._gate = threading.Lock()
        self._names = names
        self._secret = secrets.token_hex(16)
        fingerprint = fingerprint_of(launch)
        self._server = ModelServer(engine, self._secret, defaults=launch.defaults, fingerprint=fingerprint)
        self._routes = self._server.app()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="tourkit-inprocess", daemon=True)
        self._thread.start()
        self._starting = asyncio.run_coroutine_threadsafe(self._server.start_trial(), self.loop)
        atexit.register(self.end)

    def join(self) -> None:
        """Count one more client."""
        with self._gate:
            self._users += 1

    def leave(self) -> None:
        """Count one client less. The last one ends the engine."""
        with self._gate:
            self._users -= 1
            is_last = not self._users
        if is_last:
            self.end()

    def end(self) -> None:
        """Free the model and end the thread. Idempotent."""
        atexit.unregister(self.end)
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _finish(self) -> None:
        """End the engine, and what still runs in the event loop."""
        self._starting.cancel()
        await self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Answer what the gateway answers itself, and let the routes of the worker answer all other requests."""
        if scope["path"] == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "tourkit"} for name in self._names]
            await json_response(200, {"object": "list", "data": models})(scope, receive, send)
        elif scope["path"] == "/health":
            await json_response(200, {"status": "ok"})(scope, receive, send)
        else:
            try:
                self._check(await parsed(body, model_of))
            except TourkitError as exc:
                await error_response(exc)(scope, receive, send)
                return
            await self._routes({**scope, "headers": self._headers(scope)}, receive, send)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        return [*scope["headers"], (SECRET_HEADER.encode(), self._secret.encode())]

    def _check(self, model: str) -> None:
        if model not in self._names:
            raise unknown_model(model, self._names, state="loaded")


class _Connection:
    """One request after the other, and their answers: a Connection of the client."""

    def __init__(self, site: _Site, timeout: float) -> None:
        self.timeout: float | None = timeout
        self._site = site
        self.sock: _Exchange | None = None

    def request(self, method: str, url: str, body: Any = None, headers: Any = None) -> None:
        self.sock = _Exchange(self._site, _scope(method, url, headers or {}), body or b"", self.timeout)

    def getresponse(self) -> _Answer:
        assert self.sock is not None
        return _Answer(self.sock)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.shutdown()


class _Exchange:
    """One request that is being answered. It is what `sock` is for an HTTP connection."""

    def __init__(self, site: _Site, scope: Scope, body: bytes, timeout: float | None) -> None:
        self._loop = site.loop
        self._timeout = timeout
        self._messages: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        self._gone = asyncio.Event()  # the client has hung up
        self._content = [body]
        self._ended = False
        if self._loop.is_closed():
            raise ClientError(f"{_HERE} is closed: load it again")
        self._running: Future[None] = asyncio.run_coroutine_threadsafe(self._run(site, scope, body), self._loop)

    async def _run(self, site: _Site, scope: Scope, body: bytes) -> None:
        try:
            await site.answer(scope, body, self._receive, self._send)
        finally:
            self._messages.put(http.client.IncompleteRead(b""))  # nobody reads it if the answer is whole

    async def _receive(self) -> Message:
        if self._content:
            return {"type": "http.request", "body": self._content.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._messages.put(message)

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def shutdown(self, how: int = 0) -> None:
        """Hang up: the routes free the slots. A thread that waits for a message gets an error."""
        self._messages.put(ConnectionAbortedError("the client hung up"))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gone.set)

    def next(self) -> Message:
        """Return the next message of the answer. Raises TimeoutError, HTTPException, ConnectionError."""
        try:
            found = self._messages.get(timeout=self._timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, Exception):
            raise found
        return found


class _Answer:
    """A Response of the client."""

    will_close = False

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        start = exchange.next()
        self.status = int(start["status"])
        self.headers = {name.decode().title(): value.decode("latin-1") for name, value in start.get("headers", ())}
        self._is_whole = False

    def _blocks(self) -> Iterator[bytes]:
        while not self._is_whole:
            message = self._exchange.next()
            self._is_whole = not message.get("more_body", False)
            yield message.get("body", b"")

    def read(self) -> bytes:
        return b"".join(self._blocks())

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines of the answer, each with its end."""
        rest = b""
        for block in self._blocks():
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)
        if rest:
            yield rest

    def close(self) -> None:
        if not self._is_whole:
            self._exchange.shutdown()


def _scope(method: str, path: str, headers: Mapping[str, Any]) -> Scope:
    sent = [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    about = {"method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    return {"type": "http", "scheme": "http", "http_version": "1.1", "headers": sent, "client": None} | about

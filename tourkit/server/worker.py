"""A worker: one process, one loaded variant, the OpenAI chat API on a Unix socket (or loopback) for the gateway.

Started as `python -m tourkit.server.worker SPEC`; tells the gateway on stdout when it is ready or why it is not, and
ends when its stdin closes, so that no worker outlives its gateway.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tourkit import backends
from tourkit.backends.base import LoadSpec
from tourkit.errors import EngineDead, EngineError, RequestError, TourkitError
from tourkit.server.embedding import embed
from tourkit.server.generation import Generation, complete, stream
from tourkit.server.replies import ChatReply, TextReply
from tourkit.server.respond import error_response, json_response
from tourkit.server.wire import (
    Generate,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_embeddings,
    parse_tokenize,
)

if TYPE_CHECKING:
    from tourkit.backends.base import Engine

SECRET_HEADER = "x-tourkit-secret"
_GRACE_SECONDS = 3  # for answers under way when the server is told to stop
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told. `uds` empty for loopback, `secret` on every request, `roles` what it is loaded for."""

    load: LoadSpec
    uds: str
    secret: str
    offline: bool
    roles: tuple[str, ...] = ()


def read_spec(text: str) -> WorkerSpec:
    """What the gateway wrote on the command line."""
    told = orjson.loads(text)
    return WorkerSpec(**told | {"load": LoadSpec(**told["load"])})


class ModelServer:
    """The HTTP routes over one engine."""

    def __init__(self, engine: Engine, secret: str, on_dead: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._secret = secret
        self._on_dead = on_dead

    def app(self) -> ASGIApp:
        routes = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/stats", self.stats, methods=["GET"]),
            ],
            exception_handlers={TourkitError: self._answer_error, Exception: self._answer_failure},
        )

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await routes(scope, receive, send)
            except Exception:  # noqa: BLE001 - answered by now; raised further, it would end a connection others wait on
                traceback.print_exc()

        return app

    async def stats(self, request: HttpRequest) -> Response:
        from tourkit import offline

        refused = {"offline_refused": len(offline.attempts())}
        return json_response(200, asdict(self._engine.info) | asdict(self._engine.stats()) | refused)

    async def chat(self, request: HttpRequest) -> Response:
        asked = parse_chat(await self._body(request))
        logprobs = asked.request.params.top_logprobs is not None
        reply = ChatReply(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), asked.model, logprobs)
        return await self._generate(asked, reply, request)

    async def complete(self, request: HttpRequest) -> Response:
        asked = parse_completion(await self._body(request))
        reply = TextReply(f"cmpl-{uuid.uuid4().hex}", int(time.time()), asked.model)
        return await self._generate(asked, reply, request)

    async def embed(self, request: HttpRequest) -> Response:
        return await embed(self._engine, parse_embeddings(await self._body(request)), request)

    async def tokenize(self, request: HttpRequest) -> Response:
        text, special = parse_tokenize(await self._body(request))
        tokens = self._engine.tokenize(text, add_special=special)
        about = {"count": len(tokens), "max_model_len": self._engine.info.max_len}
        return json_response(200, {"tokens": tokens} | about)

    async def detokenize(self, request: HttpRequest) -> Response:
        return json_response(200, {"prompt": self._engine.detokenize(parse_detokenize(await self._body(request)))})

    async def _body(self, request: HttpRequest) -> Any:
        if request.headers.get(SECRET_HEADER) != self._secret:
            raise RequestError("this is a worker: talk to the gateway", status=403)
        try:
            return orjson.loads(await request.body())
        except orjson.JSONDecodeError as exc:
            raise RequestError(f"the body is not JSON: {exc}", code="invalid_json") from exc

    async def _generate(self, asked: Generate, reply: ChatReply | TextReply, request: HttpRequest) -> Response:
        emulated = [name for name in asked.request.asked if name in self._engine.info.emulated]
        headers = {"x-tourkit-emulated": ", ".join(emulated)} if emulated else {}
        if not asked.stream:
            response = await complete(self._engine, asked, reply, request)
            response.headers.update(headers)
            return response
        generation = await Generation.start(self._engine, asked.request)
        headers |= {"cache-control": "no-cache", "x-tourkit-constraint": generation.constraint.level}
        return StreamingResponse(stream(generation, reply, asked, request), media_type=_EVENTS, headers=headers)

    async def _answer_error(self, request: HttpRequest, exc: Exception) -> Response:
        assert isinstance(exc, TourkitError)
        if isinstance(exc, EngineDead):  # it will answer nothing any more: the gateway starts another worker
            self._on_dead()
        return error_response(exc)

    async def _answer_failure(self, request: HttpRequest, exc: Exception) -> Response:
        return error_response(EngineError(f"a fault of tourkit, please report it: {type(exc).__name__}: {exc}"))


# --- the process --------------------------------------------------------------------------------------------------


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
    sys.stdout.buffer.flush()


def _listen(spec: WorkerSpec) -> tuple[socket.socket, str]:
    """A listening socket and its address, as the gateway reads it: `unix:PATH` or `HOST:PORT`."""
    if spec.uds:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(spec.uds)
        address = f"unix:{spec.uds}"
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    sock.listen(256)
    return sock, address


def _end_with_gateway() -> None:
    """Ask this process to stop as soon as stdin closes: the gateway holds the other end."""
    while os.read(0, 1024):  # not through sys.stdin: its lock, held here, aborts an interpreter that ends by itself
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(spec: WorkerSpec) -> None:
    """Load, say so, and serve until told to stop; told while it loads, it ends at once."""
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    engine = await asyncio.to_thread(partial(backends.load, spec.load))
    gc.collect()
    gc.freeze()  # what is loaded stays: to look through it now and then would hold up a token for a tenth of a second
    sock, address = _listen(spec)

    def leave() -> None:
        server.should_exit = True

    app = ModelServer(engine, spec.secret, on_dead=leave).app()
    server = EndingServer(app, partial(asyncio.to_thread, engine.close))
    _tell({"ready": True, "address": address, **asdict(engine.info)})
    try:
        await server.serve(sockets=[sock])
    finally:
        engine.close()


class EndingServer(uvicorn.Server):
    """A uvicorn server that first ends what runs when it is told to stop, so that no client waits for nothing."""

    def __init__(self, app: ASGIApp, end: Callable[[], Awaitable[None]]) -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **options))
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._end()
        await super().shutdown(sockets)


def main() -> int:
    spec = read_spec(sys.argv[1])
    if spec.offline:
        from tourkit import offline

        offline.engage()
    try:
        asyncio.run(serve(spec))
    except TourkitError as exc:
        _tell({"ready": False, "error": str(exc)})
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

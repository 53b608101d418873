"""A worker: one process, one loaded variant, the OpenAI chat API on a Unix socket (or loopback) for the gateway.

Started as `python -m tourkit.server.worker SPEC`; tells the gateway on stdout when it is ready or why it is not, and
ends when its stdin closes, so that no worker outlives its gateway.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tourkit.engine.types import Delta, Finish, TokenLogprob
from tourkit.errors import EngineDead, EngineError, RequestError, TourkitError
from tourkit.server.replies import ChatReply, Choice, TextReply, error_body, usage
from tourkit.server.respond import error_response, json_response
from tourkit.server.wire import Generate, parse_chat, parse_completion, parse_detokenize, parse_tokenize

if TYPE_CHECKING:
    from tourkit.backends.base import Engine

SECRET_HEADER = "x-tourkit-secret"
_GRACE_SECONDS = 3  # for answers under way when the server is told to stop
_HUNG_UP = 499  # what nginx logs for a client that went away; nobody reads it


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told. `max_len` in tokens a sequence, `uds` empty for loopback, `secret` on every request."""

    model: str
    path: str
    stack: str
    slots: int
    max_len: int
    threads: int
    uds: str
    secret: str
    offline: bool


class ModelServer:
    """The HTTP routes over one engine."""

    def __init__(self, engine: Engine, secret: str) -> None:
        self._engine = engine
        self._secret = secret

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/stats", self.stats, methods=["GET"]),
            ],
            exception_handlers={TourkitError: _answer_error},
        )

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
        generation = await Generation.start(self._engine, asked)
        if asked.stream:
            events = _stream(generation, reply, asked, request)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return await _complete(generation, reply, asked, request)


async def _answer_error(request: HttpRequest, exc: Exception) -> Response:
    assert isinstance(exc, TourkitError)
    return error_response(exc)


class Generation:
    """One submission seen from the event loop: its deltas in order, and an abort when nobody wants them."""

    def __init__(self, engine: Engine, n: int) -> None:
        self._engine = engine
        self._left = n
        self._submission: int | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delta | None] = asyncio.Queue()
        self.n_prompt = 0
        self.n_completion = 0

    @staticmethod
    async def start(engine: Engine, asked: Generate) -> Generation:
        generation = Generation(engine, asked.request.n)
        submission = await asyncio.to_thread(engine.submit, asked.request, generation._emit)
        generation._submission, generation.n_prompt = submission.id, submission.n_prompt
        return generation

    def _emit(self, delta: Delta) -> None:
        """Called from the engine thread, which must not fail because the loop is gone."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, delta)

    async def deltas(self, request: HttpRequest) -> AsyncIterator[Delta]:
        """Deltas until every sequence has ended. Ends early, and frees the slots, when the client hangs up."""
        watcher = asyncio.create_task(self._watch(request))
        try:
            while self._left:
                delta = await self._queue.get()
                if delta is None:
                    return
                self.n_completion += delta.n_tokens
                self._left -= delta.finish is not None
                yield delta
        finally:
            watcher.cancel()
            if self._left and self._submission is not None:
                self._engine.abort(self._submission)

    async def _watch(self, request: HttpRequest) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)

    @property
    def complete(self) -> bool:
        return self._left == 0

    def usage(self) -> dict[str, int]:
        return usage(self.n_prompt, self.n_completion)


async def _complete(
    generation: Generation, reply: ChatReply | TextReply, asked: Generate, request: HttpRequest
) -> Response:
    n = asked.request.n
    texts, finishes = [""] * n, [Finish.STOP] * n
    logprobs: list[tuple[TokenLogprob, ...]] = [()] * n
    async for delta in generation.deltas(request):
        texts[delta.index] += delta.text
        logprobs[delta.index] += delta.logprobs
        if delta.finish:
            failure = _sequence_failure(delta)
            if failure:
                return error_response(failure)
            finishes[delta.index] = delta.finish
    if not generation.complete:
        return Response(status_code=_HUNG_UP)
    choices = map(Choice, texts, finishes, logprobs)
    return json_response(200, reply.completion(choices, generation.usage()))


async def _stream(
    generation: Generation, reply: ChatReply | TextReply, asked: Generate, request: HttpRequest
) -> AsyncIterator[bytes]:
    opening = reply.opening(asked.request.n)
    if opening is not None:
        yield _event(opening)
    async for delta in generation.deltas(request):
        failure = _sequence_failure(delta)
        if failure:
            yield _event(error_body(failure)[1])
            return
        yield _event(reply.chunk(delta))
    if generation.complete:
        if asked.include_usage:
            yield _event(reply.closing(generation.usage()))
        yield b"data: [DONE]\n\n"


def _sequence_failure(delta: Delta) -> TourkitError | None:
    if delta.finish is Finish.ERROR:
        return EngineError(delta.error or "generation failed")
    if delta.finish is Finish.ABORT:
        return EngineDead("the server is shutting down")
    return None


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


# --- the process --------------------------------------------------------------------------------------------------


def load_engine(spec: WorkerSpec) -> Engine:
    """Load the variant with its stack. Raises LocalError when the stack or the file is no good."""
    from tourkit.backends.llama_cpp import LlamaEngine, LlamaRunner

    runner = LlamaRunner(Path(spec.path), slots=spec.slots, max_len=spec.max_len, threads=spec.threads)
    return LlamaEngine(runner)


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
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(spec: WorkerSpec) -> None:
    """Load, say so, and serve until told to stop."""
    engine = await asyncio.to_thread(partial(load_engine, spec))
    sock, address = _listen(spec)
    server = EndingServer(ModelServer(engine, spec.secret).app(), partial(asyncio.to_thread, engine.close))
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    _tell({"ready": True, "address": address, **asdict(engine.info)})
    try:
        await server.serve(sockets=[sock])
    finally:
        engine.close()


class EndingServer(uvicorn.Server):
    """A uvicorn server that first ends what runs when it is told to stop, so that no client waits for nothing."""

    def __init__(self, app: Starlette, end: Callable[[], Awaitable[None]]) -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on"}
        super().__init__(uvicorn.Config(app, timeout_graceful_shutdown=_GRACE_SECONDS, **options))
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._end()
        await super().shutdown(sockets)


def main() -> int:
    spec = WorkerSpec(**orjson.loads(sys.argv[1]))
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

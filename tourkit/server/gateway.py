"""The gateway: the one server people talk to. Routes a role or model id to its worker and passes bytes through.

It holds no model and parses no more of a request than the model's name; the worker checks the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tourkit.backends.base import LoadSpec
from tourkit.errors import EngineDead, LocalError, RequestError, TourkitError
from tourkit.plan import Placement, Plan
from tourkit.server.metrics import exposition
from tourkit.server.process import Launch, State, Worker
from tourkit.server.replies import error_body
from tourkit.server.respond import error_response, json_response
from tourkit.server.worker import SECRET_HEADER, EndingServer

# What a worker answers for its model.
_FORWARDED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")
_PASSED = (  # headers of a worker's answer
    *("content-type", "content-length", "retry-after", "cache-control"),
    *("x-tourkit-constraint", "x-tourkit-emulated"),
)
_MAX_BODY = 32 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """`api_key` None lets everybody in. `unix` False makes workers listen on loopback. `say` hears of workers."""

    offline: bool = False
    api_key: str | None = None
    unix: bool = hasattr(socket, "AF_UNIX")
    say: Callable[[str], None] = lambda text: None


class Gateway:
    """Workers by role and model id, and the routes in front of them."""

    def __init__(self, launches: tuple[Launch, ...], options: GatewayOptions) -> None:
        self._launches = launches
        self._options = options
        self._workers: dict[str, Worker] = {}
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._folder = ""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                *(Route(path, _AsgiEndpoint(self.forward), methods=["POST"]) for path in _FORWARDED),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.model, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._folder = tempfile.mkdtemp(prefix="tourkit-")
        announcements = []
        try:
            for i, launch in enumerate(self._launches):
                uds = f"{self._folder}/{i}.sock" if self._options.unix else ""
                worker = Worker(
                    launch, uds=uds, offline=self._options.offline, say=self._options.say, others=self._holder
                )
                announcements.append(asyncio.create_task(self._announce(worker)))
                for name in (launch.model, *launch.roles):
                    self._workers[name] = worker
            for worker in self._distinct():
                worker.start()
            yield
        finally:
            for announcement in announcements:
                announcement.cancel()
            await self.stop()
            await asyncio.gather(*(session.close() for session in self._sessions.values()))
            shutil.rmtree(self._folder, ignore_errors=True)

    async def stop(self) -> None:
        """End every worker, and with it every answer under way. Idempotent."""
        await asyncio.gather(*(worker.stop() for worker in self._distinct()))

    async def _announce(self, worker: Worker) -> None:
        """Say when a worker is ready, or why it will not be."""
        started = time.monotonic()
        try:
            await worker.ready()
        except EngineDead as exc:
            self._options.say(f"failed: {worker.passed_over[-1] if worker.passed_over else exc}")
            return
        names = ", ".join(worker.launch.roles)
        self._options.say(f"ready: {names} ({worker.answering.model}) after {time.monotonic() - started:.1f} s")

    def _holder(self, launch: Launch) -> Worker | None:
        """The worker that was planned to hold the same as `launch`, and has not had to load something else."""
        same = [worker for worker in self._distinct() if worker.launch.title == launch.title]
        return next((worker for worker in same if not worker.passed_over), None)

    def _distinct(self) -> list[Worker]:
        return list({id(worker): worker for worker in self._workers.values()}.values())

    # --- routes ---------------------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """200 when every worker answers, 503 while one loads or when one has failed."""
        states = {
            f"{worker.launch.model} {worker.launch.quant}": {
                "state": worker.state.name.lower(),
                "roles": list(worker.launch.roles),
                "pid": worker.pid,
                "restarts": worker.restarts,
                "error": worker.error,
                "answers": worker.answering.title,
                "passed_over": worker.passed_over,
            }
            for worker in self._distinct()
        }
        ready = all(worker.state is State.READY for worker in self._distinct())
        return json_response(200 if ready else 503, {"status": "ok" if ready else "not ready", "workers": states})

    async def metrics(self, request: Request) -> Response:
        """Counters of every worker that is up, in Prometheus' text format."""
        up = [worker for worker in self._distinct() if worker.state is State.READY and worker.stand_in is None]
        return PlainTextResponse(exposition([(worker.current, await self._stats(worker)) for worker in up]))

    async def _stats(self, worker: Worker) -> dict[str, Any]:
        try:
            session, base = self._session(await worker.ready())
            async with session.get(f"{base}/stats") as answer:
                return dict(orjson.loads(await answer.read()))
        except (EngineDead, aiohttp.ClientError):  # it went down meanwhile: it has no figures now
            return {}

    async def models(self, request: Request) -> Response:
        try:
            self._authorize(request.headers.get("authorization"))
        except RequestError as exc:
            return error_response(exc)
        return json_response(200, {"object": "list", "data": [self._model(name) for name in self._workers]})

    async def model(self, request: Request) -> Response:
        try:
            self._authorize(request.headers.get("authorization"))
            self._find(request.path_params["name"])
        except RequestError as exc:
            return error_response(exc)
        return json_response(200, self._model(request.path_params["name"]))

    def _model(self, name: str) -> dict[str, Any]:
        launch, roles = self._workers[name].answering, list(self._workers[name].launch.roles)
        about = {"model": launch.model, "quant": launch.quant, "stack": launch.load.stack, "roles": roles}
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "tourkit",
            "max_model_len": launch.load.max_len,
        } | about

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the worker of its model, and the worker's bytes back as they come."""
        request = Request(scope, receive)
        try:
            self._authorize(request.headers.get("authorization"))
            body = await _read_body(request)
            worker = self._find(_model_name(body))
        except TourkitError as exc:
            await error_response(exc)(scope, receive, send)
            return
        passing = asyncio.create_task(self._pass(worker, scope["path"], body, send))
        watching = asyncio.create_task(_hang_up(receive))
        done, pending = await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()  # cancelling the pass closes the worker's connection, which frees its slots
        await asyncio.gather(*pending, return_exceptions=True)
        if passing in done:
            failure = passing.result()
            if failure is not None:
                await error_response(failure)(scope, receive, send)

    async def _pass(self, worker: Worker, path: str, body: bytes, send: Send) -> TourkitError | None:
        """Forward one request. An error that comes before the first byte is returned, to be answered as JSON."""
        started = False
        try:
            worker = await worker.ready()
            session, base = self._session(worker)
            headers = {SECRET_HEADER: worker.secret, "content-type": "application/json"}
            async with session.post(f"{base}{path}", data=body, headers=headers) as answer:
                await send(_start(answer, worker.current))
                started = True
                async for block in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                worker.answered()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except EngineDead as exc:
            return exc
        except aiohttp.ClientError as exc:
            if not started:
                return EngineDead(f"the worker of {worker.current.model} went away ({exc}): ask again, it is restarted")
            await _cut_short(send, worker, streaming=answer.content_type == "text/event-stream")
        return None

    def _session(self, worker: Worker) -> tuple[aiohttp.ClientSession, str]:
        """A client of a worker that is ready, kept for its connections; and the base URL to use with it."""
        address = worker.address
        unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        session = self._sessions.get(id(worker))
        if session is None:
            connector = aiohttp.UnixConnector(unix, limit=0) if unix else aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None)  # a long generation is no fault; a dead worker closes
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
            self._sessions[id(worker)] = session
        return session, "http://worker" if unix else f"http://{address}"

    def _find(self, name: str) -> Worker:
        worker = self._workers.get(name)
        if worker is None:
            known = ", ".join(self._workers)
            raise RequestError(
                f"model {name!r} is not served here: use one of {known}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return worker

    def _authorize(self, header: str | None) -> None:
        key = self._options.api_key
        given = (header or "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise RequestError("the API key is missing or wrong", code="invalid_api_key", status=401)


def launches(
    root: Path,
    plan: Plan,
    *,
    deterministic: bool = False,
    prefix_cache: Path | None = None,
    chat_templates: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Launch, ...]:
    """What to start for a plan over the bundle at `root`. The options are those of LoadSpec, templates by model."""
    kept = str(prefix_cache.resolve()) if prefix_cache is not None else ""
    return tuple(_launch(root, placement, deterministic, kept, chat_templates) for placement in plan.placements)


def _launch(
    root: Path, placement: Placement, deterministic: bool, prefix_cache: str, chat_templates: Mapping[str, str]
) -> Launch:
    fallbacks = (_launch(root, each, deterministic, prefix_cache, chat_templates) for each in placement.fallbacks)
    return Launch(
        load=LoadSpec(
            model=placement.model,
            stack=placement.stack,
            path=str((root / placement.path).resolve()),
            slots=placement.slots,
            max_len=placement.context,
            threads=placement.threads,
            gpu_layers=placement.gpu_layers,
            cache_type=placement.cache_type,
            lora=tuple(str((root / path).resolve()) for path in placement.lora),
            deterministic=deterministic,
            prefix_cache=prefix_cache,
            chat_template=chat_templates.get(placement.model, ""),
        ),
        quant=placement.quant,
        roles=placement.roles,
        device=placement.device,
        resident=placement.resident,
        fallbacks=tuple(fallbacks),
    )


class _AsgiEndpoint:
    """A plain ASGI function as a route's endpoint: Starlette would wrap a function in its request/response form."""

    def __init__(self, call: Callable[[Scope, Receive, Send], Any]) -> None:
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._call(scope, receive, send)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > _MAX_BODY:
            raise RequestError(f"the body is over {_MAX_BODY >> 20} MiB", code="body_too_large", status=413)
    return bytes(body)


def _model_name(body: bytes) -> str:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RequestError(f"the body is not JSON: {exc}", code="invalid_json") from exc
    name = parsed.get("model") if isinstance(parsed, dict) else None
    if not isinstance(name, str) or not name:
        raise RequestError("model is missing: name a role, such as 'tool', or a model id", param="model")
    return name


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(answer: aiohttp.ClientResponse, launch: Launch) -> dict[str, Any]:
    headers = [(b"x-tourkit-model", launch.title.encode())]
    for name in _PASSED:
        if name in answer.headers:
            headers.append((name.encode(), answer.headers[name].encode()))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _cut_short(send: Send, worker: Worker, *, streaming: bool) -> None:
    """The worker died in the middle of an answer: say so in a stream; a plain answer just stops short of its length."""
    if not streaming:
        return
    _, body = error_body(EngineDead(f"the worker of {worker.current.model} went away in the middle of the answer"))
    await send({"type": "http.response.body", "body": b"data: " + orjson.dumps(body) + b"\n\n", "more_body": False})


async def _not_found(request: Request, exc: Exception) -> Response:
    status = getattr(exc, "status_code", 404)
    return error_response(RequestError(f"{request.method} {request.url.path}: no such route", status=status))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket for the gateway; port 0 picks a free one. Raises LocalError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise LocalError(f"cannot listen on {host}:{port} ({exc.strerror}): choose another with --port") from exc
    return sock


def serve(
    launches: tuple[Launch, ...], options: GatewayOptions, sock: socket.socket, on_ready: Callable[[str], None]
) -> None:
    """Run the gateway on `sock` until interrupted; `on_ready` gets its URL once it accepts requests."""
    host, port = sock.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    gateway = Gateway(launches, options)

    class Server(EndingServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(url)

    Server(gateway.app(), gateway.stop).run(sockets=[sock])

"""The gateway: the one server people talk to. Routes a role or model id to its worker and passes bytes through.

It holds no model. It reads only the model's name from a request; the worker checks the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tourkit import __version__, net, scratch
from tourkit.connections import USUAL, ConnectionLimits
from tourkit.errors import EngineDead, LocalError, RequestError, TourkitError
from tourkit.net import Urls
from tourkit.planning.plan import Placement
from tourkit.server.api.dialects import dialect_of
from tourkit.server.api.replies import error_response, json_response
from tourkit.server.api.requests import unknown_model
from tourkit.server.gateway import bodies, paths, responses, status
from tourkit.server.gateway.access import CLIENT, OPEN_TO_ALL, TRUSTED, Access, AccessRules
from tourkit.server.gateway.comments import Commented
from tourkit.server.gateway.conversations import Conversations
from tourkit.server.gateway.entry import Entry
from tourkit.server.gateway.lifecycle import CHANGES, LIFETIMES, Lifecycle, Lifetimes
from tourkit.server.gateway.metrics import WorkerFigures, exposition, prompt_cache_of
from tourkit.server.gateway.ollama import OllamaModels
from tourkit.server.gateway.openapi import document_of
from tourkit.server.gateway.paths import FORWARDED, STREAMED
from tourkit.server.gateway.relay import Relay
from tourkit.server.gateway.request_log import MODEL, RequestLog
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.server.gateway.swapping import Swapper
from tourkit.server.gateway.upstream import Asked, Upstream
from tourkit.server.gateway.watchdog import TIMEOUTS, WorkerTimeouts
from tourkit.server.http import EndingServer, hung_up
from tourkit.units import counted, seconds_text

_LOOK_SECONDS = 0.05  # between two looks whether answers still run
_HEALTH_SECONDS = 1.0  # for the figures in /health, which must not wait for a worker that hangs


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """`access`: who may send requests. `connections`: limits of the server. `unix` False: workers listen on loopback.

    `say` gets lines about workers. `guard`: as in WorkerSpec. `log`: `say` gets a line for each request too.
    `ends_unloaded`: the server ends when none of its workers can be loaded from the start. `only_gpu`: this process
    sees one GPU alone. `plan_again`: returns a new placement for one that found too little memory, None if nothing else
    fits. Its other arguments are the placements that are loaded, and those for which memory must stay free. It may take
    seconds. `timeouts`: for the workers.
    """

    offline: bool = False
    guard: str = ""
    access: AccessRules = OPEN_TO_ALL
    connections: ConnectionLimits = USUAL
    unix: bool = hasattr(socket, "AF_UNIX")
    say: Callable[[str], None] = lambda text: None
    log: bool = False
    ends_unloaded: bool = False
    only_gpu: bool = False
    plan_again: Callable[[Placement, tuple[Placement, ...], tuple[Placement, ...]], Placement | None] | None = None
    timeouts: WorkerTimeouts = TIMEOUTS
    lifetimes: Lifetimes = LIFETIMES


class Gateway:
    """Workers by role and model id, and the routes in front of them."""

    def __init__(
        self, placements: tuple[Placement, ...], options: GatewayOptions, on_unloaded: Callable[[], None] = lambda: None
    ) -> None:
        """`on_unloaded` is called when the server is to end because nothing can be loaded: see `failure`."""
        self.failure: str | None = None  # why nothing can be loaded
        self._placements = placements
        self._on_unloaded = on_unloaded
        self._options = options
        self._workers: dict[str, Worker] = {}
        self._swapper = Swapper(())
        self._upstream = Upstream()
        self._relay = Relay(self._upstream, lambda: self._swapper)
        self._lifecycle = Lifecycle(lambda: self._swapper, self._find, options.say)
        self._conversations = Conversations()
        self._folder = ""
        self._created = int(time.time())
        self._planning = asyncio.Lock()

    def app(self) -> ASGIApp:
        about = Starlette(
            routes=[
                Route("/", self.front_page, methods=["GET"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.model, methods=["GET"]),
                Route("/version", self.version, methods=["GET"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                *self._lifecycle.routes(),
                *responses.routes(self._conversations),
                *OllamaModels(lambda: self._workers, self._find, self._created).routes(),
            ],
            exception_handlers={404: paths.not_found, 405: paths.not_found},
            lifespan=self._lifespan,
        )

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in FORWARDED:
                await self.forward(scope, receive, send)  # without middleware, which makes streams slower
            elif scope["type"] == "http" and scope["method"] == "OPTIONS":
                await paths.options(scope, about.routes)(scope, receive, send)
            else:
                await about(scope, receive, send)

        guarded = Entry(Access(app, self._options.access))
        return RequestLog(guarded, self._options.say) if self._options.log else guarded

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        with scratch.folder("gateway") as folder:
            self._folder = str(folder)
            async with self._workers_running():
                yield

    @contextlib.asynccontextmanager
    async def _workers_running(self) -> AsyncIterator[None]:
        tasks = []
        try:
            for i, placement in enumerate(self._placements):
                uds = f"{self._folder}/{i}.sock" if self._options.unix else ""
                worker = Worker(
                    placement,
                    uds=uds,
                    offline=self._options.offline,
                    say=self._options.say,
                    others=self._holder,
                    plan_again=self._plan_again if self._options.plan_again is not None else None,
                    make_room=self._make_room,
                    only_gpu=self._options.only_gpu,
                    timeouts=self._options.timeouts,
                    guard=self._options.guard,
                )
                tasks.append(asyncio.create_task(self._announce(worker)))
                for name in (placement.launch.model, *placement.roles):
                    self._workers[name] = worker
            self._swapper = Swapper(self._distinct())
            times = self._options.lifetimes
            self._swapper.begin(None if times.preload is None else [self._find(name) for name in times.preload])
            if times.idle_timeout is not None:
                watching = self._lifecycle.unload_idle(self._distinct, times.idle_timeout)
                tasks.append(asyncio.create_task(watching))
            yield
        finally:
            for task in tasks:
                task.cancel()
            await self.stop()
            await self._upstream.close()

    async def drain(self, is_hurried: Callable[[], bool]) -> None:
        """Let running answers end within the time that the options give. Requests that wait or come get 503.

        Return earlier if `is_hurried`.
        """
        self._swapper.close()
        seconds = self._options.lifetimes.drain
        end = time.monotonic() + seconds
        if self._relay.running:
            answers = counted(self._relay.running, "answer runs", "answers run")
            self._options.say(f"stopping: {answers}, for {seconds_text(seconds)} at most")
        while self._relay.running and time.monotonic() < end and not is_hurried():
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """End every worker and the answers it is writing. Idempotent."""
        self._swapper.close()
        await asyncio.gather(*(worker.stop() for worker in self._distinct()))

    async def _announce(self, worker: Worker) -> None:
        """Say when a worker is ready, or why it cannot be."""
        try:
            answering = worker
            while (found := await answering.ready()) is not answering:
                answering = found
        except EngineDead as exc:
            why = worker.passed_over[-1] if worker.passed_over else str(exc)
            if self._options.ends_unloaded and all(each.state is State.FAILED for each in self._distinct()):
                self.failure = why
                self._on_unloaded()
            else:
                self._options.say(f"failed: {why}")
            return
        names = ", ".join(worker.placement.roles)
        seconds = time.monotonic() - worker.started
        guard = f" (guard: {answering.guard})" if answering.guard else ""
        self._options.say(f"ready: {names} ({worker.answering.launch.model}) after {seconds:.1f} s{guard}")

    def _holder(self, placement: Placement) -> Worker | None:
        """Return the worker that was planned with the same variant as `placement`, unless it fell back."""
        same = [worker for worker in self._distinct() if worker.placement.launch.title == placement.launch.title]
        return next((worker for worker in same if not worker.passed_over), None)

    async def _plan_again(self, worker: Worker) -> Placement | None:
        """Return a new placement for a worker that found too little memory. One worker after the other is planned.

        The other workers finish loading first, because only then the memory that is left can be measured.
        """
        make = self._options.plan_again
        assert make is not None
        async with self._planning:
            others = [each for each in self._distinct() if each is not worker]
            for other in others:
                await other.quiet()
            loaded = tuple(each.current for each in others if each.state is State.READY and each.stand_in is None)
            return await asyncio.to_thread(make, worker.placement, loaded, _still_to_come(worker, others))

    async def _make_room(self, worker: Worker) -> str:
        return await self._lifecycle.make_room(worker, self._distinct())

    def _distinct(self) -> list[Worker]:
        return list({id(worker): worker for worker in self._workers.values()}.values())

    # --- routes ---------------------------------------------------------------------------------------------------

    async def front_page(self, request: Request) -> Response:
        own = [route for route in request.app.routes if isinstance(route, Route)]
        routes = [f"POST {path}" for path in FORWARDED]
        routes += [f"{_method(route)} {route.path_format}" for route in own]
        return PlainTextResponse(status.front_page(self._distinct(), routes))

    async def health(self, request: Request) -> Response:
        """What stands about the workers, for everybody who has the key; for others only whether all are ready."""
        caches = await self._prompt_caches() if request.scope[TRUSTED] else {}
        code, body = status.health(self._distinct(), self._swapper, offline=self._options.offline, prompt_caches=caches)
        return json_response(code, body if request.scope[TRUSTED] else {"status": body["status"]})

    async def _prompt_caches(self) -> dict[Worker, dict[str, int]]:
        """Return the figures of the prompt cache of each worker that is up and has one."""
        asked = [each for each in self._distinct() if each.answers_itself and each.current.launch.prompt_cache]
        found = await asyncio.gather(*(self._upstream.stats(each, within=_HEALTH_SECONDS) for each in asked))
        return {worker: prompt_cache_of(figures) for worker, figures in zip(asked, found, strict=True)}

    async def metrics(self, request: Request) -> Response:
        """Counters of every worker that is up, in Prometheus' text format."""
        is_up = {worker: worker.answers_itself for worker in self._distinct()}
        found = [
            WorkerFigures(worker.current.launch, loaded, await self._upstream.stats(worker) if loaded else {})
            for worker, loaded in is_up.items()
        ]
        return PlainTextResponse(exposition(found, self._swapper))

    async def models(self, request: Request) -> Response:
        served = [status.model(name, worker, self._created) for name, worker in self._workers.items()]
        return json_response(200, {"object": "list", "data": served})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name in CHANGES and name not in self._workers:
            return await paths.not_found(request)
        try:
            return json_response(200, status.model(name, self._find(name), self._created))
        except RequestError as exc:
            return error_response(exc)

    async def version(self, request: Request) -> Response:
        return json_response(200, {"version": __version__})

    async def openapi(self, request: Request) -> Response:
        return json_response(200, document_of(self._workers, needs_key=bool(self._options.access.keys)))

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the worker of its model, and pass the worker's bytes back as they come."""
        request = Request(scope, receive)
        try:
            bodies.check_headers(scope)
            body = await bodies.read_body(request)
            named = await bodies.named(body, dialect_of(scope["path"]))
            scope[MODEL] = named.model
            worker = self._find(named.model)
        except TourkitError as exc:
            await error_response(exc)(scope, receive, send)
            return
        except ClientDisconnect:  # in the middle of its body
            return
        asked = Asked(scope["path"], body, scope[CLIENT])
        if asked.path == responses.PATH:
            await self._converse(worker, asked, named.streams, receive, send)
        else:
            await self._answer(worker, asked, named.streams, receive, send)

    async def _converse(self, worker: Worker, asked: Asked, streams: bool, receive: Receive, send: Send) -> None:
        """Pass a request with the stored items that it refers to, and store the answer."""
        try:
            async with self._conversations.begin(asked.body, asked.client) as begun:
                tapped = responses.Tapped(send, lambda found: self._conversations.end(begun, found, asked.client))
                full = replace(asked, body=begun.body, n_stored=begun.n_stored)
                await self._answer(worker, full, streams, receive, tapped)
        except RequestError as exc:
            await error_response(exc)({"type": "http"}, receive, send)

    async def _answer(self, worker: Worker, asked: Asked, streams: bool, receive: Receive, send: Send) -> None:
        """Pass a request and its answer. `streams`: the client gets comments while it waits."""
        dialect = dialect_of(asked.path)
        if not streams or asked.path not in STREAMED or not dialect.waiting:
            await self._pass(worker, asked, receive, send)
            return
        commented = Commented(send, worker.answering.launch.title, dialect)
        commenting = asyncio.create_task(commented.run())
        try:
            await self._pass(worker, asked, receive, commented)
        finally:
            commenting.cancel()

    async def _pass(self, worker: Worker, asked: Asked, receive: Receive, send: Send) -> None:
        """Pass a request and its answer. If the client hangs up, the worker's connection is closed."""
        passing = asyncio.create_task(self._relay.answer(worker, asked, send))
        watching = asyncio.create_task(hung_up(receive))
        done, pending = await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()  # cancelling the pass closes the worker's connection, which frees its slots
        await asyncio.gather(*pending, return_exceptions=True)
        if passing in done:
            failure = passing.result()
            if failure is not None:
                await error_response(failure)({"type": "http"}, receive, send)

    def _find(self, name: str) -> Worker:
        worker = self._workers.get(name)
        if worker is None:
            raise unknown_model(name, self._workers, state="served")
        return worker


def _still_to_come(worker: Worker, others: list[Worker]) -> tuple[Placement, ...]:
    """Return the placements of other workers for which memory must stay free beside `worker`.

    These are the placements that wait for a new plan too, those that stay in memory but are unloaded now, and the
    largest of those that take turns if none is loaded.
    """
    waiting = [other.placement for other in others if other.waits_for_plan]
    unloaded = (other for other in others if other.state is State.UNLOADED and other.placement.resident)
    waiting += [other.current for other in unloaded]
    in_turn = [other for other in others if not other.placement.resident and other.stand_in is None]
    if worker.placement.resident and in_turn and all(other.state is State.UNLOADED for other in in_turn):
        waiting.append(max((other.current for other in in_turn), key=lambda each: sum(m.total for m in each.memory)))
    return tuple(waiting)


def _method(route: Route) -> str:
    return next(iter(sorted((route.methods or set()) - {"HEAD"})))


def serve(
    placements: tuple[Placement, ...], options: GatewayOptions, sock: socket.socket, on_ready: Callable[[Urls], None]
) -> None:
    """Run the gateway on `sock` until interrupted; `on_ready` gets its URLs once it accepts requests.

    Raises LocalError if `options.ends_unloaded` and nothing can be loaded.
    """
    urls = net.urls_of(sock)

    class Server(EndingServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(urls)

    def exit_soon() -> None:
        server.should_exit = True

    async def end() -> None:
        await gateway.drain(lambda: server.is_hurried)
        await gateway.stop()

    gateway = Gateway(placements, options, exit_soon)
    server = Server(gateway.app(), end, options.connections)
    server.run(sockets=[sock])
    if gateway.failure is not None:
        raise LocalError(gateway.failure)

"""Models are loaded, unloaded and pinned: by request, after idle time, and to make room for another one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tourkit.errors import RequestError, TourkitError, quoted
from tourkit.server.api.off_loop import parsed
from tourkit.server.api.replies import error_response, json_response
from tourkit.server.api.requests import model_of
from tourkit.server.gateway import bodies
from tourkit.server.gateway.supervisor import Worker
from tourkit.server.gateway.swapping import Swapper
from tourkit.server.http import CLIENT_LEFT, unless_hung_up
from tourkit.units import seconds_text

_LONGEST_LOOK = 5.0  # seconds between two looks for idle models
_LOOKS = 10  # in the time after which a model is idle, at least

CHANGES = ("load", "unload", "pin", "unpin")  # what a request can do to a model: the last part of the path
_Do = Callable[[Worker], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """When models are loaded and unloaded, and how long the server stops.

    `preload`: roles or model ids that are loaded at the start, None for all that fit; the others are loaded for their
    first request. `idle_timeout`: seconds without a request after which a model is unloaded, None for never. `drain`:
    seconds for running answers when the server must stop.
    """

    preload: tuple[str, ...] | None = None
    idle_timeout: float | None = None
    drain: float = 30.0


LIFETIMES = Lifetimes()


class Lifecycle:
    """Belongs to the gateway's event loop.

    `swapper`: returns who gives the turns. `find`: returns the worker of a role or model id, or raises RequestError.
    `say`: gets a line for each model that is unloaded after idle time.
    """

    def __init__(
        self, swapper: Callable[[], Swapper], find: Callable[[str], Worker], say: Callable[[str], None]
    ) -> None:
        self._swapper = swapper
        self._find = find
        self._say = say
        self._making_room = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        doing: tuple[_Do, ...] = (self._load, self._unload, self._pin, self._unpin)
        pairs = zip(CHANGES, doing, strict=True)
        return [Route(f"/v1/models/{name}", self._route(do), methods=["POST"]) for name, do in pairs]

    def _route(self, do: _Do) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                bodies.check_headers(request.scope)
                name = await parsed(await bodies.read_body(request), _asked)
                worker = self._find(name)
                is_done = await unless_hung_up(request.receive, _done(do(worker)))
            except ClientDisconnect:  # in the middle of its body
                return Response(status_code=CLIENT_LEFT)
            except TourkitError as exc:
                return error_response(exc)
            return json_response(200, self._report(name, worker)) if is_done else Response(status_code=CLIENT_LEFT)

        return answer

    def _report(self, name: str, worker: Worker) -> dict[str, Any]:
        holder = _holder(worker)
        return {
            "model": name,
            "state": holder.state.name.lower(),
            "answers": holder.answering.launch.title,
            "pinned": self._swapper().is_pinned(holder),
        }

    async def _load(self, worker: Worker) -> None:
        async with self._swapper().admitted(worker):
            pass

    async def _pin(self, worker: Worker) -> None:
        async with self._swapper().admitted(worker) as loaded:
            self._swapper().pin(loaded)

    async def _unpin(self, worker: Worker) -> None:
        self._swapper().unpin(_holder(worker))

    async def _unload(self, worker: Worker) -> None:
        await self._swapper().unload(_holder(worker))

    async def unload_idle(self, workers: Callable[[], list[Worker]], after: float) -> None:
        """Unload, for ever, each worker that has had no request for `after` seconds and is not pinned."""
        while True:
            await asyncio.sleep(min(after / _LOOKS, _LONGEST_LOOK))
            for worker in workers():
                idle = self._swapper().idle_for(worker)
                if idle is not None and idle >= after and not self._swapper().is_pinned(worker):
                    title = worker.current.launch.title
                    self._say(f"{title}: unloaded after {seconds_text(idle)} without a request; the next one loads it")
                    await self._swapper().unload(worker)

    async def make_room(self, worker: Worker, workers: list[Worker]) -> str:
        """Unload one other worker for a worker that found too little memory. Return its title, "" if there is none.

        It has memory on the same device and is not pinned. The one whose last request is the longest ago goes. If none
        is idle, one with running requests is unloaded when they have ended.
        """
        async with self._making_room:
            found = [each for each in workers if each is not worker and self._may_go(each, worker)]
            if not found:
                return ""
            chosen = min(found, key=lambda each: -(self._swapper().idle_for(each) or 0.0))
            await self._swapper().unload(chosen)
            return chosen.current.launch.title

    def _may_go(self, worker: Worker, wanting: Worker) -> bool:
        ours, theirs = ({memory.device for memory in each.current.memory} for each in (worker, wanting))
        shares = not ours or not theirs or bool(ours & theirs)
        return worker.answers_itself and shares and not self._swapper().is_pinned(worker)


def _holder(worker: Worker) -> Worker:
    """Return the worker that is loaded for the requests of `worker`."""
    while worker.stand_in is not None:
        worker = worker.stand_in
    return worker


async def _done(work: Awaitable[None]) -> bool:
    await work
    return True


def _asked(body: Any) -> str:
    """Return the model of a body, which has no other field. Raises RequestError."""
    name = model_of(body)
    for field in body:
        if field != "model":
            raise RequestError(f"{quoted(field)}: this route takes only model: leave it out", param=field)
    return name

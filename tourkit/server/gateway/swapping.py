"""Workers that take turns: requests wait for the turn of their model, one worker is evicted, then another is loaded.

Who is next is decided in `turns`. All that take turns do so together, whatever device they are on: each takes some of
the RAM, and the plan holds memory free for the largest of them only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable

from tourkit.errors import EngineDead, QueueFull
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.server.gateway.turns import Phase, Step, Turns

_MOST_WAITING = 256  # requests for one model that is not loaded


class Swapper:
    """Lets requests in to workers, and loads and evicts those that take turns. Belongs to the gateway's event loop."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = {worker.placement.launch.title: worker for worker in workers if not worker.placement.resident}
        self._turns = Turns()
        self._numbers = itertools.count()
        self._doors: dict[int, asyncio.Future[None]] = {}  # of requests that wait, opened when they are let in
        self._swap: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def takes_turns(self) -> bool:
        return bool(self._workers)

    @property
    def loaded(self) -> Worker | None:
        """The one of those that take turns which answers at once."""
        worker = self._workers.get(self._turns.holder or "")
        return worker if worker is not None and worker.state is State.READY and worker.stand_in is None else None

    @property
    def phase(self) -> Phase:
        return self._turns.phase

    @property
    def swaps(self) -> int:
        return self._turns.swaps

    @property
    def waiting(self) -> int:
        """Requests that wait for their model's turn."""
        return self._turns.waiting

    def begin(self) -> None:
        """Load the first of them: there is room for one."""
        first = next(iter(self._workers), None)
        if first is not None:
            self._obey(self._turns.begin(first))

    @contextlib.asynccontextmanager
    async def admitted(self, worker: Worker) -> AsyncIterator[Worker]:
        """Wait until what answers for a worker is loaded; it stays so within the block.

        Raises EngineDead when nothing can be loaded, QueueFull when too many wait already.
        """
        while True:
            async with self._turn_of(worker):
                found = await worker.ready()
                if found is worker:
                    yield worker
                    return
            worker = found

    @contextlib.asynccontextmanager
    async def _turn_of(self, worker: Worker) -> AsyncIterator[None]:
        """Within the block it is the worker's turn. What is always loaded, or never will be, waits for none."""
        if worker.placement.resident or worker.stand_in is not None or worker.state in (State.FAILED, State.STOPPED):
            yield
            return
        if self._turns.waiting_for(worker.placement.launch.title) >= _MOST_WAITING:
            raise QueueFull(
                f"{_MOST_WAITING} requests wait for the turn of {worker.placement.launch.model} already: ask later"
            )
        if self._closed:
            raise EngineDead("the server is being stopped")
        number = next(self._numbers)
        door = self._doors[number] = asyncio.get_running_loop().create_future()
        try:
            self._obey(self._turns.ask(number, worker.placement.launch.title))
            await door
            yield
        finally:
            del self._doors[number]
            self._obey(self._turns.leave(number))

    def _obey(self, step: Step) -> None:
        for number in step.admit:
            if not self._doors[number].done():  # its client may have hung up just now
                self._doors[number].set_result(None)
        if step.load is not None and not self._closed:
            self._swap = asyncio.create_task(self._change(step.evict, step.load))

    async def _change(self, evict: str | None, load: str) -> None:
        """First the memory is given back, then it is taken."""
        if evict is not None:
            await self._workers[evict].unload()
        worker = self._workers[load]
        if worker.state is State.UNLOADED and not self._closed:
            worker.start()
        await worker.settled()
        self._obey(self._turns.loaded())

    def close(self) -> None:
        """Load nothing more, and let nobody wait. A swap ends when its workers are stopped. Idempotent."""
        self._closed = True
        for door in self._doors.values():
            if not door.done():
                door.set_exception(EngineDead("the server is being stopped"))

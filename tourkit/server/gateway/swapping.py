"""Workers that take turns: requests wait for the turn of their model; one worker is evicted, then another is loaded.

`turns` decides which model is next. All workers that take turns share one turn, even on different devices: each needs
RAM, and the plan holds memory free only for the largest of them.
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
    """Admits requests to workers, and loads and evicts workers that take turns. Belongs to the gateway's event loop."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = {worker.placement.launch.title: worker for worker in workers if not worker.placement.resident}
        self._turns = Turns()
        self._numbers = itertools.count()
        self._doors: dict[int, asyncio.Future[None]] = {}  # one for each waiting request; done once it is admitted
        self._swap: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def takes_turns(self) -> bool:
        return bool(self._workers)

    @property
    def loaded(self) -> Worker | None:
        """The worker that has the turn and answers at once; None if there is none."""
        worker = self._workers.get(self._turns.holder or "")
        return worker if worker is not None and worker.answers_itself else None

    @property
    def phase(self) -> Phase:
        return self._turns.phase

    @property
    def swaps(self) -> int:
        return self._turns.swaps

    @property
    def waiting(self) -> int:
        """How many requests wait for the turn of their model."""
        return self._turns.waiting

    def begin(self) -> None:
        """Load the first worker that takes turns: there is memory for one."""
        first = next(iter(self._workers), None)
        if first is not None:
            self._obey(self._turns.begin(first))

    @contextlib.asynccontextmanager
    async def admitted(self, worker: Worker) -> AsyncIterator[Worker]:
        """Wait until a worker, or the worker that answers for it, is loaded. It stays loaded within the block.

        Raises EngineDead if nothing can be loaded or the worker dies again and again, QueueFull if too many requests
        already wait.
        """
        while True:
            async with self._turn_of(worker):
                found = await worker.ready(within=worker.timeouts.asked_again)
                if found is worker:
                    yield worker
                    return
            worker = found

    @contextlib.asynccontextmanager
    async def _turn_of(self, worker: Worker) -> AsyncIterator[None]:
        """Within the block the worker has the turn. A worker that stays loaded, or cannot be loaded, needs no turn."""
        if worker.placement.resident or worker.stand_in is not None or worker.state in (State.FAILED, State.STOPPED):
            yield
            return
        if self._turns.waiting_for(worker.placement.launch.title) >= _MOST_WAITING:
            raise QueueFull(
                f"{_MOST_WAITING} requests are already waiting for {worker.placement.launch.model}: try again later"
            )
        if self._closed:
            raise EngineDead("the server is stopping")
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
            if not self._doors[number].done():  # it is done if the client has just hung up
                self._doors[number].set_result(None)
        if step.load is not None and not self._closed:
            self._swap = asyncio.create_task(self._change(step.evict, step.load))

    async def _change(self, evict: str | None, load: str) -> None:
        """Unload one worker and load another. The memory must be free before it is used again."""
        if evict is not None:
            await self._workers[evict].unload()
        worker = self._workers[load]
        if worker.state is State.UNLOADED and not self._closed:
            worker.start()
        await worker.settled()
        self._obey(self._turns.loaded())

    def close(self) -> None:
        """Load nothing more, and end all waiting with an error. Idempotent.

        A running swap ends when its workers are stopped.
        """
        self._closed = True
        for door in self._doors.values():
            if not door.done():
                door.set_exception(EngineDead("the server is stopping"))

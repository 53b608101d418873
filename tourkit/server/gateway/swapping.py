"""Loads and unloads workers: for requests, in turns, and when somebody asks for it.

`turns` decides which model is next. All workers that take turns share one turn, even on different devices: each needs
RAM, and the plan holds memory free only for the largest of them. A worker that stays in memory has a turn of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Collection, Iterable

from tourkit.errors import EngineDead, QueueFull, RequestError
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.server.gateway.turns import Phase, Step, Turns

_MOST_WAITING = 256  # requests for one model that takes turns and is not loaded
_STOPPING = "the server is stopping"


class Swapper:
    """Admits requests to workers, and loads and unloads workers. Belongs to the gateway's event loop."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._names = {worker: str(i) for i, worker in enumerate(workers)}  # the names of workers in `turns`
        self._workers = {name: worker for worker, name in self._names.items()}
        self._shared = Turns()
        self._turns = {
            worker: Turns() if worker.placement.resident else self._shared for worker in self._workers.values()
        }
        self._pinned: set[Worker] = set()
        self._first_load: set[Worker] = set()  # loading since the start of the server, before any request
        self._used = dict.fromkeys(self._turns, time.monotonic())
        self._numbers = itertools.count()
        self._doors: dict[int, asyncio.Future[None]] = {}  # one for each waiting request; done once it is admitted
        self._leaving: dict[Worker, asyncio.Future[None]] = {}  # done once the worker's memory is free
        self._changes: set[asyncio.Task[None]] = set()
        self.is_closed = False

    @property
    def takes_turns(self) -> bool:
        return any(not worker.placement.resident for worker in self._turns)

    @property
    def loaded(self) -> Worker | None:
        """The worker that has the shared turn and answers at once; None if there is none."""
        worker = self._workers.get(self._shared.holder or "")
        return worker if worker is not None and worker.answers_itself else None

    @property
    def phase(self) -> Phase:
        return self._shared.phase

    @property
    def swaps(self) -> int:
        return self._shared.swaps

    @property
    def waiting(self) -> int:
        """How many requests wait for the turn of their model."""
        return self._shared.waiting

    def is_pinned(self, worker: Worker) -> bool:
        return worker in self._pinned

    def loads_for_requests(self, worker: Worker) -> bool:
        """Whether it is being loaded because of requests, which wait for it. False for loads at the server's start."""
        in_turn = not worker.placement.resident
        turns = self._turns.get(worker)
        return in_turn or (turns is not None and turns.phase is Phase.SWAPPING and worker not in self._first_load)

    def idle_for(self, worker: Worker) -> float | None:
        """Return for how many seconds a loaded worker has had no request; None if it has one or is not loaded."""
        turns = self._turns.get(worker)
        if turns is None or not worker.answers_itself or turns.holder != self._names[worker] or not turns.is_idle:
            return None
        return time.monotonic() - self._used[worker]

    def begin(self, preloaded: Collection[Worker] | None = None) -> None:
        """Load workers before the first request: `preloaded`, or all that fit. There is memory for one in turn."""
        chosen = [worker for worker in self._turns if preloaded is None or worker in preloaded]
        in_turn = next((worker for worker in chosen if not worker.placement.resident), None)
        for worker in chosen:
            if worker.placement.resident or worker is in_turn:
                self._first_load.add(worker)
                self._obey(self._turns[worker], self._turns[worker].begin(self._names[worker]))

    @contextlib.asynccontextmanager
    async def admitted(self, worker: Worker) -> AsyncIterator[Worker]:
        """Wait until a worker, or the worker that answers for it, is loaded. It stays loaded within the block.

        Raises EngineDead if nothing can be loaded or the worker dies again and again, QueueFull if too many requests
        already wait, RequestError if a pinned worker keeps the turn.
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
        """Within the block the worker has the turn. A worker that cannot be loaded needs none."""
        if self.is_closed:
            raise EngineDead(_STOPPING)
        if worker.stand_in is not None or worker.state in (State.FAILED, State.STOPPED):
            yield
            return
        turns, name = self._turns[worker], self._names[worker]
        self._check_may_wait(worker)
        number = next(self._numbers)
        door = self._doors[number] = asyncio.get_running_loop().create_future()
        try:
            self._obey(turns, turns.ask(number, name))
            await door
            yield
        finally:
            del self._doors[number]
            self._used[worker] = time.monotonic()
            self._obey(turns, turns.leave(number))

    def _check_may_wait(self, worker: Worker) -> None:
        if worker.placement.resident:
            return
        holder = next((each for each in self._pinned if not each.placement.resident), worker)
        if holder is not worker:
            raise _pinned(worker, holder)
        if self._shared.waiting_for(self._names[worker]) >= _MOST_WAITING:
            raise QueueFull(
                f"{_MOST_WAITING} requests are already waiting for {worker.placement.launch.model}: try again later"
            )

    def pin(self, worker: Worker) -> None:
        """Keep a worker that is admitted now in memory. If it takes turns, requests for the others are refused."""
        self._pinned.add(worker)
        if worker.placement.resident:
            return
        for number in self._shared.numbers_for_others(self._names[worker]):
            door, refused = self._doors[number], self._workers[self._shared.model_of(number)]
            if not door.done():
                door.set_exception(_pinned(refused, worker))
            self._obey(self._shared, self._shared.leave(number))  # before the turn can go to it

    def unpin(self, worker: Worker) -> None:
        """Let a worker be unloaded again. Do nothing if it is not pinned."""
        self._pinned.discard(worker)

    async def unload(self, worker: Worker) -> None:
        """Unload a worker when its running requests have ended. Return when its memory is free. It is unpinned.

        The next request loads it again. Do nothing if it is not loaded.
        """
        self.unpin(worker)
        turns = self._turns[worker]
        if turns.holder != self._names[worker]:
            return
        gone = self._leaving.get(worker)
        if gone is None:
            gone = self._leaving[worker] = asyncio.get_running_loop().create_future()
        self._obey(turns, turns.unload(self._names[worker]))
        await asyncio.shield(gone)

    def _obey(self, turns: Turns, step: Step) -> None:
        for number in step.admit:
            if not self._doors[number].done():  # it is done if the client has just hung up
                self._doors[number].set_result(None)
        if (step.load is not None or step.evict is not None) and not self.is_closed:
            change = asyncio.create_task(self._change(turns, step))
            self._changes.add(change)
            change.add_done_callback(self._changes.discard)

    async def _change(self, turns: Turns, step: Step) -> None:
        """Unload one worker and load another. The memory must be free before it is used again."""
        if step.evict is not None:
            evicted = self._workers[step.evict]
            await evicted.unload()
            if gone := self._leaving.pop(evicted, None):
                gone.set_result(None)
        if step.load is None:
            self._obey(turns, turns.unloaded())
            return
        worker = self._workers[step.load]
        if worker.state is State.UNLOADED and not self.is_closed:
            worker.start()
        await worker.settled()
        self._first_load.discard(worker)
        self._used[worker] = time.monotonic()
        self._obey(turns, turns.loaded())

    def close(self) -> None:
        """Load nothing more, and end all waiting with an error. Idempotent.

        A running swap ends when its workers are stopped.
        """
        self.is_closed = True
        for door in self._doors.values():
            if not door.done():
                door.set_exception(EngineDead(_STOPPING))
        for gone in self._leaving.values():
            gone.set_result(None)
        self._leaving.clear()


def _pinned(worker: Worker, holder: Worker) -> RequestError:
    asked, kept = worker.placement.launch.model, holder.placement.launch.model
    return RequestError(
        f"{asked} takes turns with {kept}, which is pinned: send POST /v1/models/unpin for {kept} first",
        param="model",
        code="model_pinned",
        status=409,
    )

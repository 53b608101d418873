"""Life of one worker: starting, ready, failed, stopped; unloaded, where it takes turns with others.

Waiters are woken on every change that answers them. What cannot be loaded is replaced by the next of its fallbacks.
`process` runs what is loaded.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from enum import Enum, auto

from tourkit.errors import EngineDead
from tourkit.planning.plan import Placement
from tourkit.server.contract import WorkerSpec
from tourkit.server.gateway.process import Ending, WorkerProcess

_MAX_CRASHES = 3  # in a row without one answered request in between: then the worker stays down


class State(Enum):
    UNLOADED = auto()  # it is not its turn
    STARTING = auto()
    READY = auto()
    FAILED = auto()
    STOPPED = auto()


class Worker:
    """One variant that is kept loaded, or one of its fallbacks. All methods belong to the gateway's event loop.

    `placement` is what was planned, `current` what is loaded, `answering` what answers. `say` hears of a fallback.
    `others`: the worker that holds what a fallback names, if there is one: it then answers for this one too.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        uds: str,
        offline: bool,
        say: Callable[[str], None] = lambda text: None,
        others: Callable[[Placement], Worker | None] = lambda placement: None,
    ) -> None:
        self.placement = placement
        self.current = placement
        self.stand_in: Worker | None = None
        self.state = State.STARTING if placement.resident else State.UNLOADED
        self.error: str | None = None
        self.passed_over: list[str] = []  # a line for each that could not be loaded
        self.address = ""
        self.secret = secrets.token_hex(16)
        self.restarts = 0
        self.started = 0.0  # by the monotonic clock
        self._uds = uds
        self._offline = offline
        self._say = say
        self._others = others
        self._crashes = 0
        self._told_to_be: State | None = None  # UNLOADED or STOPPED, once told to end
        self._process: WorkerProcess | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load, in a process of its own: what was loaded last, or what was planned."""
        self._told_to_be = None
        self.state = State.STARTING
        self.started = time.monotonic()
        self._task = asyncio.create_task(self._supervise())

    async def settled(self) -> None:
        """Wait until it is known whether this can be loaded."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state not in (State.STARTING, State.UNLOADED))

    async def ready(self) -> Worker:
        """Wait until this is loaded; itself, or the worker that stands in for it, which may not be ready.

        Raises EngineDead when nothing can be loaded, or when it is being stopped.
        """
        await self.settled()
        if self.state is not State.READY:
            raise EngineDead(
                self.error or f"{self.placement.launch.model} {self.placement.launch.quant}: the worker is stopped"
            )
        return self if self.stand_in is None else self.stand_in

    def answered(self) -> None:
        """A request went well: earlier crashes are forgiven."""
        self._crashes = 0

    @property
    def pid(self) -> int | None:
        """The id of its process while that runs."""
        return self._process.pid if self._process is not None else None

    @property
    def answering(self) -> Placement:
        """What answers requests here."""
        return self.current if self.stand_in is None else self.stand_in.answering

    async def stop(self) -> None:
        """End for good."""
        await self._end(State.STOPPED)

    async def unload(self) -> None:
        """Give the memory back, until the next start. Where nothing can be loaded there is nothing to give back."""
        if self.state in (State.STARTING, State.READY) and self.stand_in is None:
            await self._end(State.UNLOADED)

    async def _end(self, state: State) -> None:
        """Have the process end, and wait until it is gone with all that it started."""
        self._told_to_be = state
        await self._become(state)
        if self._process is not None:
            await self._process.end()
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        """Keep what was planned loaded or, one after the other, its fallbacks, until told to stop or none is left."""
        candidates = (self.placement, *self.placement.fallbacks)[len(self.passed_over) :]
        for candidate, following in zip(candidates, (*candidates[1:], None), strict=True):
            other = self._others(candidate) if candidate is not self.placement else None
            if other is not None:
                self.stand_in = other
                await self._become(State.READY)
                return
            if candidate is not self.current:
                self.current, self._crashes = candidate, 0
            reason = await self._keep(candidate, is_last=following is None)
            if reason is None:
                return
            launch = candidate.launch
            failure = f"{launch.model} {launch.quant} on {launch.stack}: {reason}"
            self.passed_over.append(failure)
            if following is not None:
                self._say(f"{', '.join(candidate.roles)}: {failure}; falling back to {following.launch.title}")
        self.error = "; ".join(self.passed_over)
        await self._become(State.FAILED)

    async def _keep(self, placement: Placement, *, is_last: bool) -> str | None:
        """Keep a process that has this loaded; why that is given up, or None when told to stop."""
        while not self._must_end():
            ending = await self._run(placement)
            if self._must_end():
                break
            if ending.told:
                return ending.why  # a reason was given: trying again would give the same one
            if not ending.was_ready and not is_last:
                return f"it ended while loading: {ending.why}"
            self._crashes += 1
            if self._crashes >= _MAX_CRASHES:
                return f"the worker ended {self._crashes} times in a row, last with {ending.why}"
            self.restarts += 1
        return None

    async def _run(self, placement: Placement) -> Ending:
        """One process from start to end."""
        spec = WorkerSpec(placement.launch, placement.roles, self._uds, self.secret, self._offline)
        self._process = WorkerProcess(spec, placement.device)
        return await self._process.run(self._answers_at, self._no_longer_answers)

    async def _answers_at(self, address: str) -> None:
        self.address = address
        await self._become(State.READY)

    async def _no_longer_answers(self) -> None:
        await self._become(State.STARTING)

    def _must_end(self) -> bool:
        return self._told_to_be is not None

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = self._told_to_be or state
            self._changed.notify_all()

"""The life of one worker: starting, ready, failed or stopped; also unloaded if it takes turns with others.

Waiting requests are woken at every change of the state. A variant that cannot be loaded is replaced by its next
fallback. If the planned variant finds too little memory, it is planned again once before that. `process` runs the
process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from tourkit.backends.out_of_memory import is_out_of_memory
from tourkit.errors import EngineDead
from tourkit.planning.plan import Placement
from tourkit.server.contract import WorkerSpec
from tourkit.server.gateway.process import Ending, WorkerProcess

_MAX_CRASHES = 3  # in a row, without an answered request in between; then the variant is given up


class State(Enum):
    UNLOADED = auto()  # another model has the turn
    STARTING = auto()
    READY = auto()
    FAILED = auto()
    STOPPED = auto()


class Worker:
    """One worker process and its state. It keeps a variant loaded, or one of its fallbacks.

    `placement`: the planned variant. `current`: the variant in use. `answering`: the variant that answers; it may be in
    another worker. `say`: gets a message for each fallback. `others`: finds the worker that already holds a fallback;
    that worker then answers for this one too. `plan_again`: returns a new placement for the memory that is free now,
    None if there is no other; None if nobody plans again. `only_gpu`: as in WorkerProcess. `guard`: as in WorkerSpec.
    All methods belong to the gateway's event loop.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        uds: str,
        offline: bool,
        say: Callable[[str], None] = lambda text: None,
        others: Callable[[Placement], Worker | None] = lambda placement: None,
        plan_again: Callable[[Worker], Awaitable[Placement | None]] | None = None,
        only_gpu: bool = False,
        guard: str = "",
    ) -> None:
        self.placement = placement
        self.current = placement
        self.stand_in: Worker | None = None
        self.state = State.STARTING if placement.resident else State.UNLOADED
        self.error: str | None = None
        self.passed_over: list[str] = []  # one line for each variant that could not be loaded
        self.waits_for_plan = False  # its process has ended, and its new plan is not made yet
        self.address = ""
        self.secret = secrets.token_hex(16)
        self.restarts = 0
        self.started = 0.0  # seconds of the monotonic clock
        self._uds = uds
        self._offline = offline
        self._say = say
        self._others = others
        self._plan_again = plan_again
        self._only_gpu = only_gpu
        self._guard = guard
        self._chain = [placement, *placement.fallbacks]  # in the order of loading
        self._crashes = 0
        self._end_state: State | None = None  # UNLOADED or STOPPED after a request to end
        self._process: WorkerProcess | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load the variant of the last time, or the planned one at first, in a new process."""
        self._end_state = None
        self.state = State.STARTING
        self.started = time.monotonic()
        self._task = asyncio.create_task(self._supervise())

    async def settled(self) -> None:
        """Wait until loading has succeeded or failed, or until the worker is stopped."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state not in (State.STARTING, State.UNLOADED))

    async def quiet(self) -> None:
        """Wait until it loads nothing: as `settled`, or until it waits for its new plan or is unloaded."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state is not State.STARTING or self.waits_for_plan)

    async def ready(self) -> Worker:
        """Wait until this worker is loaded. Return it, or the worker that answers for it, which may not be ready.

        Raises EngineDead if nothing can be loaded or if the worker is stopped.
        """
        await self.settled()
        if self.state is not State.READY:
            raise EngineDead(
                self.error or f"{self.placement.launch.model} {self.placement.launch.quant}: the worker is stopped"
            )
        return self if self.stand_in is None else self.stand_in

    def answered(self) -> None:
        """Record that a request was answered: the count of crashes starts again."""
        self._crashes = 0

    @property
    def pid(self) -> int | None:
        """The id of its process; None if no process runs."""
        return self._process.pid if self._process is not None else None

    @property
    def guard(self) -> str:
        """What keeps the process that answers offline; empty if it is not loaded or not offline."""
        if self.stand_in is not None:
            return self.stand_in.guard
        return self._process.guard if self._process is not None and self.state is State.READY else ""

    @property
    def answering(self) -> Placement:
        """The variant that answers the requests for this worker."""
        return self.current if self.stand_in is None else self.stand_in.answering

    async def stop(self) -> None:
        """End the worker; it is not started again."""
        await self._end(State.STOPPED)

    async def unload(self) -> None:
        """Free the memory until the next start. Do nothing if this worker has no process of its own."""
        if self.state in (State.STARTING, State.READY) and self.stand_in is None:
            await self._end(State.UNLOADED)

    async def _end(self, state: State) -> None:
        """End the process, and wait until it and all processes that it started are gone."""
        self._end_state = state
        await self._become(state)
        if self._process is not None:
            await self._process.end()
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        """Keep the planned variant loaded; if it fails, its fallbacks one after the other.

        Return when the worker must end, when another worker answers for it, or when no fallback is left.
        """
        while len(self.passed_over) < len(self._chain):
            candidate = self._chain[len(self.passed_over)]
            other = self._others(candidate) if candidate is not self.placement else None
            if other is not None:
                self.stand_in = other
                await self._become(State.READY)
                return
            if candidate is not self.current:
                self.current, self._crashes = candidate, 0
            reason = await self._keep(candidate, is_last=candidate is self._chain[-1])
            if reason is None:
                return
            await self._give_up(candidate, reason)
        self.error = "; ".join(self.passed_over)
        await self._become(State.FAILED)

    async def _give_up(self, candidate: Placement, reason: str) -> None:
        """Record why a variant is given up, and say what is loaded instead. If memory ran out, plan again first."""
        launch = candidate.launch
        failure = f"{launch.model} {launch.quant} on {launch.stack}: {reason}"
        self.passed_over.append(failure)
        made = await self._new_plan() if self._is_to_plan_again(candidate, reason) else None
        if made is not None:
            self._chain.insert(len(self.passed_over), made)
        following = self._chain[len(self.passed_over) :]
        if not following:
            return
        instead = following[0].launch
        what = f"falling back to {instead.title}"
        if made is not None:
            what = (
                f"planned again for the memory that is free now: {instead.title}, {instead.context} tokens a sequence"
            )
        self._say(f"{', '.join(candidate.roles)}: {failure}; {what}")

    def _is_to_plan_again(self, candidate: Placement, reason: str) -> bool:
        """Whether it found too little memory for the planned variant. A fallback gets no new plan."""
        return self._plan_again is not None and candidate is self.placement and is_out_of_memory(reason)

    async def _new_plan(self) -> Placement | None:
        assert self._plan_again is not None
        self.waits_for_plan = True
        await self._become(self.state)  # wake those who wait until it is quiet
        try:
            return await self._plan_again(self)
        finally:
            self.waits_for_plan = False

    async def _keep(self, placement: Placement, *, is_last: bool) -> str | None:
        """Keep a process with this variant running. Return why it is given up; None if the worker must end."""
        while not self._must_end():
            ending = await self._run(placement)
            if self._must_end():
                break
            if ending.gave_reason:
                return ending.why  # the process gave a reason: another try would give the same one
            if not ending.was_ready and (not is_last or self._is_to_plan_again(placement, ending.why)):
                return f"it ended while loading: {ending.why}"
            self._crashes += 1
            if self._crashes >= _MAX_CRASHES:
                return f"the worker ended {self._crashes} times in a row, last with {ending.why}"
            self.restarts += 1
        return None

    async def _run(self, placement: Placement) -> Ending:
        """Run one process from start to end."""
        spec = WorkerSpec(placement.launch, placement.roles, self._uds, self.secret, self._offline, self._guard)
        self._process = WorkerProcess(spec, placement.device, only_gpu=self._only_gpu)
        return await self._process.run(self._answers_at, self._no_longer_answers)

    async def _answers_at(self, address: str) -> None:
        self.address = address
        await self._become(State.READY)

    async def _no_longer_answers(self) -> None:
        await self._become(State.STARTING)

    def _must_end(self) -> bool:
        return self._end_state is not None

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = self._end_state or state
            self._changed.notify_all()

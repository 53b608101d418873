"""The life of one worker: unloaded, starting, ready, hung, restarting, failed or stopped.

Waiting requests are woken at every change of the state. A variant that cannot be loaded is replaced by its next
fallback. If it finds too little memory, two things come before that. The first time, the planned variant is planned
again for the memory that is free. Else one other model is unloaded, and the load is tried once more. A worker that has
loaded once is never given up: its last variant is started again for ever, with growing pauses. `process` runs the
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
from tourkit.server.contract import Greeting, WorkerSpec
from tourkit.server.gateway.lane import Lane
from tourkit.server.gateway.process import Ending, WorkerProcess
from tourkit.server.gateway.watchdog import TIMEOUTS, WorkerTimeouts

_MAX_DEATHS = 3  # in a row, without an answered request in between; then a variant that is not the last is given up


class State(Enum):
    UNLOADED = auto()  # its next request loads it: in its turn, or at once
    STARTING = auto()
    READY = auto()
    HUNG = auto()  # loaded, but it gives no sign of life
    RESTARTING = auto()  # its process has ended, and the next one starts after a pause
    FAILED = auto()
    STOPPED = auto()


class Worker:
    """One worker process and its state. It keeps a variant loaded, or one of its fallbacks.

    `placement`: the planned variant. `current`: the variant in use. `answering`: the variant that answers; it may be in
    another worker. `say`: gets a message for each fallback. `others`: finds the worker that already holds a fallback;
    that worker then answers for this one too. `plan_again`: returns a new placement for the memory that is free now,
    None if there is no other; None if nobody plans again. `make_room`: unloads another model and returns its title, ""
    if there is none to unload. `only_gpu`: as in WorkerProcess. `guard`: as in WorkerSpec.
    `run`: how many processes have ended so far. All methods belong to the gateway's event loop.
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
        make_room: Callable[[Worker], Awaitable[str]] | None = None,
        only_gpu: bool = False,
        timeouts: WorkerTimeouts = TIMEOUTS,
        guard: str = "",
    ) -> None:
        self.timeouts = timeouts
        self.lane = Lane()
        self.placement = placement
        self.current = placement
        self.stand_in: Worker | None = None
        self.state = State.UNLOADED
        self.error: str | None = None
        self.passed_over: list[str] = []  # one line for each variant that could not be loaded
        self.waits_for_plan = False  # its process has ended, and its new plan is not made yet
        self.address = ""
        self.secret = secrets.token_hex(16)
        self.restarts = 0
        self.run = 0
        self.last_death: str | None = None
        self.next_start = 0.0  # seconds of the monotonic clock; while RESTARTING
        self.started = 0.0  # seconds of the monotonic clock
        self._uds = uds
        self._offline = offline
        self._say = say
        self._others = others
        self._plan_again = plan_again
        self._make_room = make_room
        self._has_asked_for_room = False  # since its start
        self._made: Placement | None = None  # by a new plan that is not used yet
        self._has_no_plan = False  # a new plan was just asked for, and there is none
        self._only_gpu = only_gpu
        self._guard = guard
        self._chain = [placement, *placement.fallbacks]  # in the order of loading
        self._deaths = 0  # in a row, without an answer in between
        self._loaded: Placement | None = None  # the variant that was loaded last
        self._tried: frozenset[str] = frozenset()  # requests in their trial when the last process ended
        self._end_state: State | None = None  # UNLOADED or STOPPED after a request to end
        self._process: WorkerProcess | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load the variant of the last time, or the planned one at first, in a new process."""
        self._end_state, self._has_asked_for_room = None, False
        self.state = State.STARTING
        self.started = time.monotonic()
        self._task = asyncio.create_task(self._supervise())

    async def settled(self) -> None:
        """Wait until loading has succeeded or failed, also if only for now, or until the worker is stopped."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state not in (State.STARTING, State.UNLOADED))

    async def quiet(self) -> None:
        """Wait until it loads nothing: as `settled`, or until it waits for its new plan or is unloaded."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state is not State.STARTING or self.waits_for_plan)

    async def ready(self, *, within: float | None = None) -> Worker:
        """Wait until this worker is loaded. Return it, or the worker that answers for it, which may not be ready.

        `within`: seconds to wait for a worker that dies again and again; a load is always waited for. Raises EngineDead
        if nothing can be loaded, if the worker is stopped, or if this time is over.
        """
        until = None if within is None else time.monotonic() + within
        while self.state in (State.UNLOADED, State.STARTING, State.HUNG, State.RESTARTING):
            left = until - time.monotonic() if until is not None and self.state is State.RESTARTING else None
            if not await self._changes(self.state, left):
                raise EngineDead(self.trouble())
        if self.state is not State.READY:
            raise EngineDead(self.error or f"{self._name}: the worker is stopped")
        return self if self.stand_in is None else self.stand_in

    async def _changes(self, state: State, seconds: float | None) -> bool:
        """Wait until the state is another one, and return True; False if the time is over first. None: no limit."""
        try:
            async with self._changed, asyncio.timeout(seconds):
                await self._changed.wait_for(lambda: self.state is not state)
        except TimeoutError:
            return False
        return True

    async def ended(self, run: int) -> None:
        """Wait until the process that was number `run` has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.run != run)

    def was_tried(self, request: str) -> bool:
        """Whether the constraint of this request was being tried when the last process ended."""
        return request in self._tried

    def trouble(self) -> str:
        """Return what a client reads whose request cannot be answered because the worker has died."""
        pause = self.next_start - time.monotonic()
        when = f"in {pause:.0f} s" if self.state is State.RESTARTING and pause >= 1 else "now"
        return f"{self._name}: the worker ended ({self.last_death}), and it is started again {when}: ask again later"

    def answered(self) -> None:
        """Record that a request was answered: the count of deaths starts again."""
        self._deaths = 0

    @property
    def answers_itself(self) -> bool:
        """Whether it is loaded, and no other worker answers for it."""
        return self.state is State.READY and self.stand_in is None

    @property
    def _name(self) -> str:
        return f"{self.current.launch.model} {self.current.launch.quant}"

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
    def prefix_sharing(self) -> str:
        """How prompts share their beginnings, as in Greeting; empty if it is not loaded."""
        if self.stand_in is not None:
            return self.stand_in.prefix_sharing
        return self._process.prefix_sharing if self._process is not None and self.state is State.READY else ""

    @property
    def answering(self) -> Placement:
        """The variant that answers the requests for this worker."""
        return self.current if self.stand_in is None else self.stand_in.answering

    async def stop(self) -> None:
        """End the worker; it is not started again."""
        await self._end(State.STOPPED)

    async def unload(self) -> None:
        """Free the memory until the next start. Do nothing if this worker has no process of its own."""
        if self.state not in (State.UNLOADED, State.FAILED, State.STOPPED) and self.stand_in is None:
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

        Return when the worker must end, when another worker answers for it, or when nothing could ever be loaded. If
        no fallback is left, the variant that was loaded last is kept.
        """
        reason: str | None = None
        while len(self.passed_over) < len(self._chain):
            candidate = self._chain[len(self.passed_over)]
            other = self._others(candidate) if candidate is not self.placement else None
            if other is not None:
                self.stand_in = other
                await self._become(State.READY)
                return
            if candidate is not self.current:
                self.current, self._deaths = candidate, 0
            reason = await self._keep(candidate, is_last=candidate is self._chain[-1])
            if reason is None:
                return
            await self._give_up(candidate, reason)
        if self._loaded is None:
            self.error = "; ".join(self.passed_over)
            await self._become(State.FAILED)
            return
        if self.current is not self._loaded:
            self.current = self._loaded
            about = f"{self.passed_over[-1]}; going back to {self.current.launch.title}"
            self._say(f"{', '.join(self.current.roles)}: {about}")
        elif reason is not None:
            await self._pause(self.current, reason)
        while not self._must_end():
            ending = await self._run(self.current)
            if not self._must_end():
                await self._pause(self.current, ending.why)

    async def _give_up(self, candidate: Placement, reason: str) -> None:
        """Record why a variant is given up, and say what is loaded instead. If memory ran out, plan again first."""
        launch = candidate.launch
        failure = f"{launch.model} {launch.quant} on {launch.stack}: {reason}"
        self.passed_over.append(failure)
        made, self._made = self._made, None
        if made is None and self._is_to_plan_again(candidate, reason) and not self._has_no_plan:
            made = await self._new_plan()
        self._has_no_plan = False
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
            if not ending.was_ready and await self._gets_room(placement, ending.why):
                continue
            if reason := self._to_give_up(placement, ending, is_last=is_last):
                return reason
            await self._pause(placement, ending.why)
        return None

    async def _gets_room(self, placement: Placement, why: str) -> bool:
        """Unload another model if a load found too little memory. Return whether the load is to be tried again.

        This is done once after each start. What never loaded gets a new plan first, if there is one.
        """
        if self._make_room is None or self._has_asked_for_room or not is_out_of_memory(why):
            return False
        if self._loaded is None and self._is_to_plan_again(placement, why):
            self._made = await self._new_plan()
            if self._made is not None:
                return False
            self._has_no_plan = True
        self._has_asked_for_room = True
        unloaded = await self._make_room(self)
        if unloaded:
            self._has_no_plan = False
            about = f"{why}; {unloaded} is unloaded, and {placement.launch.title} is tried once more"
            self._say(f"{', '.join(placement.roles)}: {about}")
        return bool(unloaded)

    def _to_give_up(self, placement: Placement, ending: Ending, *, is_last: bool) -> str | None:
        """Return why a variant is given up after its process has ended; None if it is started again."""
        was_loaded = is_last and self._loaded is placement
        plans_again = self._is_to_plan_again(placement, ending.why)
        if ending.gave_reason and (plans_again or not was_loaded):
            return ending.why  # the process gave a reason: another try would give the same one
        if not ending.was_ready and (plans_again or not is_last):
            return f"it ended while loading: {ending.why}"
        if self._deaths >= _MAX_DEATHS and not was_loaded:
            return f"the worker ended {self._deaths} times in a row, last with {ending.why}"
        return None

    async def _run(self, placement: Placement) -> Ending:
        """Run one process from start to end."""
        timeouts = self.timeouts
        spec = WorkerSpec(
            placement.launch, placement.roles, self._uds, self.secret, self._offline, timeouts.beat, self._guard
        )
        process = self._process = WorkerProcess(spec, placement.device, only_gpu=self._only_gpu, timeouts=timeouts)
        ending = await process.run(self._answers_at, self._is_silent, self._no_longer_answers)
        if not self._must_end():
            self._deaths += 1
            self.last_death = ending.why
        return ending

    async def _pause(self, placement: Placement, why: str) -> None:
        """Say why the process has ended, and wait before the next one is started."""
        pause = self.timeouts.before_start(self._deaths)
        when = f"in {pause:.0f} s" if pause else "now"
        launch = placement.launch
        self._say(f"{', '.join(placement.roles)}: {launch.title}: the worker ended ({why}); it is started again {when}")
        self.restarts += 1
        if pause:
            self.next_start = time.monotonic() + pause
            await self._become(State.RESTARTING)
            await self._changes(State.RESTARTING, pause)  # it changes before only if the worker must end
        await self._become(State.STARTING)

    async def _answers_at(self, greeting: Greeting) -> None:
        self.address = greeting.address
        self._loaded = self.current
        if self._deaths:
            self._say(f"{', '.join(self.current.roles)}: {self.current.launch.title}: the worker is ready again")
        await self._become(State.READY)

    async def _is_silent(self, is_silent: bool) -> None:
        await self._become(State.HUNG if is_silent else State.READY)

    async def _no_longer_answers(self) -> None:
        assert self._process is not None
        self.run += 1
        self._tried = self._process.trials
        await self._become(State.STARTING)

    def _must_end(self) -> bool:
        return self._end_state is not None

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = self._end_state or state
            self._changed.notify_all()

"""Which children of the trial process run now, and which jobs have had their time.

A job runs at normal priority first. If it takes longer, it is a slow one: it gets the lowest priority, and few slow
ones run at the same time. The others are stopped. Those that have run least go on, so an ordinary large schema soon
ends even while many hostile ones are tried.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tourkit.grammar.trial.confined import slow_down

if TYPE_CHECKING:
    from tourkit.grammar.trial.child import Child
    from tourkit.grammar.trial.jobs import Limits

_SLICE = 0.25  # seconds that a slow job runs until others may have its place
_TICK = 0.005  # seconds until a quick job is looked at again at the earliest


@dataclass(slots=True, eq=False)
class Task:
    """A job that has not ended. `id`: the worker's number. `content`: the job as it came. `arrived`: monotonic seconds.

    `ran`: seconds that it has run until `since`; it runs now unless `since` is None. `before`: seconds of processor
    time that its child had used before.
    """

    id: int
    content: bytes
    arrived: float
    child: Child | None = None
    ran: float = 0.0
    since: float | None = None
    before: float = 0.0
    slow: bool = False

    def runtime(self, now: float) -> float:
        """Return the seconds that the job has run."""
        return self.ran + (0.0 if self.since is None else now - self.since)

    def used(self) -> float:
        """Return the seconds of processor time that the job has used."""
        return 0.0 if self.child is None else self.child.processor_seconds() - self.before


@dataclass(slots=True)
class Schedule:
    """The jobs of the trial process. Times are monotonic seconds."""

    limits: Limits
    waiting: deque[Task] = field(default_factory=deque)
    running: list[Task] = field(default_factory=list)
    _turn: float = -math.inf  # when the slow ones were last chosen

    def next_to_start(self) -> Task | None:
        """Return the job that may start now, taken from the queue; None if there is none."""
        quick = sum(not task.slow for task in self.running)
        return self.waiting.popleft() if self.waiting and quick < self.limits.at_once else None

    def is_quick(self) -> bool:
        """Return whether a job runs that is not a slow one."""
        return not all(task.slow for task in self.running)

    def begin(self, task: Task, child: Child, now: float) -> None:
        task.child, task.since, task.before = child, now, child.processor_seconds()
        self.running.append(task)

    def remove(self, task: Task) -> None:
        """Forget a job that has ended."""
        if task in self.running:
            self.running.remove(task)
            self._turn = -math.inf
        elif task in self.waiting:
            self.waiting.remove(task)

    def find(self, id_: int) -> Task | None:
        """Return the job with the worker's number, None if it has ended."""
        return next((task for task in (*self.running, *self.waiting) if task.id == id_), None)

    def overdue(self, now: float) -> dict[Task, str]:
        """Return the jobs whose time is over, with the kind of their ending."""
        slow = [task for task in self.running if task.slow]
        due = dict.fromkeys(slow[self.limits.slow :], "busy")
        for task in (*self.running, *self.waiting):
            if now - task.arrived >= self.limits.patience:
                due[task] = "busy"
            if task.runtime(now) >= self.limits.seconds:
                due[task] = "over"
        return due

    def balance(self, now: float) -> None:
        """Slow down the jobs that are no longer quick, and choose which slow ones run."""
        for task in self.running:
            if not task.slow and task.used() >= self.limits.quick and task.child is not None:
                task.slow = True
                slow_down(task.child.pid)
                self._turn = -math.inf
        if now - self._turn < _SLICE:
            return
        self._turn = now
        slow = sorted((task for task in self.running if task.slow), key=lambda task: task.runtime(now))
        for place, task in enumerate(slow):
            _let(task, place < self.limits.at_once, now)

    def next_look(self, now: float) -> float | None:
        """Return the seconds until something must be done if nothing arrives; None if nothing must."""
        looks = [task.arrived + self.limits.patience for task in (*self.running, *self.waiting)]
        for task in self.running:
            if task.since is not None:
                looks.append(now + self.limits.seconds - task.runtime(now))
            if not task.slow:
                looks.append(now + max(_TICK, self.limits.quick - task.used()))
        if sum(task.slow for task in self.running) > self.limits.at_once:
            looks.append(self._turn + _SLICE)
        return max(0.0, min(looks) - now) if looks else None


def _let(task: Task, run: bool, now: float) -> None:
    """Continue or stop a slow job."""
    if run == (task.since is not None) or task.child is None:
        return
    task.ran, task.since = task.runtime(now), now if run else None
    task.child.signal(signal.SIGCONT if run else signal.SIGSTOP)

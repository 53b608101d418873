"""The trial process: one for each worker, started by exec, with a single thread and no model.

It gets the vocabulary and then jobs over its stdin, and writes their endings to its stdout. On Linux it forks: a child
does one job at a time. After a job that was quick and needed little memory it waits for the next one: so the next job
does not wait for a fork and for copies of shared memory, which take several times as long as an ordinary schema does.
Elsewhere this process does each job itself, and the worker kills it when the job has had its time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tourkit.grammar.own_memory import resident
from tourkit.grammar.trial.child import Child
from tourkit.grammar.trial.confined import end_with, limit_processor, settle
from tourkit.grammar.trial.frames import LENGTH, Incoming, message
from tourkit.grammar.trial.jobs import Ending, Jobs, Limits, over_memory
from tourkit.grammar.trial.schedule import Schedule, Task
from tourkit.grammar.trial.token_table import TokenTable

if TYPE_CHECKING:
    from resource import struct_rusage

_IDLE = 2  # most children that wait for work


def main(change: Callable[[Jobs], None] = lambda jobs: None) -> int:
    """Serve the worker until it ends. `change`: tests add kinds of jobs to those that there are."""
    settle()
    for pool in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[pool] = "1"  # a process with threads must not fork
    about = json.loads(_read_frame())
    end_with(about["parent"])
    table = TokenTable.of_bytes(_read_frame())
    limits = Limits(**about["limits"])
    jobs = Jobs(table.preparer(), limits, library_limits=about["library_limits"])
    jobs.warm_up()
    change(jobs)
    gc.collect()
    gc.freeze()  # a collection in a child would copy the memory that it shares with this process
    _send({"ready": os.getpid()})
    if about["forks"]:
        _Forking(jobs, limits).serve()
    else:
        _serve_in_turn(jobs, limits)
    return 0


def _read_frame() -> bytes:
    """Read one frame from stdin; end the process if the worker has ended."""
    head = sys.stdin.buffer.read(LENGTH)
    content = sys.stdin.buffer.read(int.from_bytes(head, "big"))
    if len(head) < LENGTH:
        sys.exit(0)
    return content


def _send(value: dict[str, Any]) -> None:
    """Write one message to the worker; end the process if the worker has ended."""
    try:
        sys.stdout.buffer.write(message(value))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(0)


def _serve_in_turn(jobs: Jobs, limits: Limits) -> None:
    """Do jobs in this process, one after another."""
    while True:
        job = json.loads(_read_frame())
        limit_processor(limits)
        _send({"id": job["id"]} | jobs.do(job))


class _Forking:
    """Does jobs in children."""

    def __init__(self, jobs: Jobs, limits: Limits) -> None:
        self._jobs = jobs
        self._limits = limits
        self._schedule = Schedule(limits)
        self._selector = selectors.DefaultSelector()
        self._incoming = Incoming()
        self._idle: list[Child] = []
        self._size = resident()

    def serve(self) -> None:
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            self._keep_idle()
            for key, _ in self._selector.select(self._schedule.next_look(time.monotonic())):
                if key.fileobj == 0:
                    self._take(os.read(0, 1 << 20))
                elif isinstance(key.fileobj, Child) and not key.fileobj.ended:
                    self._collect(key.fileobj)
            now = time.monotonic()
            self._schedule.balance(now)
            for task, kind in self._schedule.overdue(now).items():
                self._break_off(task, kind)
            while (ready := self._schedule.next_to_start()) is not None:
                self._begin(ready)

    def _take(self, arrived: bytes) -> None:
        """Read jobs and cancellations from the worker."""
        if not arrived:  # the worker has ended
            for child in [*self._idle, *(task.child for task in self._schedule.running if task.child)]:
                child.signal(signal.SIGKILL)
            os._exit(0)
        for content in self._incoming.take(arrived):
            job = json.loads(content)
            if "cancel" in job:
                task = self._schedule.find(job["cancel"])
                if task is not None:
                    self._drop(task)
            else:
                self._schedule.waiting.append(Task(job["id"], content, time.monotonic()))

    def _begin(self, task: Task) -> None:
        """Give a job to the child that worked last: it still knows the schemas of the last answers."""
        try:
            child = self._idle.pop() if self._idle else self._fork()
        except OSError as exc:  # too many processes, or no memory for one more
            _send({"id": task.id, "busy": f"no process can be started for it ({exc.strerror}): try again later"})
            return
        try:
            child.give(task.content)
        except OSError:  # it was ended while it was waiting, for example because the system had no memory left
            self._end(child)
            self._begin(task)
            return
        self._schedule.begin(task, child, time.monotonic())

    def _fork(self) -> Child:
        child = Child(self._jobs, self._limits)
        self._selector.register(child, selectors.EVENT_READ)
        return child

    def _keep_idle(self) -> None:
        """Have a child ready for the next job, and few that wait. No fork while a quick job needs the processors."""
        if not self._idle and not self._schedule.is_quick():
            with contextlib.suppress(OSError):  # the next job tries again
                self._idle.append(self._fork())
        while len(self._idle) > _IDLE:
            self._end(self._idle.pop(0))

    def _collect(self, child: Child) -> None:
        """Read from a child. If its job has ended, tell the worker."""
        task = next((each for each in self._schedule.running if each.child is child), None)
        endings, ended = child.arrived()
        if task is not None and endings:
            self._schedule.remove(task)
            _send({"id": task.id} | json.loads(endings[0]))
            task.child = None
            if ended or task.slow:
                self._end(child)
            else:
                self._idle.append(child)
        elif task is not None and ended:
            self._schedule.remove(task)
            _send({"id": task.id} | self._crash(*self._end(child)))
        elif ended:
            if child in self._idle:
                self._idle.remove(child)
            self._end(child)

    def _break_off(self, task: Task, kind: str) -> None:
        """End a job, and tell the worker why. `kind`: of the ending."""
        used = self._drop(task)
        ending: Ending = {kind: self._why(kind)}
        if used is not None and used.ru_utime + used.ru_stime < self._limits.seconds / 2:
            ending["again"] = True  # others had the processors
        _send({"id": task.id} | ending)

    def _drop(self, task: Task) -> struct_rusage | None:
        """End a job. Return what its child used, None if it had none yet."""
        self._schedule.remove(task)
        return None if task.child is None else self._end(task.child)[1]

    def _end(self, child: Child) -> tuple[int, struct_rusage]:
        self._selector.unregister(child)
        return child.end()

    def _crash(self, status: int, used: struct_rusage) -> Ending:
        """Return how a job ended whose child ended."""
        if status == -signal.SIGXCPU:
            return {"over": self._why("over")}
        # A growing array needs its old and its new place, so a refused one leaves half of the memory unused, or more.
        if status == -signal.SIGKILL or used.ru_maxrss * 1024 - self._size > self._limits.memory // 4:
            return {"over": over_memory(self._limits)}
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return {"over": f"the library that reads it crashed ({name})"}

    def _why(self, kind: str) -> str:
        if kind == "busy":
            return "too many others are being tried now: try again later"
        return f"it takes longer than {self._limits.seconds:g} seconds"

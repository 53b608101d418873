"""Life of one worker process: starting, ready, failed, stopped; unloaded, where it takes turns with others.

Waiters are woken on every change that answers them. What cannot be loaded is replaced by the next of its fallbacks. A
worker is a process group of its own: whatever it has started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from tourkit.errors import EngineDead
from tourkit.planning.plan import Placement
from tourkit.server.contract import Greeting, WorkerSpec

_MAX_CRASHES = 3  # in a row without one answered request in between: then the worker stays down
_STOP_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0  # for stderr to end after its process has
_LOOK_SECONDS = 0.02  # between two looks at what was killed
_LAST_LINES = 200  # of stderr: the tracebacks of two processes
_MOST_LINE = 1 << 20  # bytes
_LONG_PATH = 40  # of the 107 characters of a socket's path; vLLM's have 37 in their folder, which has 24
_MODULES = {"vllm": "tourkit.server.worker.vllm"}  # stacks that bring a server of their own
_MODULE = "tourkit.server.worker.process"
# Threads spin for a moment between two steps, which decoding needs (a third of its speed), but not for long: those of
# an idle worker would take the processors from a busy one.
_SPINNING = {"GOMP_SPINCOUNT": "100000"}
# GGUF weights are read into memory, and every step passes over all of it: in pages of 2 MiB instead of 4 KiB, which
# glibc asks for when told to, the processor finds its way sooner (bench/huge_pages.py).
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# What a Python process says last, but for lines that only say that another process said more.
_RAISED = re.compile(r"\b([A-Z]\w*(?:Error|Exception))\b(?:: (.+))?$")
_COUNTED = re.compile(r"\d+ validation errors? for \w+$")  # pydantic's, which says on the next line what they are
_BARE = re.compile(r"^\([^)]*\)| \[type=.*$")  # without the name of vLLM's process, and what was given
_SEE_ABOVE = re.compile("root cause above|initialization failed|ended with an? (error|exception)", re.IGNORECASE)


class State(Enum):
    UNLOADED = auto()  # it is not its turn
    STARTING = auto()
    READY = auto()
    FAILED = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a process ended: after it was ready or not; whether it told why itself; why, in one line."""

    was_ready: bool
    told: bool
    words: str


class Worker:
    """One supervised worker process. All methods belong to the gateway's event loop.

    `placement` is what was planned, `current` what is loaded. `say` hears of a fallback. `others`: the worker that holds
    what a fallback names, if there is one: it then answers for this one too.
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
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load, in a process of its own: what was loaded last, or the launch."""
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
        return self._process.pid if self._process and self._process.returncode is None else None

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
        """Ask the process to end by closing its stdin, and insist after a while."""
        self._told_to_be = state
        await self._become(state)
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                _kill(process)
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        """Run the launch and, one after the other, its fallbacks, until told to stop or nothing is left."""
        links = (self.placement, *self.placement.fallbacks)[len(self.passed_over) :]
        for link, following in zip(links, (*links[1:], None), strict=True):
            other = self._others(link) if link is not self.placement else None
            if other is not None:
                self.stand_in = other
                await self._become(State.READY)
                return
            if link is not self.current:
                self.current, self._crashes = link, 0
            reason = await self._run(link, is_last=following is None)
            if reason is None:
                return
            failure = f"{link.launch.model} {link.launch.quant} on {link.launch.stack}: {reason}"
            self.passed_over.append(failure)
            if following is not None:
                self._say(f"{', '.join(link.roles)}: {failure}; falling back to {following.launch.title}")
        self.error = "; ".join(self.passed_over)
        await self._become(State.FAILED)

    async def _run(self, link: Placement, *, is_last: bool) -> str | None:
        """Keep a process for `link`; why that is given up, or None when told to stop."""
        while not self._must_end():
            scratch = _scratch()
            try:
                ending = await self._live(link, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            if self._must_end():
                break
            if ending.told:
                return ending.words  # a reason was given: trying again would give the same one
            if not ending.was_ready and not is_last:
                return f"it ended while loading: {ending.words}"
            self._crashes += 1
            if self._crashes >= _MAX_CRASHES:
                return f"the worker ended {self._crashes} times in a row, last with {ending.words}"
            self.restarts += 1
        return None

    async def _live(self, link: Placement, scratch: str) -> _Ending:
        """One process from start to end."""
        try:
            process = await self._spawn(link, scratch)
        except OSError as exc:  # no memory or no process left to be had
            return _Ending(was_ready=False, told=True, words=f"its process cannot be made ({exc.strerror})")
        if self._must_end() and process.stdin is not None:
            process.stdin.close()  # the order to end came while the process was being made
        words: deque[str] = deque(maxlen=_LAST_LINES)
        has_children = link.launch.stack in _MODULES
        listening = asyncio.create_task(_listen(process, words, every_line=not has_children))
        error = await self._read_greeting(process)
        code = await process.wait()
        was_ready = self.state is State.READY
        await self._become(State.STARTING)
        if has_children:
            _kill(process)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_gone(process.pid), _STOP_SECONDS)  # what comes next needs the memory
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listening, _LAST_WORDS_SECONDS)
        return _Ending(was_ready, error is not None, error or _last_words(words, code))

    async def _spawn(self, link: Placement, scratch: str) -> asyncio.subprocess.Process:
        if self._uds:
            _remove_socket(self._uds)
        spec = WorkerSpec(link.launch, link.roles, self._uds, self.secret, self._offline)
        module = _MODULES.get(link.launch.stack, _MODULE)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, spec.to_json()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MOST_LINE,
            env=_environment(link, scratch),
            start_new_session=True,  # and with it a process group
        )
        return self._process

    async def _read_greeting(self, process: asyncio.subprocess.Process) -> str | None:
        """The first line on stdout: ready and where, or why not, which is returned. Nothing: it died loading."""
        if process.stdout is None:
            return None
        line = await process.stdout.readline()
        greeting = Greeting.of_json(line)
        if greeting.address:
            self.address = greeting.address
            await self._become(State.READY)
        return greeting.error

    def _must_end(self) -> bool:
        return self._told_to_be is not None

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = self._told_to_be or state
            self._changed.notify_all()


def _scratch() -> str:
    """A temporary folder of its own: libraries leave sockets and locks behind. The path of a socket has to be short."""
    is_long = len(tempfile.gettempdir()) > _LONG_PATH and os.access("/tmp", os.W_OK)
    return tempfile.mkdtemp(prefix="tourkit-worker-", dir="/tmp" if is_long else None)


def tuned(stack: str) -> dict[str, str]:
    """This process's environment, with what a worker of the stack is quicker with where nothing else is set."""
    return _SPINNING | (HUGE_PAGES if stack == "llama_cpp" else {}) | os.environ


def _environment(link: Placement, scratch: str) -> dict[str, str]:
    found = tuned(link.launch.stack) | {"TMPDIR": scratch}
    if link.device != "cpu":
        found["CUDA_VISIBLE_DEVICES"] = link.device  # ROCm reads it too
    elif link.launch.gpu_layers.is_none:
        found["CUDA_VISIBLE_DEVICES"] = ""  # even an unused GPU costs memory there
    return found


async def _listen(process: asyncio.subprocess.Process, words: deque[str], *, every_line: bool) -> None:
    """Keep the last lines of stderr, and pass on all, or those that are ours."""
    while process.stderr is not None:
        try:
            line = await process.stderr.readline()
        except ValueError:  # longer than the limit: no message for people
            continue
        if not line:
            return
        words.append(line.decode(errors="replace").rstrip())
        if every_line or b"tourkit: " in line:  # libraries put words of theirs before it
            with contextlib.suppress(OSError):
                os.write(2, line)


def _last_words(words: deque[str], code: int) -> str:
    """Why a process ended, in one line: the last exception it printed, or the signal, or the exit code."""
    lines = list(words)
    for i in reversed(range(len(lines))):
        found = _RAISED.search(lines[i])
        if found and not _SEE_ABOVE.search(lines[i]):
            said = _COUNTED.search(found[0]) and "".join(lines[i + 1 : i + 2])
            return found[0][:300] + (f": {_BARE.sub('', said).strip()[:300]}" if said else "")
    last = next((f" ({line.strip()[:200]})" for line in reversed(words) if line.strip()), "")
    if code >= 0:
        return f"code {code}{last}"
    name = signal.Signals(-code).name
    return f"signal {name}" + (", maybe for want of memory" if name == "SIGKILL" else last)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a worker and what it has started, if any of it still runs."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.returncode is None:
        process.kill()


async def _gone(group: int) -> None:
    while _runs(group):
        await asyncio.sleep(_LOOK_SECONDS)


def _runs(group: int) -> bool:
    """Whether a process of the group has not ended yet. A zombie has: it holds no memory."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it is gone now
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in ("Z", "X"):
                return True
    return False


def _remove_socket(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - a Unix socket, not a file of ours
    except FileNotFoundError:
        return

"""One run of a worker process: its program, its environment, and how it ended.

Each worker is a process group, so all processes that it starts end with it. `supervisor` decides about restarts and
fallbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tourkit import scratch
from tourkit.backends.vllm import failures
from tourkit.errors import LocalError
from tourkit.planning.plan import CPU
from tourkit.server.contract import Greeting, WorkerSpec
from tourkit.server.gateway.watchdog import TIMEOUTS, Watchdog, WorkerTimeouts
from tourkit.stacks import STACKS

_STOP_SECONDS = 10.0
_LAST_WORDS_SECONDS = 2.0  # for stdout and stderr to close after their process has ended
_LOOK_SECONDS = 0.02  # between two checks whether a process is gone
_LAST_LINES = 200  # of stderr: enough for the tracebacks of two processes
_MOST_LINE = 1 << 20  # bytes
_MOST_SHOWN = 200  # characters of the last line
# Most characters of the temporary folder. A socket's path has at most 107: our folder in it adds 24, vLLM's socket 37.
_LONG_PATH = 40
# Threads spin for a moment between two steps: decoding would lose a third of its speed without it. They must not spin
# for long, because an idle worker would take processor time from a busy one.
_SPINNING = {"GOMP_SPINCOUNT": "100000"}
# At an abort ggml starts gdb on its own process to print a backtrace. That takes seconds, or for ever.
_NO_DEBUGGER = {"GGML_NO_BACKTRACE": "1"}
LIBRARY_SETTINGS = _SPINNING | _NO_DEBUGGER
# GGUF weights are read into memory, and every step reads all of them. With pages of 2 MiB instead of 4 KiB, the
# processor finds the addresses faster (bench/huge_pages.py). glibc uses these pages only with this setting.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Keys and tokens that no worker needs: those that huggingface_hub reads (its _auth.py and _oidc.py) or once read, those
# of other programs that use the hub, and the key of our own server.
_SECRETS = frozenset(
    {
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HUGGINGFACE_HUB_TOKEN",
        "HUGGINGFACE_TOKEN",
        "HUGGINGFACEHUB_API_TOKEN",
        "HF_API_TOKEN",
        "HF_OIDC_ID_TOKEN",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "OAUTH_CLIENT_SECRET",
        "TOURKIT_API_KEY",
    }
)


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a worker: `python -m module`. It reads its specification from stdin.

    `has_children`: it starts more processes, and its libraries log to stderr. `reason`: finds in the last lines of
    stderr why it ended; returns None if they do not say it.
    """

    module: str
    has_children: bool = False
    reason: Callable[[Sequence[str]], str | None] = lambda lines: None


_OUR_ENGINE = Program("tourkit.server.worker.process")
# Stacks with their own server.
_PROGRAMS = {"vllm": Program("tourkit.server.worker.vllm", has_children=True, reason=failures.reason)}


def program_of(stack: str) -> Program:
    """Return the worker program of a stack."""
    return _PROGRAMS.get(stack, _OUR_ENGINE)


def has_own_server(stack: str) -> bool:
    """Whether a worker of the stack runs the stack's own server, so that its model cannot be loaded in our process."""
    return program_of(stack) is not _OUR_ENGINE


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended.

    `was_ready`: it had loaded. `gave_reason`: `why` is its own message, not only its exit code or its stderr.
    `why`: the reason in one line.
    """

    was_ready: bool
    gave_reason: bool
    why: str


class WorkerProcess:
    """A process that loads `spec` on `device`: "cpu" or the id of a GPU. It runs once."""

    def __init__(
        self, spec: WorkerSpec, device: str, *, only_gpu: bool = False, timeouts: WorkerTimeouts = TIMEOUTS
    ) -> None:
        """`only_gpu`: this process sees one GPU alone, so a worker on it keeps our CUDA_VISIBLE_DEVICES."""
        self.trials: frozenset[str] = frozenset()  # requests whose constraints it tried when it ended
        self.guard = ""  # what keeps it offline; empty until its greeting
        self.prefix_sharing = ""  # as in Greeting
        self._spec = spec
        self._timeouts = timeouts
        self._is_silent = False
        self._device = device
        self._only_gpu = only_gpu
        self._program = program_of(spec.launch.stack)
        self._process: asyncio.subprocess.Process | None = None
        self._end_requested = False

    @property
    def pid(self) -> int | None:
        """The process id; None if it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def run(
        self,
        on_ready: Callable[[Greeting], Awaitable[None]],
        on_silence: Callable[[bool], Awaitable[None]],
        on_exit: Callable[[], Awaitable[None]],
    ) -> Ending:
        """Start the process, and return how it ended. `on_ready` gets its greeting once it has loaded.

        `on_silence` is that of Watchdog. `on_exit` is called as soon as the process has ended. This method returns when
        all processes that it started have ended too.
        """
        with contextlib.ExitStack() as held:
            try:
                process = await self._spawn(held.enter_context(_scratch()))
            except OSError as exc:  # memory, process limit or disk is used up
                return Ending(was_ready=False, gave_reason=True, why=f"cannot start its process ({exc.strerror})")
            except LocalError as exc:
                return Ending(was_ready=False, gave_reason=True, why=str(exc))
            return await self._follow(process, on_ready, on_silence, on_exit)

    async def end(self) -> None:
        """Ask it to end by closing its stdin, and kill it after a while, or at once if it hangs. Idempotent."""
        self._end_requested = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self._is_silent:
            _kill(process)
        _close_stdin(process)
        try:
            await asyncio.wait_for(_exited(process), _STOP_SECONDS)
        except TimeoutError:
            _kill(process)

    async def _spawn(self, folder: Path) -> asyncio.subprocess.Process:
        if self._spec.uds:
            Path(self._spec.uds).unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._program.module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MOST_LINE,
            env=self._environment(folder),
            start_new_session=True,  # this makes a process group too
        )
        self._process = process
        if process.stdin is not None:
            process.stdin.write(self._spec.to_json())  # stays open: the worker ends when it is closed
        if self._end_requested:  # `end` was called while the process was starting
            _close_stdin(process)
        return process

    def _environment(self, folder: Path) -> dict[str, str]:
        launch = self._spec.launch
        inherited = {name: value for name, value in tuned(launch.stack).items() if name.upper() not in _SECRETS}
        found = inherited | dict(launch.environment) | {"TMPDIR": str(folder)}
        if self._device == CPU:
            if launch.gpu_layers.is_none:
                found["CUDA_VISIBLE_DEVICES"] = ""  # even an unused GPU costs memory there
        elif not self._only_gpu:  # vLLM finds the wrong device by the id of a MIG slice, and none by an id without NVML
            found["CUDA_VISIBLE_DEVICES"] = self._device  # ROCm reads it too
        return found

    async def _follow(
        self,
        process: asyncio.subprocess.Process,
        on_ready: Callable[[Greeting], Awaitable[None]],
        on_silence: Callable[[bool], Awaitable[None]],
        on_exit: Callable[[], Awaitable[None]],
    ) -> Ending:
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        has_children = self._program.has_children
        listening = asyncio.create_task(_listen(process, lines, every_line=not has_children))
        greeting, hangs = await _greeting(process), ""
        self.guard, self.prefix_sharing = greeting.guard, greeting.prefix_sharing
        if greeting.address:
            await on_ready(greeting)
            hangs = await self._watch(process, on_silence)
        try:
            code = await asyncio.wait_for(_exited(process), _STOP_SECONDS)
        except TimeoutError:  # its stdout is closed, or it cannot load: it must not hang while it ends
            _kill(process)
            code = await _exited(process)
        await on_exit()
        _kill(process)
        if has_children:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_gone(process.pid), _STOP_SECONDS)  # the next worker needs their memory
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listening, _LAST_WORDS_SECONDS)
        why = greeting.error or hangs or self._program.reason(tuple(lines)) or _exit_of(code, lines)
        return Ending(was_ready=bool(greeting.address), gave_reason=greeting.error is not None, why=why)

    async def _watch(self, process: asyncio.subprocess.Process, on_silence: Callable[[bool], Awaitable[None]]) -> str:
        """Wait until the process closes its stdout, and end it if it hangs. Return what hung; empty if nothing did."""

        async def note(is_silent: bool) -> None:
            self._is_silent = is_silent
            await on_silence(is_silent)

        assert process.stdout is not None
        dog = Watchdog(process.stdout, self._timeouts, note)
        hangs = await dog.watch()
        if hangs:
            _kill(process)  # SIGKILL ends a stopped process too
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dog.drain(), _LAST_WORDS_SECONDS)
        self.trials = frozenset(dog.trials)
        return hangs


def tuned(stack: str) -> dict[str, str]:
    """Return this process's environment and the settings that make a worker of the stack faster.

    Variables that are already set keep their values.
    """
    return LIBRARY_SETTINGS | (HUGE_PAGES if STACKS[stack].huge_pages else {}) | os.environ


def _scratch() -> contextlib.AbstractContextManager[Path]:
    """Make a temporary folder for one worker, because libraries leave sockets and locks behind.

    The path of a socket must be short.
    """
    is_long = len(tempfile.gettempdir()) > _LONG_PATH and os.access("/tmp", os.W_OK)
    return scratch.folder("worker", parent="/tmp" if is_long else None)


async def _greeting(process: asyncio.subprocess.Process) -> Greeting:
    """Read the first line on stdout. The greeting is empty if the worker died while it was loading."""
    return Greeting.of_json(await process.stdout.readline() if process.stdout is not None else b"")


async def _listen(process: asyncio.subprocess.Process, lines: deque[str], *, every_line: bool) -> None:
    """Keep the last lines of stderr, and pass them on to our stderr: every line, or only lines of tourkit."""
    while process.stderr is not None:
        try:
            line = await process.stderr.readline()
        except ValueError:  # longer than the limit: not a message for people
            continue
        if not line:
            return
        lines.append(line.decode(errors="replace").rstrip())
        if every_line or b"tourkit: " in line:  # libraries put a prefix before it
            with contextlib.suppress(OSError):
                os.write(2, line)


async def _exited(process: asyncio.subprocess.Process) -> int:
    """Wait until a process has ended, and return its exit code.

    `process.wait()` is no use: in some versions of Python it also waits until no child holds the pipes.
    """
    while process.returncode is None:
        await asyncio.sleep(_LOOK_SECONDS)
    return process.returncode


def _exit_of(code: int, lines: Sequence[str]) -> str:
    """Return the exit code or the signal that ended a process, and the last line that it printed."""
    last = next((f" ({line.strip()[:_MOST_SHOWN]})" for line in reversed(lines) if line.strip()), "")
    if code >= 0:
        return f"code {code}{last}"
    name = signal.Signals(-code).name
    return f"signal {name}" + (", maybe out of memory" if name == "SIGKILL" else last)


def _close_stdin(process: asyncio.subprocess.Process) -> None:
    """Ask a worker to end."""
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a worker and all processes that it started, if they still run."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.returncode is None:
        process.kill()


async def _gone(group: int) -> None:
    while _runs(group):
        await asyncio.sleep(_LOOK_SECONDS)


def _runs(group: int) -> bool:
    """Whether a process of the group still runs. A zombie does not count, because it holds no memory."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in ("Z", "X"):
                return True
    return False

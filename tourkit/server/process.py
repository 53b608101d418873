"""Life of one worker process: starting, ready, failed, stopped. Waiters are woken on every change that answers them."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

import orjson

from tourkit.backends.base import LoadSpec
from tourkit.errors import EngineDead
from tourkit.server.worker import WorkerSpec

_MAX_CRASHES = 3  # in a row without one answered request in between: then the worker stays down
_STOP_SECONDS = 10.0


class State(Enum):
    STARTING = auto()
    READY = auto()
    FAILED = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class Launch:
    """What to load, as the plan decides it. `roles` share the worker."""

    load: LoadSpec
    quant: str
    roles: tuple[str, ...]

    @property
    def model(self) -> str:
        return self.load.model


class Worker:
    """One supervised worker process. All methods belong to the gateway's event loop."""

    def __init__(self, launch: Launch, *, uds: str, offline: bool) -> None:
        self.launch = launch
        self.state = State.STARTING
        self.error: str | None = None
        self.address = ""
        self.secret = secrets.token_hex(16)
        self.restarts = 0
        self._uds = uds
        self._offline = offline
        self._crashes = 0
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    async def ready(self) -> str:
        """Wait for the worker; its address. Raises EngineDead when it cannot be loaded or is being stopped."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state is not State.STARTING)
        if self.state is not State.READY:
            raise EngineDead(f"{self.launch.model} {self.launch.quant}: {self.error or 'the worker is stopped'}")
        return self.address

    def answered(self) -> None:
        """A request went well: earlier crashes are forgiven."""
        self._crashes = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def stop(self) -> None:
        """Ask the process to end by closing its stdin, and insist after a while."""
        self._stopping.set()
        await self._become(State.STOPPED)
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                process.kill()
        if self._task is not None:
            await self._task

    async def _supervise(self) -> None:
        while not self._stopping.is_set():
            process = await self._spawn()
            if self._stopping.is_set() and process.stdin is not None:
                process.stdin.close()  # stop() came while the process was being made
            await self._read_greeting(process)
            code = await process.wait()
            if self._stopping.is_set() or await self._gave_up(code):
                return

    async def _spawn(self) -> asyncio.subprocess.Process:
        if self._uds:
            _remove_socket(self._uds)
        spec = self._spec()
        # Threads spin for a moment between two steps, which decoding needs (a third of its speed), but not for long:
        # those of an idle worker would take the processors from a busy one.
        environment = {"GOMP_SPINCOUNT": "100000"} | os.environ
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tourkit.server.worker", orjson.dumps(asdict(spec)).decode()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        return self._process

    def _spec(self) -> WorkerSpec:
        return WorkerSpec(load=self.launch.load, uds=self._uds, secret=self.secret, offline=self._offline)

    async def _read_greeting(self, process: asyncio.subprocess.Process) -> None:
        """The first line on stdout: ready and where, or why not. Nothing at all means it died loading."""
        if process.stdout is None:
            return
        line = await process.stdout.readline()
        greeting: dict[str, Any] = orjson.loads(line) if line else {}
        if greeting.get("ready"):
            self.address = greeting["address"]
            await self._become(State.READY)
        elif greeting.get("error"):
            self.error = greeting["error"]
            self._crashes = _MAX_CRASHES  # a reason was given: trying again would give the same one

    async def _gave_up(self, code: int) -> bool:
        """Count a crash; True when the worker stays down, else it is started again."""
        self._crashes += 1
        if self._crashes >= _MAX_CRASHES:
            self.error = self.error or f"the worker ended {self._crashes} times in a row, last with code {code}"
            await self._become(State.FAILED)
            return True
        self.restarts += 1
        await self._become(State.STARTING)
        return False

    async def _become(self, state: State) -> None:
        async with self._changed:
            self.state = State.STOPPED if self._stopping.is_set() else state
            self._changed.notify_all()


def _remove_socket(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - a Unix socket, not a file of ours
    except FileNotFoundError:
        return

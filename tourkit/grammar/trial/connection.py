"""The worker's side of one trial process: start it, ask it, end it. In the worker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tourkit.errors import EngineError
from tourkit.grammar.trial.confined import slow_down
from tourkit.grammar.trial.frames import LENGTH, framed, message
from tourkit.grammar.trial.jobs import LIMITS, Ending, Job, Limits

COMMAND = (sys.executable, "-m", "tourkit.grammar.trial")


class Gone(Exception):
    """The trial process has ended before it answered."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a trial process is started with. `table`: bytes of a TokenTable. `forks`: it does jobs in children.

    `library_limits`: it refuses what needs more than llguidance's own limits.
    """

    table: bytes
    limits: Limits = LIMITS
    library_limits: bool = False
    forks: bool = sys.platform == "linux"
    command: Sequence[str] = COMMAND


class Connection:
    """One running trial process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asked: dict[int, asyncio.Future[Ending]] = {}
        self._next = 0
        self._reading: asyncio.Task[None] | None = None
        self.gone = False

    @staticmethod
    async def start(setup: Setup) -> Connection:
        """Start a trial process and wait until it is ready. Raises EngineError if it ends at once.

        Call it in the thread that lives longest: the process ends with the thread that has started it.
        """
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*setup.command, stdin=pipe, stdout=pipe)
        connection = Connection(process)
        about = {
            "parent": os.getpid(),
            "limits": asdict(setup.limits),
            "library_limits": setup.library_limits,
            "forks": setup.forks,
        }
        try:
            connection._write(message(about) + framed(setup.table))
            await connection._read()
        except (Gone, OSError) as exc:
            await connection.ended()
            raise EngineError("the process that tries constraints does not start: see the log") from exc
        except asyncio.CancelledError:
            await connection.ended()
            raise
        connection._reading = asyncio.create_task(connection._collect())
        return connection

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, job: Job) -> Ending:
        """Return how a job ended. Raises Gone. If the caller is cancelled, the job is ended."""
        if self.gone:
            raise Gone
        self._next += 1
        number = self._next
        answer: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._write(message(job | {"id": number}))
            return await answer
        except asyncio.CancelledError:
            if not self.gone:
                self._write(message({"cancel": number}))
            raise
        finally:
            del self._asked[number]

    def slow_down(self) -> None:
        """Give the process the lowest priority."""
        slow_down(self._process.pid)

    def end(self) -> None:
        """Kill the process. Its jobs raise Gone."""
        if not self.gone:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._leave()

    def _leave(self) -> None:
        self.gone = True
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def ended(self) -> None:
        """Kill the process and wait until it has ended."""
        self.end()
        if self._reading is not None:
            await self._reading
        while not self._output.at_eof():  # a pipe that is not read to its end stays open
            await self._output.read(1 << 16)
        await self._process.wait()

    @property
    def _output(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(content)

    async def _read(self) -> Ending:
        try:
            head = await self._output.readexactly(LENGTH)
            content = await self._output.readexactly(int.from_bytes(head, "big"))
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            raise Gone from exc
        ending: Ending = json.loads(content)
        return ending

    async def _collect(self) -> None:
        """Pass on the endings until the process ends."""
        try:
            while True:
                ending = await self._read()
                answer = self._asked.get(ending.pop("id"))
                if answer is not None and not answer.done():
                    answer.set_result(ending)
        except Gone:
            self._leave()
            await self._process.wait()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(Gone())

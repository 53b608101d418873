"""Tries constraints and checks answers for a worker, in a process that can be killed. Lives in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from tourkit.errors import EngineDead, EngineError, QueueFull, RequestError, one_line
from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.trial.answers import Verdict
from tourkit.grammar.trial.cache import Known, digest
from tourkit.grammar.trial.connection import COMMAND, Connection, Gone, Setup
from tourkit.grammar.trial.jobs import CHECK, LIMITS, PREPARE, Ending, Job, Limits
from tourkit.grammar.trial.token_table import TokenTable

_TRIES = 2  # with a new process each; a second end is probably the job's fault
_SPARES = 2  # processes where they cannot fork: one works, one is warm


class Trial:
    """The trial process of one worker, started when it is first needed, and again if it ends.

    `table` reads the vocabulary; it may take a second and runs in a thread. `library_limits`: refuse what
    needs more than llguidance's own limits. `limits`, `forks`, `command`: for tests.
    """

    def __init__(
        self,
        table: Callable[[], TokenTable],
        *,
        library_limits: bool = False,
        limits: Limits = LIMITS,
        forks: bool | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._table = table
        self._setup = Setup(b"", limits, library_limits, command=command)
        if forks is not None:
            self._setup = replace(self._setup, forks=forks)
        self._known = Known()
        self._connections: list[Connection] = []  # that have no job, or, if they fork, the only one
        self._starting = asyncio.Lock()
        self._closed = False
        self._starts: asyncio.Future[None] | None = None
        self._replacing: asyncio.Future[None] | None = None
        self._places = asyncio.Semaphore(_SPARES - 1)
        self._tasks: dict[str, asyncio.Task[Ending]] = {}
        self._waiting: Counter[str] = Counter()  # requests that wait for the same task

    async def start(self) -> None:
        """Start the process now, so that the first constraint does not wait for it. Raises EngineError, EngineDead."""
        count = 1 if self._setup.forks else _SPARES
        async with self._starting:
            if self._closed:
                raise EngineDead("the server is shutting down")
            if not self._setup.table:
                table = await asyncio.to_thread(self._table)
                self._setup = replace(self._setup, table=await asyncio.to_thread(table.to_bytes))
            for connection in [each for each in self._connections if each.gone]:
                self._connections.remove(connection)
                await connection.ended()
            while len(self._connections) < count:
                self._connections.append(await Connection.start(self._setup))

    async def close(self) -> None:
        """End the process and wait for its end. It is not started again."""
        self._closed = True
        if self._replacing is not None:
            await asyncio.wait({self._replacing})
        async with self._starting:
            for connection in self._connections:
                await connection.ended()

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that run and have no job of their own."""
        return [connection.pid for connection in self._connections if not connection.gone]

    async def prepare(self, constraint: Constraint, manner: Manner) -> Prepared:
        """Return the prepared constraint: from memory, or after a trial. If the caller is cancelled, the trial ends.

        Raises RequestError if the constraint is malformed, cannot be followed or takes too much; QueueFull if too many
        are tried now; EngineError.
        """
        key = digest(constraint, manner)
        ending = self._known.get(key)
        if ending is None:
            job = {"kind": PREPARE, "constraint": asdict(constraint), "manner": asdict(manner)}
            ending = await self._shared(key, job)
        if "prepared" in ending:
            return Prepared.of_json(ending["prepared"])
        if "refused" in ending:
            raise RequestError(**ending["refused"])
        if "busy" in ending:
            raise QueueFull(f"the {_name(constraint)} was not prepared: {ending['busy']}")
        if "over" in ending:
            raise _too_complex(constraint, ending["over"])
        raise EngineError(f"the {_name(constraint)} was not prepared: {ending['failed']}: please report it")

    async def check(self, source: str, text: str, *, may_repair: bool) -> Verdict:
        """Check an answer under the schema `source`. An answer whose check does not end is not valid."""
        ending = await self._ask({"kind": CHECK, "source": source, "text": text, "may_repair": may_repair})
        if "verdict" in ending:
            found = ending["verdict"]
            return Verdict(**found | {key: tuple(found[key]) for key in ("repaired", "errors")})
        reason = next(iter(ending.values()))
        return Verdict(False, text, errors=(one_line(f"the answer could not be checked: {reason}"),))

    async def _shared(self, key: str, job: Job) -> Ending:
        """Return how a trial ended. Requests with the same constraint share it; it ends when all of them are gone."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._try(key, job))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                task.cancel()
                self._tasks.pop(key, None)

    async def _try(self, key: str, job: Job) -> Ending:
        ending = await self._ask(job)
        if not ending.keys() & {"busy", "failed", "again"}:
            self._known.put(key, ending)
        return ending

    async def _ask(self, job: Job) -> Ending:
        """Return how a job ended. If the process ends meanwhile, another one gets the job, but only once."""
        for _ in range(_TRIES):
            try:
                return await (self._ask_forking(job) if self._setup.forks else self._ask_one(job))
            except Gone:
                continue
        return {"over": "the process that tries it ended twice", "again": True}

    async def _ask_forking(self, job: Job) -> Ending:
        if not self._connections or self._connections[0].gone:
            self._starts = asyncio.ensure_future(self.start())  # for all requests, also if this one is cancelled
            await asyncio.shield(self._starts)
        return await self._connections[0].ask(job)

    async def _replace(self, connection: Connection) -> None:
        await connection.ended()
        with contextlib.suppress(EngineError):  # the next job tries again and gets the error
            await self.start()

    async def _ask_one(self, job: Job) -> Ending:
        """Give the job to a process that does nothing else meanwhile. Kill it when the job has had its time."""
        limits = self._setup.limits
        async with self._places:
            self._connections = [connection for connection in self._connections if not connection.gone]
            if not self._connections:
                await self.start()
            connection = self._connections.pop(0)
            asked = asyncio.ensure_future(connection.ask(job))
            try:
                done, _ = await asyncio.wait({asked}, timeout=limits.quick)
                if done:
                    self._connections.append(connection)
                    return asked.result()
                connection.slow_down()
                done, _ = await asyncio.wait({asked}, timeout=limits.seconds - limits.quick)
                return asked.result() if done else {"over": f"it takes longer than {limits.seconds:g} seconds"}
            finally:
                if connection not in self._connections:  # it is slow for ever, hangs, or nobody waits for it any longer
                    asked.cancel()
                    self._replacing = asyncio.ensure_future(self._replace(connection))


def _name(constraint: Constraint) -> str:
    """Return what a constraint is, as a noun for messages."""
    return "schema" if constraint.is_json else {"tools": "schema of the tools"}.get(constraint.kind, constraint.kind)


def _too_complex(constraint: Constraint, reason: str) -> RequestError:
    message = f"the {_name(constraint)} is too complex: {reason}: write a simpler one"
    param = "response_format" if constraint.is_json else constraint.kind
    return RequestError(message, param=param, code="constraint_too_complex")

"""An engine and the trial process beside it: what the routes of a worker need to make answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tourkit.backends.base import Constrained, Engine
from tourkit.errors import RequestError
from tourkit.generation import Constraint, Emit, Request, Submission
from tourkit.grammar.prepared import Prepared
from tourkit.grammar.trial.answers import Verdict, judge
from tourkit.grammar.trial.client import Trial

_COMPILING = 2  # threads that compile grammars


# Tells the gateway, for the length of a block, that the constraint of a request is tried: the worker's death is then
# maybe its fault, and the request is not asked again. It gets the number that the gateway gave the request.
InTrial = Callable[[str], AbstractContextManager[None]]


def untold(request: str) -> AbstractContextManager[None]:
    """An InTrial that tells nobody, for engines without a gateway."""
    return nullcontext()


class Model:
    """One loaded model. `trial`: None if the engine takes no constraints."""

    def __init__(self, engine: Engine, trial: Trial | None = None, in_trial: InTrial = untold) -> None:
        self.engine = engine
        self.trial = trial
        self.in_trial = in_trial
        # Threads of their own: however long compiling takes, a request without a constraint finds a free thread.
        self._compiling = ThreadPoolExecutor(_COMPILING, thread_name_prefix="tourkit-compile")

    @staticmethod
    def of(engine: Engine, in_trial: InTrial = untold) -> Model:
        """Return the model of an engine, with a trial process if it takes constraints. The process starts later."""
        if not isinstance(engine, Constrained):
            return Model(engine)
        return Model(engine, Trial(engine.token_table, library_limits=engine.recompiles), in_trial)

    async def with_calls(self, request: Request) -> Request:
        """Return a request with the constraint for the calls of tools that it offers. Raises RequestError."""
        if request.offer is None:
            return request
        if not isinstance(self.engine, Constrained):
            raise RequestError("this model cannot call tools: leave tools out", param="tools")
        return self.engine.with_calls(request)

    async def prepare(self, request: Request, constraint: Constraint) -> Prepared:
        """Return the request's constraint, tried and prepared. Raises RequestError, QueueFull, EngineError."""
        assert self.trial is not None
        assert isinstance(self.engine, Constrained)
        manner = await asyncio.to_thread(self.engine.manner, request)
        return await self.trial.prepare(constraint, manner)

    async def submit(self, request: Request, emit: Emit, prepared: Prepared | None) -> Submission:
        """Submit a request to the engine, in a thread. Raises RequestError, QueueFull, EngineDead."""
        submit = partial(self.engine.submit, request, emit)
        if request.constraint is None:
            return await asyncio.to_thread(submit)
        return await asyncio.get_running_loop().run_in_executor(self._compiling, submit, prepared)

    async def judge(self, schema: str, text: str, *, may_repair: bool) -> Verdict:
        """Check an answer under a schema, given as JSON text. Without a trial process it is done in a thread."""
        if self.trial is None:
            return await asyncio.to_thread(judge, schema, text, may_repair=may_repair)
        return await self.trial.check(schema, text, may_repair=may_repair)

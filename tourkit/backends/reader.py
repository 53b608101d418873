"""The engine of models that only read: encoders that make embeddings or scores.

One thread owns the model and packs texts of all requests into its calls. A text gets a row of numbers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from tourkit.engine.meter import WorkMeter
from tourkit.errors import EngineDead, QueueFull, RequestError
from tourkit.generation import Activity, Emit, EngineInfo, EngineStats, Request, Submission

if TYPE_CHECKING:
    import numpy as np

    from tourkit.grammar.prepared import Prepared

_PACK = 512  # tokens in a call; packing more texts into it no longer saves time
MAX_WAITING = 8192  # texts

T = TypeVar("T", bound=Sized)
R = TypeVar("R")


class ReadingRunner(Protocol):
    """One loaded model that only reads. The engine calls it from one thread only."""

    n_slots: int  # most texts in a call
    n_batch: int  # most tokens in a call
    n_vocab: int
    context: int  # most tokens in a text

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Job(Generic[T, R]):
    """One request. texts[0:n_taken) were given to the model; it has returned the rows of `n_done` of them."""

    texts: list[T]
    rows: np.ndarray
    future: Future[R]
    n_taken: int = 0
    n_done: int = 0

    @property
    def n_left(self) -> int:
        return len(self.texts) - self.n_taken


class Reader(Generic[T, R]):
    """The Engine of models that only read. The length of a text T is its number of tokens. R: what a request gets."""

    def __init__(
        self,
        runner: ReadingRunner,
        stack: str,
        read: Callable[[Sequence[T]], np.ndarray],
        made: Callable[[np.ndarray, int], R],
        width: int,
        *,
        use: str,
        deterministic: bool = False,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`read`: returns the rows of the texts of one call, each of `width` numbers.

        `made`: makes the result of a request from the rows of its texts, float32, and from the number of their tokens.
        `use`: what the model is for, in an error. `deterministic`: one text a call.
        """
        self._runner = runner
        self._read, self._made, self._width, self._use = read, made, width, use
        self._texts_a_call = 1 if deterministic else runner.n_slots
        self._max_waiting = max_waiting
        self._info = EngineInfo(stack, runner.context, runner.n_slots, runner.n_vocab)
        self._n_tokens = self._n_calls = 0
        self._meter = WorkMeter()
        # Shared between threads; _gate guards it:
        self._gate = threading.Condition()
        self._jobs: deque[_Job[T, R]] = deque()  # requests with texts that still wait
        self._under_way: list[_Job[T, R]] = []  # requests with texts that the model computes now
        self._closing = False
        self._dead: EngineDead | None = None
        self._thread = threading.Thread(target=self._run, name="tourkit-reader", daemon=True)
        self._thread.start()

    # --- called from any thread -----------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        raise RequestError(f"this model {self._use}", param="model", code="unsupported_model")

    def abort(self, submission_id: int) -> None:
        """Do nothing: `submit` never accepts a request."""

    def queue(self, texts: list[T]) -> Future[R]:
        """Queue texts. Cancelling the future removes them. Raises QueueFull, EngineDead."""
        import numpy as np

        future: Future[R] = Future()
        job = _Job(texts, np.empty((len(texts), self._width), dtype=np.float32), future)
        with self._gate:
            if self._dead or self._closing:
                raise self._dead or EngineDead("the engine is shut down")
            if sum(waiting.n_left for waiting in self._jobs) + len(texts) > self._max_waiting:
                raise QueueFull(f"{self._max_waiting} texts are already waiting: try again later")
            self._jobs.append(job)
            self._gate.notify()
        return future

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._runner.tokenize(text, add_special=add_special, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        self.check_ids(tokens, "tokens")
        return b"".join(self._runner.piece(token) for token in tokens).decode(errors="replace")

    def stats(self) -> EngineStats:
        with self._gate:
            waiting = sum(job.n_left for job in self._jobs)
            running = sum(job.n_taken - job.n_done for job in self._under_way)
        return EngineStats(running=running, waiting=waiting, prompt_tokens=self._n_tokens, decode_steps=self._n_calls)

    def activity(self) -> Activity:
        return self._meter.activity()

    def close(self) -> None:
        with self._gate:
            self._closing = True
            self._gate.notify()
        self._thread.join()

    def check_length(self, tokens: Sized, where: str) -> None:
        """Raise RequestError for a text that the model cannot read whole. `where`: the field of the request."""
        if len(tokens) > self._runner.context:
            raise RequestError(
                f"This model's maximum context length is {self._runner.context} tokens. However, {where} has "
                f"{len(tokens)} tokens: shorten it",
                param=where.partition("[")[0],
                code="context_length_exceeded",
            )

    def check_ids(self, tokens: list[int], where: str) -> None:
        """Raise RequestError for a token id that the model does not have. `where`: the field of the request."""
        for token in tokens:
            if token >= self._runner.n_vocab:
                param = where.partition("[")[0]
                raise RequestError(
                    f"{where}: token id {token} is out of range: this model has {self._runner.n_vocab} tokens",
                    param=param,
                )

    # --- the engine thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: EngineDead | None = None
        try:
            while batch := self._take():
                n_tokens = sum(len(job.texts[i]) for job, i in batch)
                self._meter.advance(0, n_tokens)
                rows = self._read([job.texts[i] for job, i in batch])
                self._meter.advance(n_tokens, 0)
                self._n_calls += 1
                self._n_tokens += n_tokens
                for (job, i), row in zip(batch, rows, strict=True):
                    self._put(job, i, row)
                self._meter.rest()
        except Exception as exc:  # noqa: BLE001 - thread boundary: every caller must get the error
            error = EngineDead(f"the engine thread died: {exc!r}")
        finally:
            with self._gate:
                self._dead = error or EngineDead("the engine is shut down")
                left = {id(job): job for job in [*self._under_way, *self._jobs] if not job.future.done()}
            for job in left.values():
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(self._dead)
            self._runner.close()

    def _take(self) -> list[tuple[_Job[T, R], int]]:
        """Wait for texts and take as many as one call should have, oldest first. Empty if the engine must stop."""
        with self._gate:
            self._under_way = []
            while not self._closing:
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
                if self._jobs:
                    break
                self._gate.wait()
            if self._closing:
                return []
            batch: list[tuple[_Job[T, R], int]] = []
            budget = min(_PACK, self._runner.n_batch)
            while self._jobs and len(batch) < self._texts_a_call:
                job = self._jobs[0]
                budget -= len(job.texts[job.n_taken])
                if batch and budget < 0:
                    break
                batch.append((job, job.n_taken))
                job.n_taken += 1
                if not job.n_left:
                    self._jobs.popleft()
            self._under_way = list({id(job): job for job, _ in batch}.values())
            return batch

    def _put(self, job: _Job[T, R], index: int, row: np.ndarray) -> None:
        job.rows[index] = row
        job.n_done += 1
        if job.n_done == len(job.texts) and job.future.set_running_or_notify_cancel():
            job.future.set_result(self._made(job.rows, sum(map(len, job.texts))))

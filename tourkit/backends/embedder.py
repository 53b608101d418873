"""The engine of embedding models. One thread owns the context and packs texts of all requests into its calls."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tourkit.backends.base import Embeddings
from tourkit.engine.meter import WorkMeter
from tourkit.errors import EngineDead, QueueFull, RequestError
from tourkit.generation import Activity, Emit, EngineInfo, EngineStats, Request, Submission

if TYPE_CHECKING:
    import numpy as np

    from tourkit.grammar.prepared import Prepared

_PACK = 512  # tokens in a call; packing more texts into it no longer saves time
_MAX_WAITING = 8192  # texts


class EmbeddingRunner(Protocol):
    """One loaded embedding model. The engine calls it from one thread only."""

    n_slots: int  # most texts in a call
    n_batch: int  # most tokens in a call
    n_vocab: int
    context: int  # most tokens in a text

    @property
    def n_embd(self) -> int:
        """How many numbers an embedding has."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the embeddings: float32, shape (len(texts), n_embd), each of length 1. Raises EngineError.

        A text that is alone in the call may have up to `context` tokens.
        """
        ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Job:
    """One request. texts[0:n_taken) were given to the model; it has returned the vectors of `n_done` of them."""

    texts: list[list[int]]
    vectors: np.ndarray
    future: Future[Embeddings]
    n_taken: int = 0
    n_done: int = 0

    @property
    def n_left(self) -> int:
        return len(self.texts) - self.n_taken


class BatchEmbedder:
    """The Engine and Embedder of embedding models. `deterministic`: one text a call."""

    def __init__(
        self,
        runner: EmbeddingRunner,
        stack: str,
        *,
        deterministic: bool = False,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._runner = runner
        self._texts_a_call = 1 if deterministic else runner.n_slots
        self._max_waiting = max_waiting
        self._info = EngineInfo(stack, runner.context, runner.n_slots, runner.n_vocab)
        self._size = runner.n_embd
        self._n_tokens = self._n_calls = 0
        self._meter = WorkMeter()
        # Shared between threads; _gate guards it:
        self._gate = threading.Condition()
        self._jobs: deque[_Job] = deque()  # requests with texts that still wait
        self._under_way: list[_Job] = []  # requests with texts that the model computes now
        self._closing = False
        self._dead: EngineDead | None = None
        self._thread = threading.Thread(target=self._run, name="tourkit-embedder", daemon=True)
        self._thread.start()

    # --- called from any thread -----------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def size(self) -> int:
        return self._size

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        raise RequestError(
            "this model makes embeddings and writes no text: use /v1/embeddings or another role",
            param="model",
            code="unsupported_model",
        )

    def abort(self, submission_id: int) -> None:
        """Do nothing: `submit` never accepts a request."""

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Future[Embeddings]:
        import numpy as np

        tokenized = [self._tokens(text, i) for i, text in enumerate(texts)]
        future: Future[Embeddings] = Future()
        job = _Job(tokenized, np.empty((len(tokenized), self._size), dtype=np.float32), future)
        with self._gate:
            if self._dead or self._closing:
                raise self._dead or EngineDead("the engine is shut down")
            if sum(waiting.n_left for waiting in self._jobs) + len(tokenized) > self._max_waiting:
                raise QueueFull(f"{self._max_waiting} texts are already waiting: try again later")
            self._jobs.append(job)
            self._gate.notify()
        return future

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._runner.tokenize(text, add_special=add_special, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        self._check_ids(tokens, "tokens")
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

    def _tokens(self, text: str | Sequence[int], index: int) -> list[int]:
        """Return the token ids of a text with the model's special tokens around it. Check given ids; keep them."""
        where = f"input[{index}]"
        if isinstance(text, str):
            tokens = self._runner.tokenize(text, add_special=True, parse_special=False)
        else:
            tokens = list(text)
            self._check_ids(tokens, where)
        if not tokens:
            raise RequestError(f"{where} has no tokens: give a non-empty text", param="input")
        if len(tokens) > self._runner.context:
            raise RequestError(
                f"This model's maximum context length is {self._runner.context} tokens. However, {where} has "
                f"{len(tokens)} tokens: shorten it",
                param="input",
                code="context_length_exceeded",
            )
        return tokens

    def _check_ids(self, tokens: list[int], where: str) -> None:
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
                vectors = self._runner.embed([job.texts[i] for job, i in batch])
                self._meter.advance(n_tokens, 0)
                self._n_calls += 1
                self._n_tokens += n_tokens
                for (job, i), vector in zip(batch, vectors, strict=True):
                    self._put(job, i, vector)
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

    def _take(self) -> list[tuple[_Job, int]]:
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
            batch: list[tuple[_Job, int]] = []
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

    def _put(self, job: _Job, index: int, vector: np.ndarray) -> None:
        job.vectors[index] = vector
        job.n_done += 1
        if job.n_done == len(job.texts) and job.future.set_running_or_notify_cancel():
            job.future.set_result(Embeddings(job.vectors, sum(map(len, job.texts))))

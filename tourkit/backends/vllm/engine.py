"""vLLM's engine behind our Engine interface: its `AsyncLLM` gets requests as tokens, and its outputs become deltas.

vLLM's own OpenAI layer is not used: there pydantic checks and writes each token of a stream, which costs more than all
other steps together.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from typing import Any

from tourkit.backends.text_side import EngineInput, Texts
from tourkit.backends.vllm import thinking, translation
from tourkit.backends.vllm.thinking import Answers
from tourkit.engine.meter import WorkMeter
from tourkit.engine.waiting import Turns, may_wait
from tourkit.errors import EngineDead, EngineError, QueueFull, RequestError
from tourkit.generation import (
    Activity,
    Delta,
    Emit,
    EngineInfo,
    EngineStats,
    Finish,
    Request,
    SamplingParams,
    Submission,
)
from tourkit.grammar.prepared import Manner, Prepared
from tourkit.grammar.trial.token_table import TokenTable
from tourkit.launch import Launch

_MAX_WAITING = 256  # sequences beyond the slots, as in the engine of the other stacks
_METRICS = {  # vLLM's names → the fields of EngineStats
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prefix_cache_hits_total": "cached_tokens",
    "vllm:generation_tokens_total": "generated_tokens",
    "vllm:spec_decode_num_draft_tokens_total": "drafted_tokens",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted_tokens",
    "vllm:num_preemptions_total": "preemptions",
}


class VllmEngine:
    """An Engine over `client`, an AsyncLLM that belongs to the event loop `loop`.

    The loop calls `emit`. Call `submit` and `abort` from other threads.

    vLLM compiles each grammar again: once in this event loop, to check it, and once in its engine process. Both times
    it uses llguidance's own limits, so the trial process refuses what needs more than these. This is weaker than
    on the other stacks in three ways. The compile in the event loop keeps other requests waiting as long as it takes. A
    grammar that grows too large while an answer is written is an error in vLLM's engine process, and no time limit for
    a mask can be set there. And the engine process has a tokenizer of its own, whose special tokens can differ.
    """

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop, launch: Launch, texts: Texts) -> None:
        self._client = client
        self._loop = loop
        self._launch = launch
        self._texts = texts
        self._spacing = texts.spacing(self._write_on)
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._unfinished: Counter[str] = Counter()  # sequences of each client that wait or run
        self._turns = Turns()  # vLLM gives a slot to the request with the lowest `priority`: its turn
        self._relays: dict[int, asyncio.Task[None]] = {}
        self._prompts: dict[int, int] = {}  # prompt tokens of the submissions without an output so far
        self._meter = WorkMeter()
        self._info = EngineInfo("vllm", launch.context, launch.slots, texts.tokenizer.n_vocab)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        """Queue a request. Raises RequestError, QueueFull, EngineDead."""
        request = self._texts.with_calls(request)
        engine_input = self._texts.engine_input(request, self._spacing, prepared, matchers=1)
        submission = self._queue(engine_input, request, emit)
        return engine_input.submission(submission)

    def _queue(self, engine_input: EngineInput, request: Request, emit: Emit) -> int:
        """Queue a request with its input and return the submission's id. Raises the errors of `submit`."""
        plan = thinking.plan_of(engine_input)
        if plan is None:
            params = translation.sampling(request, engine_input, self._texts.tokenizer.eog)
        else:
            params = thinking.first_step(request, engine_input, plan, self._texts)
        self._take_places(request)
        submission = next(self._ids)
        try:
            asyncio.run_coroutine_threadsafe(
                self._begin(submission, engine_input, params, request, emit), self._loop
            ).result()
        except BaseException:
            self._give_places(request)
            raise
        return submission

    recompiles = True

    def with_calls(self, request: Request) -> Request:
        return self._texts.with_calls(request)

    def manner(self, request: Request) -> Manner:
        return self._texts.manner(request, self._spacing)

    def token_table(self) -> TokenTable:
        return self._texts.token_table()

    def _write_on(self, tokens: list[int], max_tokens: int, emit: Emit) -> None:
        greedy = Request(params=SamplingParams(temperature=0), whole=True)
        self._queue(EngineInput(tokens, max_tokens, [None]), greedy, emit)

    def abort(self, submission_id: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, submission_id)

    def apply_template(self, request: Request) -> str:
        return self._texts.apply_template(request)

    def count_tokens(self, request: Request) -> int:
        return self._texts.count_tokens(request)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self._texts.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: list[int]) -> str:
        return self._texts.detokenize(tokens)

    def stats(self) -> EngineStats:
        """Read vLLM's Prometheus metrics, which it keeps in this process."""
        from prometheus_client import REGISTRY

        found: Counter[str] = Counter()
        for sample in (sample for metric in REGISTRY.collect() for sample in metric.samples):
            if sample.name in _METRICS:
                found[_METRICS[sample.name]] += int(sample.value)
        return EngineStats(**found)

    def activity(self) -> Activity:
        """Return what vLLM does now, measured from its outputs, because its engine is another process."""
        return self._meter.activity()

    def close(self) -> None:
        """Do nothing: vLLM's own server ends its engine."""

    # --- places in the queue ----------------------------------------------------------------------------------------

    def _take_places(self, request: Request) -> None:
        with self._lock:
            if not may_wait(request.client, request.n, self._unfinished, self._launch.slots + _MAX_WAITING):
                raise QueueFull(f"{_MAX_WAITING} sequences are already waiting: try again later")
            self._unfinished[request.client] += request.n

    def _give_places(self, request: Request) -> None:
        with self._lock:
            self._unfinished[request.client] -= request.n
            self._unfinished += Counter()  # drops the clients that have none

    # --- in the event loop ------------------------------------------------------------------------------------------

    async def _begin(
        self, submission: int, engine_input: EngineInput, params: Any, request: Request, emit: Emit
    ) -> None:
        """Queue a request. If vLLM refuses it, raise the error before any answer is sent."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        turn, tokens = self._turns.take(request.client), engine_input.tokens
        try:
            outputs = await self._client.add_request(
                f"tourkit-{submission}", {"prompt_token_ids": tokens}, params, priority=turn
            )
        except BaseException as exc:
            self._turns.leave(request.client, turn, served=False)
            if isinstance(exc, VLLMClientError | ValueError):
                raise RequestError(f"vllm: {exc}", param=translation.refused_param(str(exc), request)) from exc
            if isinstance(exc, EngineDeadError):
                raise EngineDead(f"vllm: {exc}") from exc
            raise
        self._prompts[submission] = len(tokens)
        if not self._relays:
            self._meter.advance(0, len(tokens))
        answers = Answers(request, engine_input, self._texts)
        self._relays[submission] = asyncio.create_task(self._relay(submission, outputs, answers, emit, turn))

    async def _relay(self, submission: int, outputs: Any, answers: Answers, emit: Emit, turn: int) -> None:
        """Emit vLLM's outputs until every sequence has ended. `turn`: of this request, over once vLLM answers."""
        request = answers.request
        served = False
        finish, error = Finish.ABORT, None
        seconds: list[asyncio.Task[None]] = []
        try:
            while answers.unended:
                found = outputs.get_nowait() or await outputs.get()
                done = self._prompts.pop(submission, 0) + sum(len(choice.token_ids) for choice in found.outputs)
                self._meter.advance(done, sum(self._prompts.values()))
                if not served:
                    served = True
                    self._turns.leave(request.client, turn, served=True)
                for delta in answers.outputs(found):
                    emit(delta)
                for index in answers.take_seconds():
                    seconds.append(asyncio.create_task(self._second(submission, index, answers, emit, turn)))
            if not found.finished:  # stop strings have ended every answer
                await self._client.abort(f"tourkit-{submission}")
            await asyncio.gather(*seconds)
        except asyncio.CancelledError:
            await self._client.abort(f"tourkit-{submission}")
        except Exception as exc:  # noqa: BLE001 - task boundary: waiting clients must get the error
            finish, error = Finish.ERROR, EngineError(f"vllm: {type(exc).__name__}: {exc}")
        finally:
            for second in seconds:
                second.cancel()
            del self._relays[submission]
            self._prompts.pop(submission, None)
            if not self._relays:
                self._meter.rest()
            if not served:
                self._turns.leave(request.client, turn, served=False)
            self._give_places(request)
            for index in answers.open:
                emit(Delta(index, "", 0, finish, error))

    async def _second(self, submission: int, index: int, answers: Answers, emit: Emit, turn: int) -> None:
        """Ask vLLM for the rest of an answer after its thinking, and emit it. It keeps the turn of its request."""
        name = f"tourkit-{submission}-{index}"
        tokens, params = answers.second(index)
        outputs = await self._client.add_request(name, {"prompt_token_ids": tokens}, params, priority=turn)
        try:
            while index in answers.open:
                found = outputs.get_nowait() or await outputs.get()
                [choice] = found.outputs
                self._meter.advance(len(choice.token_ids), 0)
                for delta in answers.rest(index, choice):
                    emit(delta)
            if not found.finished:
                await self._client.abort(name)
        except asyncio.CancelledError:
            await self._client.abort(name)
            raise

    def _cancel(self, submission: int) -> None:
        relay = self._relays.get(submission)
        if relay is not None:
            relay.cancel()

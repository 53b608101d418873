"""One generation in the event loop: its deltas, and the answer or the stream made from them."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tourkit.calling.stream import CallStream
from tourkit.calling.tools import Calls, Offer
from tourkit.generation import Delta, Enforced, Finish, Request, Submission, TokenLogprob
from tourkit.server.api.replies import Choice, Reply, Usage, json_response
from tourkit.server.api.requests import Generate
from tourkit.server.api.structured import about, check_all, is_checked, is_plain, verdict_of
from tourkit.server.api.translated import client_field
from tourkit.server.contract import REQUEST_HEADER
from tourkit.server.http import CLIENT_LEFT, hung_up, unless_hung_up

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.grammar.trial.answers import Verdict
    from tourkit.server.api.model import Model

IGNORED = "x-tourkit-ignored"  # the header that names fields of a request that do nothing


class Generation:
    """One submission in the event loop: its deltas in order, and an abort if the client hangs up."""

    def __init__(self, engine: Engine, n: int) -> None:
        self._engine = engine
        self._left = n
        self._submission: int | None = None
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._queue: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._arrived: deque[Delta] = deque()  # deltas from the engine thread that are not in the queue yet
        self.n_prompt = 0
        self.n_completion = 0
        self._found: list[int] = []  # prompt tokens that each ended sequence found in the KV cache
        self.constraint = Enforced()
        self.n_reasoning = 0
        self._first = 0.0  # as in Usage
        self.ignored: tuple[str, ...] = ()  # as in Submission
        self._calls: list[CallStream] = []  # of each sequence; empty if the answers cannot call tools

    @staticmethod
    async def start(model: Model, request: Request, http: HttpRequest) -> Generation | None:
        """Try the request's constraint and submit the request. Return None if the client hangs up during the trial.

        Raises RequestError, QueueFull, EngineError, EngineDead.
        """
        generation = Generation(model.engine, request.n)
        request = await model.with_calls(request)
        if request.constraint is None or model.trial is None:
            submission = await model.submit(request, generation._emit, None)
        else:
            with model.in_trial(http.headers.get(REQUEST_HEADER, "")):
                prepared = await unless_hung_up(http.receive, model.prepare(request, request.constraint))
                if prepared is None:
                    return None
                submission = await model.submit(request, generation._emit, prepared)
        generation._begin(submission, request)
        return generation

    def _begin(self, submission: Submission, request: Request) -> None:
        self._submission, self.n_prompt = submission.id, submission.n_prompt
        self.constraint, self.ignored = submission.constraint, submission.ignored
        if submission.form is not None and request.offer is not None:
            form, names = submission.form, request.offer.names
            texts = _texts(request.offer) if form.notation is not None else {}
            self._calls = [CallStream(form, names, _new_call_id, texts) for _ in range(request.n)]

    def _emit(self, delta: Delta) -> None:
        """Take a delta from the engine's thread or from the loop's thread.

        The engine's thread must not fail if the loop is closed. Waking the loop costs a part of the engine's step, so
        the loop is woken only once for all deltas that arrive until it reads them.
        """
        if threading.get_ident() == self._thread:
            self._queue.put_nowait(delta)
            return
        self._arrived.append(delta)
        if len(self._arrived) == 1 and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take_in)

    def _take_in(self) -> None:
        while self._arrived:
            self._queue.put_nowait(self._arrived.popleft())

    async def deltas(self, request: HttpRequest) -> AsyncIterator[Delta]:
        """Yield the deltas until every sequence has ended. End early and free the slots if the client hangs up."""
        watcher = asyncio.create_task(self._watch(request))
        try:
            while self._left:
                delta = await self._queue.get()
                if delta is None:
                    return
                self._first = self._first or time.monotonic()
                self.n_completion += delta.n_tokens
                self.n_reasoning += delta.n_reasoning
                if delta.finish is not None:
                    self._left -= 1
                    self._found.append(delta.n_cached)
                yield self._with_calls(delta) if self._calls else delta
        finally:
            watcher.cancel()
            self.abort()

    def abort(self) -> None:
        """End the sequences that still run, which frees their slots. Idempotent."""
        if self._left and self._submission is not None:
            self._engine.abort(self._submission)

    def _with_calls(self, delta: Delta) -> Delta:
        """Return a delta with its calls taken out of its text."""
        calls, finish = self._calls[delta.index], delta.finish
        found = calls.feed(delta.text)
        content, pieces = found.content, found.pieces
        if finish is not None:
            rest = calls.close(cut=finish is not Finish.STOP)
            content, pieces = content + rest.content, pieces + rest.pieces
            finish = Finish.TOOL_CALLS if finish is Finish.STOP and calls.called else finish
        return replace(delta, text=content, calls=pieces, finish=finish)

    async def _watch(self, request: HttpRequest) -> None:
        await hung_up(request.receive)
        self._queue.put_nowait(None)

    @property
    def complete(self) -> bool:
        return self._left == 0

    def usage(self) -> Usage:
        """Return the tokens so far. What the samples of a request take over from each other was not found by it."""
        n_cached = min(self._found, default=0)
        return Usage(self.n_prompt, self.n_completion, n_cached, self.n_reasoning, self._first)


def _texts(offer: Offer) -> dict[str, tuple[str, ...]]:
    """Return for each tool the names of the parameters that are written as they are, without quotes of JSON."""
    return {
        name: tuple(each.name for each in parameters or () if each.is_text)
        for name, parameters in offer.parameters.items()
    }


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class Whole:
    """The `n` answers of a request, put together from their deltas."""

    def __init__(self, n: int) -> None:
        self._texts, self._thoughts, self._finishes = [""] * n, [""] * n, [Finish.STOP] * n
        self._logprobs: list[tuple[TokenLogprob, ...]] = [()] * n
        self._calls = [Calls() for _ in range(n)]
        self._stops = [""] * n

    def take(self, delta: Delta) -> None:
        """Add a delta of one answer."""
        i = delta.index
        self._texts[i] += delta.text
        self._thoughts[i] += delta.reasoning
        self._logprobs[i] += delta.logprobs
        self._calls[i].take(delta.calls)
        self._finishes[i] = delta.finish or self._finishes[i]
        self._stops[i] = delta.stop or self._stops[i]

    def choices(self) -> list[Choice]:
        calls = [tuple(each.found) for each in self._calls]
        return list(map(Choice, self._texts, self._finishes, self._logprobs, self._thoughts, calls, self._stops))


async def collect(generation: Generation, n: int, http: HttpRequest) -> list[Choice] | None:
    """Return every complete sequence; None if the client hung up. Raises EngineError if a sequence failed."""
    whole = Whole(n)
    async for delta in generation.deltas(http):
        if delta.failure:
            raise delta.failure
        whole.take(delta)
    return whole.choices() if generation.complete else None


async def complete(model: Model, asked: Generate, reply: Reply, http: HttpRequest) -> Response:
    """Return the complete answer. A structured answer is checked first, and repaired or asked for again if needed."""
    generation = await Generation.start(model, asked.request, http)
    choices = None if generation is None else await collect(generation, asked.request.n, http)
    if generation is None or choices is None:
        return Response(status_code=CLIENT_LEFT)
    used = generation.usage()
    if not is_checked(asked.request, choices):
        return _answer(generation, asked, reply.completion(choices, used))

    async def judge(schema: str, text: str) -> Verdict | None:
        return await unless_hung_up(http.receive, model.judge(schema, text, may_repair=True))

    async def ask(request: Request) -> Choice | None:
        nonlocal used
        retry = await Generation.start(model, request, http)
        second = None if retry is None else await collect(retry, 1, http)
        if retry is None or second is None:
            return None
        used += retry.usage()
        return second[0]

    results = await check_all(asked.request, choices, judge, ask)
    if results is None:
        return Response(status_code=CLIENT_LEFT)
    body = reply.completion([each.choice for each in results], used)
    if asked.request.schema_source is not None or not is_plain(generation.constraint, results):
        body |= {"tourkit": about(generation.constraint, results)}
    response = _answer(generation, asked, body)
    response.headers["x-tourkit-constraint"] = generation.constraint.level
    return response


def _answer(generation: Generation, asked: Generate, body: dict[str, Any]) -> Response:
    """Return the response with an answer, and the names of the request's fields that did nothing."""
    response = json_response(200, body)
    response.headers.update(ignored_header(generation, asked))
    return response


def ignored_header(generation: Generation, asked: Generate) -> dict[str, str]:
    """Return the header that names fields of a request that do nothing for its model; empty if there are none."""
    names = [client_field(name, asked.names) for name in (*generation.ignored, *asked.ignored)]
    return {IGNORED: ", ".join(dict.fromkeys(names))} if names else {}


async def stream(
    model: Model, generation: Generation, reply: Reply, asked: Generate, http: HttpRequest
) -> AsyncIterator[bytes]:
    """Yield the answer in pieces. A structured answer is checked at its end; the end of the stream reports it.

    Nothing is yielded before the first text; the opening of the stream is a part of that piece. Raises EngineError or
    RequestError if the engine fails before it writes anything; a later failure is a piece.
    """
    whole, has_begun, opening = Whole(asked.request.n), False, b""
    async for delta in generation.deltas(http):
        if delta.failure and not has_begun:
            raise delta.failure
        if not has_begun:
            has_begun, opening = True, reply.opening(asked.request.n)
        if delta.failure:
            yield opening + reply.failure(delta.failure)
            return
        whole.take(delta)
        if piece := reply.chunk(delta, generation.usage):
            yield opening + piece
            opening = b""
    if not generation.complete:
        return
    choices, remark = whole.choices(), None
    if is_checked(asked.request, choices):

        async def judge(schema: str, text: str) -> Verdict | None:
            return await model.judge(schema, text, may_repair=False)

        results = [found for each in choices if (found := await verdict_of(asked.request, each, judge)) is not None]
        if not is_plain(generation.constraint, results):
            remark = about(generation.constraint, results)
    yield opening + reply.closing(choices, generation.usage(), remark)

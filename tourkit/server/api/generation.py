"""One generation in the event loop: its deltas, and the answer or the stream made from them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tourkit.generation import Delta, Enforced, Finish, Request, TokenLogprob
from tourkit.server.api.replies import ChatReply, Choice, TextReply, error_body, json_response, usage
from tourkit.server.api.requests import Generate
from tourkit.server.api.structured import about, check, check_all
from tourkit.server.http import CLIENT_LEFT, hung_up

if TYPE_CHECKING:
    from tourkit.backends.base import Engine


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
        self.constraint = Enforced()

    @staticmethod
    async def start(engine: Engine, request: Request) -> Generation:
        """Submit a request. Raises RequestError, QueueFull, EngineDead."""
        generation = Generation(engine, request.n)
        submission = await asyncio.to_thread(engine.submit, request, generation._emit)
        generation._submission, generation.n_prompt = submission.id, submission.n_prompt
        generation.constraint = submission.constraint
        return generation

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
                self.n_completion += delta.n_tokens
                self._left -= delta.finish is not None
                yield delta
        finally:
            watcher.cancel()
            if self._left and self._submission is not None:
                self._engine.abort(self._submission)

    async def _watch(self, request: HttpRequest) -> None:
        await hung_up(request.receive)
        self._queue.put_nowait(None)

    @property
    def complete(self) -> bool:
        return self._left == 0

    def usage(self) -> dict[str, int]:
        return usage(self.n_prompt, self.n_completion)


async def collect(generation: Generation, n: int, http: HttpRequest) -> list[Choice] | None:
    """Return every complete sequence; None if the client hung up. Raises EngineError if a sequence failed."""
    texts, finishes = [""] * n, [Finish.STOP] * n
    logprobs: list[tuple[TokenLogprob, ...]] = [()] * n
    async for delta in generation.deltas(http):
        texts[delta.index] += delta.text
        logprobs[delta.index] += delta.logprobs
        if delta.finish:
            if delta.failure:
                raise delta.failure
            finishes[delta.index] = delta.finish
    return list(map(Choice, texts, finishes, logprobs)) if generation.complete else None


async def complete(engine: Engine, asked: Generate, reply: ChatReply | TextReply, http: HttpRequest) -> Response:
    """Return the complete answer. A structured answer is checked first, and repaired or asked for again if needed."""
    generation = await Generation.start(engine, asked.request)
    choices = await collect(generation, asked.request.n, http)
    if choices is None:
        return Response(status_code=CLIENT_LEFT)
    used, schema = generation.usage(), asked.request.schema
    if schema is None:
        return json_response(200, reply.completion(choices, used))

    async def ask(request: Request) -> Choice | None:
        nonlocal used
        retry = await Generation.start(engine, request)
        second = await collect(retry, 1, http)
        used = _sum(used, retry.usage())
        return second[0] if second else None

    checked = await check_all(asked.request, schema, choices, ask)
    if checked is None:
        return Response(status_code=CLIENT_LEFT)
    body = reply.completion([each.choice for each in checked], used)
    response = json_response(200, body | {"tourkit": about(generation.constraint, checked)})
    response.headers["x-tourkit-constraint"] = generation.constraint.level
    return response


async def stream(
    generation: Generation, reply: ChatReply | TextReply, asked: Generate, http: HttpRequest
) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events. A structured answer is checked at its end; the last chunk reports it."""
    n, schema = asked.request.n, asked.request.schema
    opening = reply.opening(n)
    if opening is not None:
        yield _event(opening)
    texts, finishes = [""] * n, [Finish.STOP] * n
    async for delta in generation.deltas(http):
        if delta.failure:
            yield _event(error_body(delta.failure)[1])
            return
        texts[delta.index] += delta.text
        finishes[delta.index] = delta.finish or finishes[delta.index]
        yield _event(reply.chunk(delta))
    if not generation.complete:
        return
    if schema is not None:
        whole = [Choice(*each, None) for each in zip(texts, finishes, strict=True)]
        checked = [await asyncio.to_thread(check, schema, each, may_repair=False) for each in whole]
        if generation.constraint.level != "strict" or not all(each.valid for each in checked):
            yield _event(reply.remark(about(generation.constraint, checked)))
    if asked.include_usage:
        yield _event(reply.closing(generation.usage()))
    yield b"data: [DONE]\n\n"


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one[name] + other[name] for name in one}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"

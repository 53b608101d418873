"""Passes a request to the worker of its model, and the worker's bytes back as they come.

If the worker dies before the first byte of an answer, the request is asked again once, alone (`lane`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from starlette.types import Send

from tourkit.errors import EngineDead, EngineError, RequestError, TourkitError
from tourkit.launch import Launch
from tourkit.server.api.dialects import Dialect, dialect_of
from tourkit.server.api.replies import error_body
from tourkit.server.gateway.supervisor import Worker
from tourkit.server.gateway.swapping import Swapper
from tourkit.server.gateway.upstream import Asked, Upstream

_PASSED = (  # headers of a worker's answer
    *("content-type", "content-length", "retry-after", "cache-control", "x-accel-buffering"),
    *("x-tourkit-constraint", "x-tourkit-emulated", "x-tourkit-ignored"),
)
_DEAD = 503  # the status of a worker whose engine has died; the worker ends after it
_END_SECONDS = 10.0  # for the end of a process to be seen after its connections have broken


@dataclass(frozen=True, slots=True)
class _Failed:
    """No byte was sent. `error`: for the client. `has_died`: the worker ended, and the request may be asked again."""

    error: EngineDead
    has_died: bool


class Relay:
    """Belongs to the gateway's event loop. `swapper`: returns who gives the turns. `running`: requests in workers."""

    def __init__(self, upstream: Upstream, swapper: Callable[[], Swapper]) -> None:
        self._upstream = upstream
        self._swapper = swapper
        self._numbers = itertools.count(1)
        self.running = 0

    async def answer(self, worker: Worker, asked: Asked, send: Send) -> TourkitError | None:
        """Forward one request when its worker has the turn. Return an error that comes before the first byte."""
        try:
            while True:
                async with self._swapper().admitted(worker) as admitted:
                    async with admitted.lane.together():
                        if not admitted.answers_itself:
                            continue  # it has died while a request that is asked again was alone in it
                        failed = await self._ask(admitted, asked, send)
                    if failed is None:
                        return None
                    if not failed.has_died:
                        return failed.error
                    failed = await self._ask_again(admitted, asked, send)
                    return failed.error if failed is not None else None
        except (EngineError, RequestError) as exc:
            return exc

    async def _ask_again(self, worker: Worker, asked: Asked, send: Send) -> _Failed | None:
        """Ask a worker that has died once more, alone. Raises EngineDead if it does not come back in time."""
        try:
            async with asyncio.timeout(worker.timeouts.asked_again) as waiting, worker.lane.alone() as share:
                if await worker.ready() is not worker:
                    model = worker.placement.launch.model
                    raise EngineDead(f"the worker of {model} ended, and another variant answers from now on: ask again")
                waiting.reschedule(None)
                sharing = asyncio.get_running_loop().call_later(worker.timeouts.alone, share)
                try:
                    failed = await self._ask(worker, asked, send, on_first_byte=share)
                finally:
                    sharing.cancel()
        except TimeoutError:
            raise EngineDead(worker.trouble()) from None
        if failed is not None and failed.has_died:
            model = worker.current.launch.model
            return _Failed(EngineDead(f"the worker of {model} ended twice over this request: do not ask again"), True)
        return failed

    async def _ask(
        self, worker: Worker, asked: Asked, send: Send, on_first_byte: Callable[[], None] = lambda: None
    ) -> _Failed | None:
        """Pass one request and its answer. Return None if a byte was sent."""
        started = False
        run, number = worker.run, str(next(self._numbers))
        launch, dialect = worker.current.launch, dialect_of(asked.path)
        self.running += 1
        try:
            async with self._upstream.post(worker, asked, number) as answer:
                if answer.status == _DEAD:
                    return await self._failed(worker, run, number, _message(await answer.read()))
                await send(_start(answer, launch))
                started = True
                on_first_byte()
                blocks: AsyncIterator[bytes] = answer.content.iter_any()
                if answer.content_type == dialect.stream_type:
                    blocks = whole_pieces(blocks, dialect.ends)
                async for block in blocks:
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                worker.answered()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except aiohttp.ClientError as exc:
            if not started:
                why = f"the worker of {launch.model} went away ({exc}): ask again, it is restarted"
                return await self._failed(worker, run, number, why)
            if answer.content_type == dialect.stream_type:  # a plain answer ends before its announced length
                await _cut_short(send, launch, dialect)
        finally:
            self.running -= 1
        return None

    async def _failed(self, worker: Worker, run: int, number: str, why: str) -> _Failed:
        """Find out whether the worker has died, and whether it tried the constraint of this request meanwhile."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                await worker.ended(run)
        except TimeoutError:
            return _Failed(EngineDead(why), has_died=False)
        if worker.was_tried(number):
            model = worker.current.launch.model
            return _Failed(EngineDead(f"the worker of {model} ended while it tried the constraint: ask again"), False)
        return _Failed(EngineDead(why), has_died=True)


async def whole_pieces(blocks: AsyncIterable[bytes], ends: bytes) -> AsyncIterator[bytes]:
    """Yield a stream in whole pieces, each with `ends` at its end. So an error never follows half of a piece."""
    held = b""
    async for block in blocks:
        whole, end, held = (held + block).rpartition(ends)
        if end:
            yield whole + end
    if held:
        yield held


def _message(body: bytes) -> str:
    """Return the message of an error that a worker answered."""
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "the worker failed"


def _start(answer: aiohttp.ClientResponse, launch: Launch) -> dict[str, Any]:
    headers = [(b"x-tourkit-model", launch.title.encode())]
    for name in _PASSED:
        if name in answer.headers:
            headers.append((name.encode(), answer.headers[name].encode()))
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _cut_short(send: Send, launch: Launch, dialect: Dialect) -> None:
    """Report a worker that died while it wrote a stream."""
    status, body = error_body(EngineDead(f"the worker of {launch.model} went away in the middle of the answer"))
    await send({"type": "http.response.body", "body": dialect.failure(status, body), "more_body": False})

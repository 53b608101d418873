"""Work on large inputs in threads of its own, so that the event loop can serve other requests meanwhile.

Small inputs are done at once: a change of threads would cost more than the work. These threads are not the default
ones, which start generations: a few large inputs must not keep other requests waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import Receive

from tourkit.server.api.json_text import load
from tourkit.server.http import unless_hung_up

T = TypeVar("T")

LARGE_BODY = 65_536  # bytes; parsing fewer takes about a millisecond
LARGE_TEXT = 4_096  # characters or tokens; tokenizing fewer takes a few milliseconds
_PARSING = ThreadPoolExecutor(1, "tourkit-parsing")  # parsing holds the GIL, so more threads would not be faster
_TOKENIZING = ThreadPoolExecutor(2, "tourkit-tokenizing")


async def parsed(body: bytes, parse: Callable[[Any], T]) -> T:
    """Return `parse` of a body's JSON. Raises RequestError."""
    if len(body) <= LARGE_BODY:
        return parse(load(body))
    return await asyncio.wrap_future(_PARSING.submit(lambda: parse(load(body))))


async def tokenized(
    size: int, work: Callable[[], T], receive: Receive, drop: Callable[[T], object] = lambda result: None
) -> T | None:
    """Return the result of work on a text of `size` characters or tokens.

    Return None if the client hangs up before: `drop` then gets the result if the work has begun.
    """
    if size <= LARGE_TEXT:
        return work()
    return await unless_hung_up(receive, result(_TOKENIZING.submit(work), drop))


async def result(future: Future[T], drop: Callable[[T], object] = lambda result: None) -> T:
    """Return the result of a future. If this is cancelled, cancel the future too; `drop` gets a result that comes."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancelled():  # work that runs in a thread goes on to its end
            future.add_done_callback(lambda done: None if done.exception() else drop(done.result()))
        raise

"""What usage.prompt_tokens_details.cached_tokens counts: the prompt tokens that the request found in the KV cache."""

from __future__ import annotations

import asyncio
import queue

from fake_runner import FakeRunner
from idle_engine import IdleEngine
from starlette.requests import Request as HttpRequest

from tourkit.engine.engine import BatchEngine
from tourkit.generation import Delta, Emit, EngineInfo, Finish, Request, SamplingParams, Submission
from tourkit.grammar.prepared import Prepared
from tourkit.server.api.generation import Generation, collect
from tourkit.server.api.model import Model
from tourkit.server.api.replies import Usage

PROMPT = list(b"a document of a hundred tokens " * 4)


def found(engine: BatchEngine, prompt: list[int], n: int = 1) -> list[int]:
    """Return what the last delta of each sequence says; no other delta says anything."""
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(prompt, SamplingParams(temperature=0), 9, deltas.put, [None] * n)
    last: dict[int, int] = {}
    while len(last) < n:
        delta = deltas.get(timeout=60)
        if delta.finish is None:
            assert delta.n_cached == 0
        else:
            last[delta.index] = delta.n_cached
    return [last[index] for index in range(n)]


def test_a_prompt_that_is_asked_again_is_found_but_for_its_last_token() -> None:
    engine = BatchEngine(FakeRunner())

    first, again, longer = found(engine, PROMPT), found(engine, PROMPT), found(engine, [*PROMPT, *b"more"])

    engine.close()
    assert first == [0]
    assert again == [len(PROMPT) - 1]
    assert longer == [len(PROMPT)]


def test_a_prompt_never_finds_more_tokens_than_it_has() -> None:
    """A grammar forces tokens after the prompt. They can be found too, and they are no tokens of the prompt."""
    engine = BatchEngine(FakeRunner())
    found(engine, [*PROMPT, *b"more"])

    again = found(engine, PROMPT)

    engine.close()
    assert again == [len(PROMPT) - 1]


def test_a_sequence_that_is_computed_again_for_lack_of_cells_did_not_find_its_own_prompt() -> None:
    engine = BatchEngine(FakeRunner(slots=2, n_ctx=150))
    one, two = PROMPT[:60], list(b"another one " * 5)
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    for prompt in (one, two):
        engine.submit(prompt, SamplingParams(temperature=0), 80, deltas.put)
    endings: list[Delta] = []
    while len(endings) < 2:
        delta = deltas.get(timeout=60)
        endings += [delta] if delta.finish else []

    engine.close()
    assert [ending.n_cached for ending in endings] == [0, 0]


class Canned(IdleEngine):
    """An Engine that ends each sequence at once. `cached`: what each of them found."""

    info = EngineInfo("canned", 100, 4, 10)

    def __init__(self, *cached: int) -> None:
        self._cached = cached

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        for index, cached in enumerate(self._cached):
            emit(Delta(index, "text", 5, Finish.STOP, n_cached=cached))
        return Submission(1, 70)


def usage(*cached: int) -> Usage:
    async def never() -> object:
        return await asyncio.Event().wait()

    async def asked() -> Usage:
        http = HttpRequest({"type": "http", "headers": []}, receive=never)  # type: ignore[arg-type]
        generation = await Generation.start(Model(Canned(*cached)), Request(prompt="Q", n=len(cached)), http)
        assert generation is not None
        await collect(generation, len(cached), http)
        return generation.usage()

    return asyncio.run(asked())


def test_what_samples_take_over_from_each_other_was_not_found_by_their_request() -> None:
    assert usage(0, 69, 69) == Usage(70, 15, 0)
    assert usage(69, 69) == Usage(70, 10, 69)


def test_it_is_in_the_place_where_clients_of_openai_look() -> None:
    both = Usage(70, 15, 9) + Usage(80, 5, 70)

    assert both.to_json() == {
        "prompt_tokens": 150,
        "completion_tokens": 20,
        "total_tokens": 170,
        "prompt_tokens_details": {"cached_tokens": 79},
    }

"""Hybrid models: prompts go on from checkpoints of the fixed state, and every answer is the one of the prompt alone."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner, alone, submit

from tourkit.engine.checkpoints import Checkpoints, positions, spacing
from tourkit.engine.engine import BatchEngine
from tourkit.engine.meter import WorkMeter
from tourkit.engine.run_store import open_store
from tourkit.generation import EngineStats

SLOW = 1.0  # tokens a second: at this rate every copy is faster than computing


@pytest.fixture(autouse=True)
def slow_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine believe that its model is slow, as a real one is: then no hiccup makes a copy look slower."""
    monkeypatch.setattr(WorkMeter, "prefill_rate", lambda meter: SLOW)


def text(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghij", k=length))


def hybrid(**how: Any) -> BatchEngine:
    runner = {name: how.pop(name) for name in ("slots", "n_ctx", "state_bytes") if name in how}
    return BatchEngine(FakeRunner(n_batch=512, checkpoints=True, **{"n_ctx": 8000} | runner), **how)


def answers(engine: BatchEngine, prompts: list[str]) -> list[EngineStats]:
    """Ask one prompt after the other and check the answers. Return the figures after each."""
    found = []
    for prompt in prompts:
        assert submit(engine, prompt, max_tokens=8).wait()[0] == alone(prompt, 8)
        found.append(engine.stats())
    return found


def cached(stats: list[EngineStats]) -> list[int]:
    """Return how many tokens of each prompt were not computed again."""
    totals = [0, *(each.cached_tokens for each in stats)]
    return [after - before for before, after in pairwise(totals)]


# --- where checkpoints are made ---------------------------------------------------------------------------------------


def test_a_prompt_has_a_checkpoint_near_its_end_where_it_leaves_an_earlier_one_and_at_every_step() -> None:
    assert positions(0, 300, 0, 512) == [292]
    assert positions(0, 300, 100, 512) == [100, 292]
    assert positions(0, 1500, 600, 512) == [512, 600, 1024, 1492]
    assert positions(600, 1500, 600, 512) == [1024, 1492]


def test_checkpoints_that_save_little_are_not_made() -> None:
    assert positions(0, 40, 0, 512) == []
    assert positions(0, 300, 20, 512) == [292]
    assert positions(0, 300, 290, 512) == [290]
    assert positions(280, 300, 0, 512) == []


def test_the_checkpoints_of_a_long_prompt_take_at_most_a_quarter_of_the_cache() -> None:
    assert spacing(2000, 0, 1 << 20) == 512
    assert spacing(2000, 50, 800) == 512
    assert spacing(2000, 50, 600) == 1024
    assert spacing(8000, 50, 600) == 4096
    assert spacing(8000, 1000, 600) == 8192


def test_the_longest_checkpoint_of_the_same_beginning_is_found() -> None:
    known = Checkpoints()
    for tokens in ([1, 2], [1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 4, 5, 6]):
        known.add(array("i", tokens)).cells = bytearray(1)

    found = [known.longest([1, 2, 3, 4, 5, 7], most) for most in (6, 3, 1)]

    assert [run and run.tokens.tolist() for run in found] == [[1, 2, 3, 4], [1, 2], None]


# --- what they save ---------------------------------------------------------------------------------------------------


def test_the_next_turn_of_a_chat_goes_on_from_the_end_of_the_last_prompt() -> None:
    engine = hybrid()
    first = text(1, 400)

    stats = answers(engine, [first, first + "answer" + text(2, 50)])

    engine.close()
    assert cached(stats) == [0, 392]


def test_a_third_question_about_a_document_goes_on_where_the_second_left_the_first() -> None:
    engine = hybrid()
    document = text(1, 400)

    stats = answers(engine, [document + text(seed, 60) for seed in (2, 3, 4, 5)])

    engine.close()
    assert cached(stats)[:2] == [0, 0]
    assert all(400 <= found < 410 for found in cached(stats)[2:])


def test_a_second_question_about_a_long_document_goes_on_from_within_it() -> None:
    engine = hybrid()
    document = text(1, 1500)

    stats = answers(engine, [document + text(seed, 60) for seed in (2, 3, 4)])

    engine.close()
    assert cached(stats)[:2] == [0, 1024]
    assert cached(stats)[2] >= 1500


def test_prompts_that_come_together_compute_their_common_beginning_once() -> None:
    engine = hybrid(slots=4)
    prompts = [text(1, 400) + text(seed, 60) for seed in (2, 3, 4, 5)]

    running = [submit(engine, prompt, max_tokens=8) for prompt in prompts]

    assert [each.wait()[0] for each in running] == [alone(prompt, 8) for prompt in prompts]
    stats = engine.stats()
    engine.close()
    assert stats.cached_tokens >= 3 * 400


def test_votes_on_a_prompt_compute_it_once() -> None:
    engine = hybrid(slots=4)
    prompt = text(1, 400)

    found = submit(engine, prompt, n=4, max_tokens=8).wait()

    stats = engine.stats()
    engine.close()
    assert found == [alone(prompt, 8)] * 4
    assert stats.cached_tokens == 3 * 392


def test_a_prompt_that_begins_with_all_of_an_earlier_sequence_needs_no_checkpoint() -> None:
    """The slot still has the state after the first answer."""
    engine = hybrid(slots=1)
    first = text(1, 20)
    second = first + alone(first, 8)[0] + "more"

    stats = answers(engine, [first, second])

    engine.close()
    assert cached(stats) in ([0, 20 + 7], [0, 0])  # none if the engine rested in between


def test_a_preempted_sequence_goes_on_from_its_checkpoint() -> None:
    engine = hybrid(slots=3, n_ctx=420)
    prompts = [text(seed, 150) for seed in (1, 2, 3)]

    running = [submit(engine, prompt, max_tokens=30) for prompt in prompts]

    assert [each.wait()[0] for each in running] == [alone(prompt, 30) for prompt in prompts]
    assert engine.stats().preemptions > 0
    engine.close()


def test_checkpoints_survive_on_disk(tmp_path: Path) -> None:
    prompt = text(1, 400)
    for expected in (0, 392):
        engine = hybrid(store=open_store(tmp_path, "model", print))

        stats = answers(engine, [prompt])

        engine.close()
        assert cached(stats) == [expected]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_cells_and_checkpoints_together_keep_within_the_bytes() -> None:
    engine = hybrid(prompt_cache=60_000, state_bytes=10_000)

    stats = answers(engine, [text(seed, 300) for seed in range(12)] * 2)

    engine.close()
    assert all(each.prompt_cache_bytes <= 60_000 for each in stats)
    assert sum(cached(stats)) > 0


@pytest.mark.parametrize("how", [{"prompt_cache": 0}, {"prompt_cache": 30_000, "state_bytes": 20_000}])
def test_without_room_for_checkpoints_every_prompt_is_computed(how: dict[str, int]) -> None:
    engine = hybrid(slots=4, **how)
    prompts = [text(1, 400) + text(seed, 60) for seed in (2, 3, 4, 5)] * 2

    running = [submit(engine, prompt, max_tokens=8) for prompt in prompts]

    assert [each.wait()[0] for each in running] == [alone(prompt, 8) for prompt in prompts]
    engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_asked_every_answer_is_the_one_of_the_prompt_alone(seed: int, tmp_path: Path) -> None:
    """Random prompts with common beginnings, in few slots and cells, in a small cache, over two starts."""
    rng = random.Random(seed)
    stems = [text(each, rng.randint(1, 700)) for each in range(4)]
    for _ in range(2):
        store = open_store(tmp_path, "model", print)
        engine = hybrid(slots=3, n_ctx=1700, prompt_cache=40_000, state_bytes=2_000, store=store)
        for _ in range(5):
            lengths = [(rng.randint(1, 700), rng.randint(0, 90)) for _ in range(rng.randint(1, 4))]
            prompts = [rng.choice(stems)[:stem] + text(rng.randrange(9), rest) for stem, rest in lengths]
            running = [submit(engine, prompt, n=rng.randint(1, 3), max_tokens=6) for prompt in prompts]
            for prompt, each in zip(prompts, running, strict=True):
                assert each.wait() == [alone(prompt, 6)] * each.n
        assert engine.stats().cached_tokens > 0
        engine.close()


# --- what the engine says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runner", "how", "expected"),
    [
        ({}, {}, "any prefix"),
        ({}, {"prompt_cache": 0}, "any prefix"),
        ({"checkpoints": True}, {}, "from checkpoints"),
        (
            {"checkpoints": True},
            {"prompt_cache": 0},
            "whole prompts: the model has a fixed state, and the prompt cache has no room for copies of it",
        ),
        ({"partial_kv": False}, {}, "whole prompts: the model has a fixed state, and it cannot be copied"),
        ({}, {"deterministic": True}, "off: --deterministic"),
        ({"checkpoints": True}, {"deterministic": True}, "off: --deterministic"),
    ],
)
def test_an_engine_says_how_prompts_share(runner: dict[str, bool], how: dict[str, Any], expected: str) -> None:
    engine = BatchEngine(FakeRunner(**runner), **how)
    engine.close()

    assert engine.prefix_sharing == expected

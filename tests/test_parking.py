"""The KV cells of ended sequences leave the pool, and come back when their prompt comes again."""

from __future__ import annotations

import random

import pytest
from fake_runner import FakeRunner, alone, submit

from tourkit.engine.costs import Costs
from tourkit.engine.engine import BatchEngine
from tourkit.engine.meter import WorkMeter
from tourkit.engine.parking import Parking
from tourkit.engine.placement import Slot
from tourkit.engine.prompt_cache import PromptCache

SLOW = 1.0  # tokens a second: at this rate every copy is faster than computing


def text(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghij", k=length))


def filled(runner: FakeRunner, slot: int, tokens: list[int], used: int) -> Slot:
    """Return an idle slot that holds the cells of these tokens."""
    for pos, token in enumerate(tokens):
        runner.add(token, pos, slot, logits=False)
    assert runner.decode()
    return Slot(slot, cells=tokens, used=used)


def pool(
    *lengths: int, most_bytes: int = 1 << 20, costs: Costs | None = None
) -> tuple[FakeRunner, Parking, list[Slot]]:
    """Make one idle slot per length, with that many tokens. All texts differ. The first slot was used longest ago."""
    costs = costs or Costs(lambda: SLOW)
    runner = FakeRunner(slots=len(lengths), n_batch=2000, n_ctx=5000)
    prompts = [list(text(i, length).encode()) for i, length in enumerate(lengths)]
    slots = [filled(runner, i, tokens, used=i) for i, tokens in enumerate(prompts)]
    cache = PromptCache(runner.longest_run, costs, most_bytes=most_bytes)
    return runner, Parking(runner, cache, costs, idle_cells=700), slots


def brought_back(runner: FakeRunner, parking: Parking, slot: Slot, tokens: list[int]) -> int:
    """Empty a slot and fill it from the cache. Return how many tokens it holds then."""
    runner.truncate(slot.id, 0)
    length = parking.bring_back(slot, tokens, have=0)
    assert runner.tokens(slot.id) == tokens[:length]
    return length


@pytest.fixture
def slow_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine believe that its model is slow, as a real one is: then no hiccup makes a copy look slower."""
    monkeypatch.setattr(WorkMeter, "prefill_rate", lambda meter: SLOW)


def test_the_oldest_idle_slots_are_emptied_until_the_rest_is_within_the_limit() -> None:
    _, parking, slots = pool(300, 400, 500, 150)

    parking.make_way(slots)

    assert [len(slot.cells or ()) for slot in slots] == [0, 0, 500, 150]


def test_what_comes_back_is_what_was_parked() -> None:
    runner, parking, slots = pool(300, 400, 600)
    first = slots[0].cells or []

    parking.make_way(slots)
    back = parking.bring_back(slots[0], [*first, 1, 2, 3], have=0)

    assert back == len(first)
    assert runner.tokens(0) == first


def test_a_prompt_that_shares_its_beginning_gets_that_beginning_and_keeps_its_last_token() -> None:
    runner, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)

    assert brought_back(runner, parking, slots[0], [*first[:250], 1, 2]) == 250
    assert brought_back(runner, parking, slots[0], first) == 299


def test_what_a_slot_holds_already_is_not_copied_again() -> None:
    runner, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)
    for pos, token in enumerate(first[:150]):
        runner.add(token, pos, 0, logits=False)
    assert runner.decode()

    assert parking.bring_back(slots[0], [*first, 1], have=150) == 300
    assert runner.tokens(0) == first


def test_what_is_computed_sooner_than_copied_is_neither_parked_nor_brought_back() -> None:
    rate = [SLOW]
    costs = Costs(lambda: rate[0])
    runner, parking, slots = pool(300, 300, 700, costs=costs)
    first, second = (slot.cells or [] for slot in slots[:2])
    parking.clear(slots[0], slots)
    costs.out.learn(10**9, 10**9)  # a second a byte from here on
    costs.back.learn(10**9, 10**9)
    rate[0] = 1000

    parking.clear(slots[1], slots)

    assert brought_back(runner, parking, slots[0], [*first, 1]) == 0
    rate[0] = SLOW / 1000
    assert brought_back(runner, parking, slots[0], [*first, 1]) == 300
    assert brought_back(runner, parking, slots[0], [*second, 1]) == 0


def test_what_another_slot_holds_is_not_parked() -> None:
    runner, parking, slots = pool(800, 900)
    first = slots[0].cells or []
    runner.truncate(1, 0)
    runner.share(0, 1, 800)
    slots[1].cells = list(first)

    parking.clear(slots[0], slots)

    assert brought_back(runner, parking, slots[0], [*first, 1]) == 0


def test_what_prompts_have_in_common_is_parked_once() -> None:
    runner, parking, slots = pool(1000, 1000)
    first, other = (slot.cells or [] for slot in slots)
    runner.truncate(1, 0)
    runner.share(0, 1, 950)
    second = slots[1].cells = first[:950] + other[950:]
    for pos in range(950, 1000):
        runner.add(second[pos], pos, 1, logits=False)
    assert runner.decode()

    parking.rest(slots)

    assert parking.n_bytes == 4 * (1000 + 10 + 50 + 1)  # the fake runner writes one number more for each run
    assert [brought_back(runner, parking, slots[0], [*tokens, 1]) for tokens in (first, second)] == [1000, 1000]


def test_parked_prompts_keep_within_their_bytes() -> None:
    """A cell of the fake runner has four bytes."""
    runner, parking, slots = pool(300, 300, 300, 700, most_bytes=4 * 650)
    prompts = [slot.cells or [] for slot in slots]

    parking.make_way(slots)

    assert 4 * 450 < parking.n_bytes <= 4 * 650
    found = [brought_back(runner, parking, slots[0], [*tokens, 1]) for tokens in prompts[:3]]
    assert sum(found) > 450


def test_without_any_bytes_nothing_is_parked() -> None:
    runner, parking, slots = pool(300, 700, most_bytes=0)
    first = slots[0].cells or []

    parking.rest(slots)

    assert [slot.cells for slot in slots] == [None, None]
    assert brought_back(runner, parking, slots[0], [*first, 1]) == 0


def test_a_pool_with_little_room_takes_back_what_fits() -> None:
    runner, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)
    runner.n_ctx = 900

    assert brought_back(runner, parking, slots[0], [*first, 1]) == 200


@pytest.mark.usefixtures("slow_prefill")
def test_an_engine_answers_the_same_and_computes_no_parked_prompt_again() -> None:
    """Six prompts of 600 tokens run twice in two slots. The second time only the last token of each is computed."""
    engine = BatchEngine(FakeRunner(slots=2, n_batch=512, n_ctx=4000))
    prompts = [str(seed) + text(seed, 599) for seed in range(6)]

    answers = [submit(engine, prompt, max_tokens=8).wait()[0] for prompt in prompts * 2]

    stats = engine.stats()
    engine.close()
    assert answers == [alone(prompt, 8) for prompt in prompts] * 2
    assert stats.cached_tokens == 6 * 599


@pytest.mark.usefixtures("slow_prefill")
def test_an_engine_without_work_parks_what_waits_in_its_slots_and_answers_from_it() -> None:
    runner = FakeRunner(slots=2, n_batch=512, n_ctx=4000)
    engine = BatchEngine(runner)
    prompt = text(0, 600)
    first = submit(engine, prompt, max_tokens=8).wait()[0]
    while any(runner.tokens(slot) for slot in range(2)):
        pass  # until the engine has parked them

    second = submit(engine, prompt, max_tokens=8).wait()[0]

    stats = engine.stats()
    engine.close()
    assert first == second == alone(prompt, 8)
    assert stats.cached_tokens == 599


def test_at_rest_every_slot_is_emptied_and_what_is_worth_bringing_back_is_parked() -> None:
    runner, parking, slots = pool(300, 100, 40)
    prompts = [slot.cells or [] for slot in slots]

    parking.rest(slots)

    assert [len(slot.cells or ()) for slot in slots] == [0, 0, 0]
    assert not parking.is_due(slots)
    assert [brought_back(runner, parking, slots[0], [*tokens, 1]) for tokens in prompts] == [300, 100, 40]


def test_what_takes_long_to_move_is_moved_only_while_no_prompt_waits() -> None:
    found = []
    for waiting in (False, True):
        costs = Costs(lambda: 0.2)
        runner, parking, slots = pool(100, 700, costs=costs)
        first = slots[0].cells or []
        costs.measure(100, 404)
        costs.out.learn(10**9, 10**9)  # a second a byte: 4 s a cell; computing it takes 5 s

        if waiting:
            parking.make_way(slots)
        else:
            parking.rest(slots)

        assert slots[0].cells is None
        found.append(brought_back(runner, parking, slots[0], [*first, 1]))
    assert found == [100, 0]


def test_the_engine_counts_what_its_prompt_cache_holds_and_finds(slow_prefill: None) -> None:
    engine = BatchEngine(FakeRunner(slots=1, n_batch=512, n_ctx=4000), prompt_cache=1 << 16)
    for seed in (1, 2, 1):
        submit(engine, text(seed, 300), max_tokens=1).wait()

    stats = engine.stats()
    engine.close()
    assert (stats.prompt_cache_limit_bytes, stats.prompt_cache_disk_bytes) == (1 << 16, 0)
    assert (stats.prompt_cache_hits_total, stats.prompt_cache_tokens_total) == (1, 299)
    assert 4 * 600 <= stats.prompt_cache_bytes <= 4 * 620
    assert stats.prompt_cache_entries == 6


def test_a_model_that_keeps_all_or_none_has_no_prompt_cache() -> None:
    engine = BatchEngine(FakeRunner(slots=1, partial_kv=False))
    for seed in (1, 2, 1):
        submit(engine, text(seed, 300), max_tokens=1).wait()

    stats = engine.stats()
    engine.close()
    assert (stats.prompt_cache_limit_bytes, stats.prompt_cache_bytes, stats.cached_tokens) == (0, 0, 0)


def test_cells_that_a_model_has_lost_are_computed_again() -> None:
    """A model with a sliding window may have lost cells of a slot that another prompt wants to share."""

    class Forgetful(FakeRunner):
        def share(self, source: int, target: int, length: int) -> bool:
            return False

        def truncate(self, slot: int, length: int) -> bool:
            super().truncate(slot, 0)
            return not length

    engine = BatchEngine(Forgetful(slots=3, n_batch=512), speculate=False)
    prompts = [text(1, 200), text(1, 200) + "more", text(1, 150)]

    answers = [collected.wait()[0] for collected in [submit(engine, prompt, max_tokens=5) for prompt in prompts * 2]]

    engine.close()
    assert answers == [alone(prompt, 5) for prompt in prompts * 2]

"""The KV cells of ended sequences leave the pool, and come back when their prompt comes again."""

from __future__ import annotations

import random

from fake_runner import FakeRunner, alone, submit
from sequences import sequence

from tourkit.engine.engine import BatchEngine
from tourkit.engine.parking import Parking
from tourkit.engine.placement import Slot


def text(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghij", k=length))


def filled(runner: FakeRunner, slot: int, tokens: list[int], used: int) -> Slot:
    """Return an idle slot that holds the cells of these tokens."""
    for pos, token in enumerate(tokens):
        runner.add(token, pos, slot, logits=False)
    assert runner.decode()
    return Slot(slot, cells=tokens, used=used)


def pool(*lengths: int, most_bytes: int = 1 << 20) -> tuple[FakeRunner, Parking, list[Slot]]:
    """Make one idle slot per length, with that many tokens. All texts differ. The first slot was used longest ago."""
    runner = FakeRunner(slots=len(lengths), n_batch=2000, n_ctx=5000)
    prompts = [list(text(i, length).encode()) for i, length in enumerate(lengths)]
    slots = [filled(runner, i, tokens, used=i) for i, tokens in enumerate(prompts)]
    return runner, Parking(runner, idle_cells=700, most_bytes=most_bytes), slots


def test_the_oldest_idle_slots_are_emptied_until_the_rest_is_within_the_limit() -> None:
    _, parking, slots = pool(300, 400, 500, 150)

    parking.make_way(slots)

    assert [len(slot.cells or ()) for slot in slots] == [0, 0, 500, 150]


def test_what_comes_back_is_what_was_parked() -> None:
    runner, parking, slots = pool(300, 400, 600)
    first = slots[0].cells or []

    parking.make_way(slots)
    back = parking.bring_back(slots[0], [*first, 1, 2, 3], beyond=0)

    assert back == len(first)
    assert runner.tokens(0) == first


def test_a_prompt_that_shares_its_beginning_gets_that_beginning_and_keeps_its_last_token() -> None:
    runner, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)

    assert parking.bring_back(slots[0], [*first[:200], 1, 2], beyond=0) == 200
    assert parking.bring_back(slots[0], first, beyond=0) == 299
    assert runner.tokens(0) == first[:299]


def test_nothing_is_brought_back_that_a_slot_holds_nearly_as_well() -> None:
    _, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)

    assert parking.bring_back(slots[0], [*first, 1], beyond=280) == 0


def test_what_another_slot_holds_is_not_parked() -> None:
    runner, parking, slots = pool(800, 800)
    runner.truncate(1, 0)
    runner.share(0, 1, 700)
    slots[1].cells = (slots[0].cells or [])[:700]

    parking.clear(slots[0], slots)

    assert parking.bring_back(slots[0], list(text(0, 800).encode()), beyond=0) == 0


def test_parked_prompts_keep_within_their_bytes_and_the_latest_stay() -> None:
    """A cell of the fake runner has four bytes."""
    _, parking, slots = pool(300, 300, 300, 700, most_bytes=4 * 650)
    prompts = [slot.cells or [] for slot in slots]

    parking.make_way(slots)

    assert [parking.bring_back(slots[0], [*tokens, 1], beyond=0) for tokens in prompts[:3]] == [0, 300, 300]


def test_a_pool_without_room_is_no_error() -> None:
    runner, parking, slots = pool(300, 700)
    first = slots[0].cells or []
    parking.make_way(slots)
    runner.n_ctx = 900

    assert parking.bring_back(slots[0], [*first, 1], beyond=0) == 0
    assert runner.tokens(0) == []


def test_an_engine_answers_the_same_and_computes_no_parked_prompt_again() -> None:
    """Six prompts of 600 tokens run twice in two slots. The second time only the last token of each is computed."""
    engine = BatchEngine(FakeRunner(slots=2, n_batch=512, n_ctx=4000))
    prompts = [str(seed) + text(seed, 599) for seed in range(6)]

    answers = [submit(engine, prompt, max_tokens=8).wait()[0] for prompt in prompts * 2]

    stats = engine.stats()
    engine.close()
    assert answers == [alone(prompt, 8) for prompt in prompts] * 2
    assert stats.cached_tokens == 6 * 599


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
    _, parking, slots = pool(300, 100, 40)
    prompts = [slot.cells or [] for slot in slots]

    parking.rest(slots)

    assert [len(slot.cells or ()) for slot in slots] == [0, 0, 0]
    assert not parking.is_due(slots)
    assert [parking.bring_back(slots[0], [*tokens, 1], beyond=-64) for tokens in prompts] == [300, 100, 0]


def test_short_prompts_are_moved_only_while_nothing_runs() -> None:
    back = []
    for running in (0, 2):
        _, parking, slots = pool(100, 700)
        first = slots[0].cells or []
        busy = [Slot(2 + i, owner=sequence(i, 50, 50)) for i in range(running)]

        parking.make_way([*slots, *busy])

        assert [len(slot.cells or ()) for slot in slots] == [0, 700]
        back.append(parking.bring_back(slots[0], [*first, 1], beyond=0))
    assert back == [100, 0]


def test_a_slot_that_shares_most_with_another_is_not_moved_while_a_prompt_waits() -> None:
    runner, parking, slots = pool(1000, 1000)
    first, other = (slot.cells or [] for slot in slots)
    runner.truncate(1, 0)
    runner.share(0, 1, 900)
    second = slots[1].cells = first[:900] + other[900:]
    for pos in range(900, 1000):
        runner.add(second[pos], pos, 1, logits=False)
    assert runner.decode()

    parking.make_way(slots)

    assert [parking.bring_back(slots[0], [*tokens, 1], beyond=0) for tokens in (first, second)] == [900, 1000]

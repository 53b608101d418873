"""What the prompt cache drops first, and what is worth keeping by measured time."""

from __future__ import annotations

from array import array

import pytest

from tourkit.engine.costs import Costs, Rate
from tourkit.engine.prompt_cache import PromptCache
from tourkit.engine.prompt_tree import Run
from tourkit.engine.retention import drop_order, touch

LENGTH = 100  # tokens of a document here; a cell has one byte
ENDLESS = 1 << 60


def run(name: str, last: int, interval: int | None = None) -> Run:
    return Run(None, 0, array("i", [1]), name.encode(), last=last, interval=interval)


def order(*runs: Run, now: int, capacity: int) -> str:
    return " ".join(run.name.decode() for run in drop_order(runs, lambda _: True, now, capacity))


def test_what_was_expected_and_did_not_come_goes_first() -> None:
    late, later, due = run("late", 600, 300), run("later", 100, 300), run("due", 600, 350)

    assert order(due, late, later, now=1000, capacity=400) == "later late due"


def test_of_prompts_that_come_in_turn_the_one_used_last_goes_first_but_the_latest_stay() -> None:
    runs = [run(f"{last}", last, 1000) for last in range(100, 1000, 100)]

    assert order(*runs, now=1000, capacity=800) == "800 700 600 500 400 300 200 100 900"


def test_a_prompt_that_came_once_goes_before_one_that_comes_again() -> None:
    assert order(run("again", 500, 400), run("once", 500), now=700, capacity=800) == "once again"


def test_uses_shortly_after_each_other_count_as_one() -> None:
    asked = run("asked", 100)
    for now in (900, 910, 920):
        touch(asked, now, capacity=800)

    assert (asked.last, asked.interval) == (920, 800)


class Documents:
    """A cache that holds `room` documents, and counts how many are found. Nothing takes any time."""

    def __init__(self, room: int) -> None:
        self._cache = PromptCache(50, Costs(lambda: 0.0), most_bytes=room * LENGTH)

    def ask(self, *numbers: int) -> int:
        found = 0
        for number in numbers:
            tokens = [number] * LENGTH
            steps = self._cache.look_up(tokens)
            found += bool(steps) and steps[-1].end == LENGTH
            for missing in self._cache.missing(tokens):
                if not self._cache.add(missing, bytearray(len(missing.tokens))):
                    break
        return found


@pytest.mark.parametrize(("asked", "least"), [(20, 20), (21, 16), (40, 16), (100, 15)])
def test_a_loop_over_more_documents_than_fit_finds_a_good_part_of_those_that_fit(asked: int, least: int) -> None:
    """With the least recently used dropped first, 21 documents in a cache for 20 would find none at all."""
    documents = Documents(room=20)

    passes = [documents.ask(*range(asked)) for _ in range(6)]

    assert passes[0] == 0
    assert passes[-1] >= least
    assert asked > 80 or passes[1] >= least - 1


def test_other_documents_take_the_place_of_those_that_nobody_asks_for_any_more() -> None:
    documents = Documents(room=20)
    for _ in range(3):
        documents.ask(*range(20))

    passes = [documents.ask(*range(100, 120)) for _ in range(4)]

    assert passes[1] >= 12
    assert passes[3] >= 18


def test_a_document_asked_again_at_once_is_found_however_full_the_cache_is() -> None:
    documents = Documents(room=20)
    documents.ask(*range(60))

    assert documents.ask(200, 200, 200) == 2


# --- measured time ----------------------------------------------------------------------------------------------------


def costs(prefill: float, out: float, back: float, disk: float = 1.0) -> Costs:
    """Return costs as measured: tokens a second, and bytes a second of each copy. A cell has 1000 bytes."""
    measured = Costs(lambda: prefill)
    measured.measure(100, 100_000)
    for rate, speed in ((measured.out, out), (measured.back, back), (measured.disk, disk)):
        rate.learn(1000, 1000 / speed)
    return measured


def test_what_is_copied_faster_than_computed_is_worth_parking_however_short_it_is() -> None:
    on_processor, on_gpu = costs(300, 1e9, 4e9), costs(20_000, 1e7, 1e7)

    assert on_processor.worth_parking(5, 5, waiting=True)
    assert not on_gpu.worth_parking(1000, 1000, waiting=True)
    assert on_processor.worth_parking(50, 700, waiting=True)
    assert not on_processor.worth_parking(0, 700, waiting=False)


def test_moving_cells_while_nobody_waits_costs_nothing_now() -> None:
    on_gpu = costs(9000, 1e7, 1e8)

    assert not on_gpu.worth_parking(1000, 1000, waiting=True)
    assert on_gpu.worth_parking(1000, 1000, waiting=False)


def test_what_is_never_asked_for_again_is_moved_only_as_long_as_that_is_unknown() -> None:
    moved = costs(2000, 1e7, 1e8)  # computing 500 us a token, 100 us out, 10 us back

    before = moved.worth_parking(100, 100, waiting=True)
    moved.cells.offer(200_000)
    after = moved.worth_parking(100, 100, waiting=True)
    moved.cells.ask(200_000)

    assert (before, after, moved.worth_parking(100, 100, waiting=True)) == (True, False, True)


def test_without_a_measurement_everything_is_worth_keeping() -> None:
    assert Costs(lambda: 0.0).worth_parking(1, 1, waiting=True)
    assert Costs(lambda: 0.0).worth_writing(1, ENDLESS)


def test_cells_are_written_to_a_disk_only_if_it_gives_them_back_sooner_than_they_are_computed() -> None:
    assert costs(300, 1e9, 1e9, disk=1e8).worth_writing(100, 100_000)
    assert not costs(300, 1e9, 1e9, disk=1e5).worth_writing(100, 100_000)


def test_a_rate_follows_the_latest_measurements() -> None:
    rate = Rate()
    rate.learn(1000, 1.0)
    for _ in range(20):
        rate.learn(1000, 5.0)

    assert 4.9 < rate.seconds(1000) <= 5.0

"""Tests of the choice of a slot for a prompt: no thread, no model."""

from __future__ import annotations

import pytest
from sequences import sequence

from tourkit.engine.placement import Slot, WholeBeginning, common_prefix, place


@pytest.mark.parametrize(
    ("a", "b", "end", "expected"),
    [
        ([], [], 0, 0),
        ([1], [2], 1, 0),
        ([1, 2, 3], [1, 2, 4], 3, 2),
        ([1] * 200, [1] * 150, 200, 150),
        ([1] * 99, [1] * 99, 70, 70),
    ],
)
def test_common_prefix(a: list[int], b: list[int], end: int, expected: int) -> None:
    assert common_prefix(a, b, end) == expected


def test_an_empty_slot_is_taken_before_one_that_holds_a_prefix() -> None:
    slots = [Slot(0, cells=[1, 2, 3], used=5), Slot(1)]

    choice = place(slots, [9, 9, 9])

    assert choice is not None
    assert (choice.target.id, choice.length) == (1, 0)


def test_an_idle_slot_with_the_same_beginning_is_continued_in_place() -> None:
    slots = [Slot(0), Slot(1, cells=[1, 2, 3, 4], used=1)]

    choice = place(slots, [1, 2, 3, 9])

    assert choice is not None
    assert (choice.target.id, choice.source.id, choice.length) == (1, 1, 3)


def test_the_last_token_is_always_left_to_decode() -> None:
    choice = place([Slot(0, cells=[1, 2, 3])], [1, 2, 3])

    assert choice is not None
    assert choice.length == 2


def test_a_running_sequence_lends_its_prefix() -> None:
    slots = [Slot(0, owner=sequence(1, 50, 50)), Slot(1)]

    choice = place(slots, [7] * 40 + [8])

    assert choice is not None
    assert (choice.target.id, choice.source.id, choice.length) == (1, 0, 40)


def test_the_least_recently_used_prefix_gives_way() -> None:
    slots = [Slot(0, cells=[1], used=9), Slot(1, cells=[2], used=3), Slot(2, cells=[3], used=6)]

    choice = place(slots, [5, 5])

    assert choice is not None
    assert choice.target.id == 1


def test_a_prompt_waits_for_a_shared_prefix_that_is_being_prefilled() -> None:
    slots = [Slot(0, owner=sequence(1, 500, 10)), Slot(1)]

    assert place(slots, [7] * 400 + [8]) is None


def test_a_prompt_with_little_to_share_does_not_wait() -> None:
    slots = [Slot(0, owner=sequence(1, 500, 10)), Slot(1)]

    assert place(slots, [7] * 20 + [8] * 30) is not None


def test_no_free_slot_means_waiting() -> None:
    assert place([Slot(0, owner=sequence(1, 5, 5))], [1, 2]) is None


def test_a_prompt_that_the_cache_holds_does_not_wait_for_a_shared_prefix() -> None:
    slots = [Slot(0, owner=sequence(1, 200, 10)), Slot(1)]
    tokens = [7] * 100 + [8, 9]

    assert place(slots, tokens) is None
    assert place(slots, tokens, 50) is None
    choice = place(slots, tokens, 90)
    assert choice is not None
    assert (choice.target.id, choice.length) == (1, 10)


@pytest.mark.parametrize(("tokens", "length"), [([1, 2, 3, 9], 3), ([1, 2, 9], 0), ([1, 2, 3], 0), ([9], 0)])
def test_a_fixed_state_without_copies_serves_only_prompts_that_begin_with_all_of_its_tokens(
    tokens: list[int], length: int
) -> None:
    slots = [Slot(0, cells=[1, 2, 3], used=1), Slot(1, owner=sequence(1, 500, 400))]

    choice = place(slots, tokens, beginnings=WholeBeginning())

    assert choice is not None
    assert (choice.target.id, choice.length) == (0, length)

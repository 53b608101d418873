"""Batch packing and slot placement as tables of cases: no thread, no model."""

from __future__ import annotations

import pytest

from tourkit.engine.placement import Slot, common_prefix, place
from tourkit.engine.prompt_lookup import PromptLookup
from tourkit.engine.scheduler import next_batch, next_batches, victim
from tourkit.engine.sequence import Sequence
from tourkit.engine.stop_strings import TextStream


def sequence(submission: int, n_tokens: int, n_kv: int, *, n_prompt: int | None = None, fill: int = 7) -> Sequence:
    return Sequence(
        submission=submission,
        index=0,
        tokens=[fill] * n_tokens,
        n_prompt=n_tokens if n_prompt is None else n_prompt,
        max_tokens=100,
        emit=lambda delta: None,
        sampler=None,  # type: ignore[arg-type]  # policy never samples
        text=TextStream(),
        n_kv=n_kv,
    )


@pytest.mark.parametrize(
    ("running", "budget", "expected"),
    [
        ([], 8, []),
        ([(1, 5, 0)], 8, [(1, 0, 5, True)]),
        ([(1, 100, 0)], 8, [(1, 0, 8, False)]),
        ([(1, 100, 96)], 8, [(1, 96, 100, True)]),
        ([(1, 100, 0), (2, 11, 10)], 8, [(2, 10, 11, True), (1, 0, 7, False)]),
        ([(1, 100, 0), (2, 100, 0)], 120, [(1, 0, 100, True), (2, 0, 20, False)]),
        ([(3, 11, 10), (2, 11, 10), (1, 11, 10)], 2, [(1, 10, 11, True), (2, 10, 11, True)]),
    ],
    ids=["idle", "a prompt", "a chunk", "its end", "decode first", "prompts in order", "oldest first"],
)
def test_next_batch(
    running: list[tuple[int, int, int]], budget: int, expected: list[tuple[int, int, int, bool]]
) -> None:
    chunks = next_batch([sequence(*each) for each in running], budget)

    assert [(c.sequence.submission, c.start, c.end, c.sample) for c in chunks] == expected


@pytest.mark.parametrize(
    ("running", "apart", "expected"),
    [
        ([(1, 11, 10), (2, 100, 0)], False, [[1, 2]]),
        ([(1, 11, 10), (2, 100, 0)], True, [[1], [2]]),
        ([(1, 11, 10), (2, 40, 0)], True, [[1, 2]]),
        ([(1, 100, 0), (2, 100, 0)], True, [[1, 2]]),
        ([(1, 100, 80), (2, 100, 0), (3, 11, 10)], True, [[1, 3], [2]]),
    ],
    ids=["together", "apart", "too few to split", "prompts alone", "the end of a prompt is short"],
)
def test_prompts_are_computed_apart_from_what_generates(
    running: list[tuple[int, int, int]], apart: bool, expected: list[list[int]]
) -> None:
    batches = next_batches([sequence(*each) for each in running], 512, apart=apart)

    assert [[chunk.sequence.submission for chunk in batch] for batch in batches] == expected


def test_guesses_get_what_is_left_of_the_budget() -> None:
    generating, prompt = sequence(1, 11, 10), sequence(2, 40, 0)
    generating.draft, prompt.draft = [1, 2, 3, 4, 5], [9]

    tight = next_batch([generating, prompt], 44)
    roomy = next_batch([generating, prompt], 100)

    assert [chunk.draft for chunk in tight] == [(1, 2, 3), ()]
    assert [chunk.draft for chunk in roomy] == [(1, 2, 3, 4, 5), (9,)]


def test_a_chunk_that_does_not_reach_the_end_has_no_guesses() -> None:
    prompt = sequence(1, 100, 0)
    prompt.draft = [1]

    assert next_batch([prompt], 50)[0].draft == ()


def test_lookup_guesses_what_followed_the_last_tokens_before() -> None:
    lookup = PromptLookup()

    assert lookup.propose([1, 2, 3, 4, 5, 6, 1, 2, 3], 16) == [4, 5, 6, 1]
    assert PromptLookup().propose([1, 2, 3, 4], 16) == []
    assert PromptLookup().propose([1, 2], 16) == []
    assert PromptLookup().propose([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]


def test_guesses_grow_with_success_and_rest_after_failure() -> None:
    lookup, tokens = PromptLookup(), [1, 2, 3, *range(10, 40), 1, 2, 3]

    first = lookup.propose(tokens, 99)
    lookup.learn(len(first), len(first), len(tokens))
    second = lookup.propose(tokens, 99)
    for _ in range(8):
        lookup.learn(8, 0, len(tokens))

    assert (len(first), len(second)) == (4, 8)
    assert lookup.propose(tokens, 99) == []


def test_the_youngest_is_preempted_and_never_the_last_one() -> None:
    old, young = sequence(1, 5, 5), sequence(2, 5, 5)

    assert victim([young, old]) is young
    assert victim([old]) is None
    assert victim([]) is None


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

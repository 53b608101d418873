"""Tests of batch packing as tables of cases: no thread, no model."""

from __future__ import annotations

import pytest
from sequences import sequence

from tourkit.engine.scheduler import next_batch, next_batches, victim


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


def test_the_youngest_is_preempted_and_never_the_last_one() -> None:
    old, young = sequence(1, 5, 5), sequence(2, 5, 5)

    assert victim([young, old]) is young
    assert victim([old]) is None
    assert victim([]) is None


def test_a_prompt_is_cut_where_a_checkpoint_is_due() -> None:
    """The rest of the budget goes to others; the sequence goes on in the next batch."""
    first, other = sequence(1, 100, 10), sequence(2, 100, 0)
    first.cuts = [40, 92]

    chunks = next_batch([first, other], 64)

    assert [(chunk.start, chunk.end, chunk.sample) for chunk in chunks] == [(10, 40, False), (0, 34, False)]

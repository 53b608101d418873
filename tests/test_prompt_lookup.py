"""Guesses by prompt lookup: the tokens that followed the last tokens earlier."""

from __future__ import annotations

from tourkit.engine.prompt_lookup import PromptLookup


def test_lookup_guesses_what_followed_the_last_tokens_before() -> None:
    lookup = PromptLookup()

    assert lookup.propose([1, 2, 3, 4, 5, 6, 1, 2, 3, 4], 16) == [5]
    lookup.learn(1, 1, 11)
    assert lookup.propose([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5], 16) == [6, 1]
    assert lookup.propose([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5], 1) == [6]
    assert PromptLookup().propose([1, 2, 3, 4, 5], 16) == []
    assert PromptLookup().propose([1, 2], 16) == []


def test_guesses_grow_with_success_and_rest_after_failure() -> None:
    lookup, tokens = PromptLookup(), [1, 2, 3, 4, *range(10, 40), 1, 2, 3, 4]

    first = lookup.propose(tokens, 99)
    lookup.learn(len(first), len(first), len(tokens))
    second = lookup.propose(tokens, 99)
    for _ in range(8):
        lookup.learn(8, 0, len(tokens))

    assert (len(first), len(second)) == (1, 2)
    assert lookup.propose(tokens, 99) == []

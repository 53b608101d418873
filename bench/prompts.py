"""Made-up prompts for the benchmarks, in the vocabulary of shapes.py."""

from __future__ import annotations

import random


def words(count: int, seed: int) -> str:
    """Return about `count` tokens of text: each word is one token of the made-up vocabulary."""
    rng = random.Random(seed)
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiouy"
    return " ".join("".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(2)) for _ in range(count))


def documents(count: int, shared: int, own: int, seed: int) -> list[str]:
    """Return prompts with the same first `shared` tokens, followed by `own` tokens that differ."""
    head = words(shared, 10_000 + shared + seed)
    return [f"{head}\n{words(own, seed * 1000 + i)}" for i in range(count)]

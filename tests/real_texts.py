"""Texts and prompts for the tests on real weights."""

from __future__ import annotations

import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROMPTS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
    "What is 12 plus 30?",
    "Translate to French: good morning.",
    "Explain in one sentence what a dictionary in Python is.",
    "Who wrote Romeo and Juliet?",
    "List the days of the week.",
    "Give me a short recipe for tea.",
    "What do bees make?",
    "Correct the spelling: I recieved teh letter.",
    "Is the number 17 prime? Answer yes or no and say why.",
    "Write a haiku about winter.",
    "What is the opposite of 'hot'?",
    "Summarise: The meeting on Monday was moved to Tuesday because the room was not free.",
    "Which planet is the largest?",
    "Write a Python function that adds two numbers.",
    "What should I pack for a trip to the mountains?",
    "Complete the sentence: Once upon a time",
    "How many minutes are in two hours?",
    "Describe a cat in five words.",
    "What does the word 'invoice' mean?",
    "Extract the date: The contract was signed on 14 March 2025 in Riga.",
    "Extract the sum: Anna Petrova paid 1,200 dollars for the laptop.",
    "Tell me a short joke.",
    "Why is the sky blue?",
    "Name a country in South America.",
    "Write an email subject for a late payment.",
    "Как тебя зовут?",
    "Say 'hello' in five languages.",
)
_EMOJI = "🙂 😀 👍🏽 🇫🇷 👨‍👩‍👧 ❤️ ✅ 🎉 é ü ñ 中文 日本語 العربية עברית".split(" ")
_SPACES = [" ", "  ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x0b", "\x1c"]


def texts(count: int = 1000) -> list[str]:
    """Return different texts, the same at every call: English, Russian, numbers, code, emoji and white space."""
    rng = random.Random(21)
    sources = [_words("json_extraction"), _words("graph_extraction"), _code(), _numbers(rng), _EMOJI, _SPACES]
    found: dict[str, None] = {}
    while len(found) < count:
        source = rng.choice(sources)
        start = rng.randrange(len(source))
        parts = [*source[start : start + rng.randrange(1, 30)], *rng.sample(_EMOJI + _SPACES, rng.randrange(3))]
        if rng.random() < 0.5:
            rng.shuffle(parts)
        found[rng.choice(["", " ", "  ", "\n"]).join(parts)] = None
    return list(found)


def document(n_words: int) -> str:
    """Return `n_words` words of the English sample documents, joined over and over."""
    english = [word for word in _words("json_extraction") if word.isascii()]
    return " ".join(english[i % len(english)] for i in range(n_words))


def _words(template: str) -> list[str]:
    lines = (ROOT / "templates" / template / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [word for line in lines for word in json.loads(line)["text"].split(" ")]


def _code() -> list[str]:
    return (ROOT / "tourkit" / "units.py").read_text(encoding="utf-8").splitlines(keepends=True)


def _numbers(rng: random.Random) -> list[str]:
    kinds = ("{:d}", "{:,}", "${:,}.50", "{:x}", "+7 (495) {:d}", "{:e}", "№{:d}", "{:d}%", "v{:d}.2", "½{:d}²")
    return [rng.choice(kinds).format(rng.randrange(10 ** rng.randrange(1, 13))) for _ in range(200)]

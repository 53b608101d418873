"""Gemma 3 270M (base) on llama.cpp: sliding windows of 512 tokens, cells shared and moved, 262,144 tokens.

`make test-full`; Gemma's own terms apply to the weights.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import real_texts

from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.generation import Constraint, Delta, Request, SamplingParams

pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TOURKIT_REAL") != "full", reason="253 MB are downloaded: make test-full"),
]
WINDOW = 512
THREADS = len(os.sched_getaffinity(0))
NEAR = 0.01  # of the logits' length: batches of other sizes use other kernels, which round differently


@pytest.fixture(scope="module")
def model(gemma3: Path) -> Iterator[LlamaRunner]:
    model = LlamaRunner(gemma3, slots=2, context=1024, threads=THREADS)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokens(model: LlamaRunner) -> list[int]:
    """A text of 700 tokens: the last ones do not see the first ones in layers with a window."""
    return model.tokenize(real_texts.document(600), add_special=True, parse_special=False)[:700]


@pytest.fixture(scope="module")
def expected(model: LlamaRunner, tokens: list[int]) -> np.ndarray:
    """The logits of the last token, computed from an empty slot."""
    return last_logits(model, tokens, slot=0)


def last_logits(model: LlamaRunner, tokens: list[int], slot: int, start: int = 0) -> np.ndarray:
    """Compute tokens from position `start` on, in batches. Return a copy of the last one's logits."""
    row = None
    for begin in range(start, len(tokens), model.n_batch):
        part = tokens[begin : begin + model.n_batch]
        for pos, token in enumerate(part, begin):
            row = model.add(token, pos, slot, logits=pos == len(tokens) - 1)
        assert model.decode()
    assert row is not None
    return np.array(model.logits(row))


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found - expected) <= NEAR * np.linalg.norm(expected - expected.mean()))


def test_it_has_windows(model: LlamaRunner) -> None:
    assert model.metadata("gemma3.attention.sliding_window") == str(WINDOW)


@pytest.mark.parametrize("kept", [WINDOW + 120, 100])
def test_a_slot_that_was_cut_back_goes_on_as_if_it_were_new(
    kept: int, model: LlamaRunner, tokens: list[int], expected: np.ndarray
) -> None:
    """Also if it is cut to before the window of its last token."""
    assert model.truncate(0, kept)

    assert close(last_logits(model, tokens, 0, kept), expected)


def test_a_slot_that_shares_a_prefix_longer_than_the_window_goes_on_alike(
    model: LlamaRunner, tokens: list[int], expected: np.ndarray
) -> None:
    model.truncate(1, 0)
    model.share(0, 1, 650)

    assert close(last_logits(model, tokens, 1, 650), expected)


def test_cells_that_were_moved_out_and_back_are_the_same(
    model: LlamaRunner, tokens: list[int], expected: np.ndarray
) -> None:
    state = model.read_state(0)
    model.truncate(0, 0)
    model.truncate(1, 0)

    assert model.write_state(0, state)
    assert model.truncate(0, 650)
    assert close(last_logits(model, tokens, 0, 650), expected)


def answer(engine: RunnerEngine, prompt: str, **fields: Any) -> str:
    """Return the greedy continuation of a prompt."""
    deltas: SimpleQueue[Delta] = SimpleQueue()
    params = SamplingParams(temperature=0, max_tokens=fields.pop("max_tokens", 8))
    engine.submit(Request(prompt=prompt, params=params, **fields), deltas.put)
    text = ""
    while True:
        delta = deltas.get()
        text += delta.text
        assert delta.error is None
        if delta.finish is not None:
            return text


def test_prompts_longer_than_the_window_come_back_from_host_memory(gemma3: Path) -> None:
    """Three prompts take turns in two slots. The second time, nearly all of their tokens are found."""
    engine = RunnerEngine(LlamaRunner(gemma3, slots=2, context=1024, threads=THREADS), "llama_cpp")
    words = real_texts.document(1600).split()
    prompts = [" ".join(words[start : start + 450]) for start in (0, 550, 1100)]
    lengths = [len(engine.tokenize(prompt, add_special=True)) for prompt in prompts]
    assert min(lengths) > WINDOW

    first = [answer(engine, prompt) for prompt in prompts]
    before = engine.stats().cached_tokens
    second = [answer(engine, prompt) for prompt in prompts]
    found = engine.stats().cached_tokens - before
    engine.close()

    assert second == first
    assert found >= 0.9 * sum(lengths)


def test_the_tables_of_262144_tokens_are_made_in_seconds(gemma3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, before = time.monotonic(), resident()
    model = LlamaRunner(gemma3, slots=1, context=512, threads=THREADS)
    loaded, with_weights = time.monotonic(), resident()
    engine = RunnerEngine(model, "llama_cpp")
    engine.token_table()
    ready, with_tables = time.monotonic(), resident()
    schema = {"type": "object", "properties": {"year": {"type": "integer", "minimum": 1000, "maximum": 2100}}}
    constraint = Constraint("json_schema", json.dumps(schema | {"required": ["year"], "additionalProperties": False}))
    text = answer(engine, "The war ended in 1945. As JSON: ", constraint=constraint, max_tokens=30)
    answered = time.monotonic()
    engine.close()

    said(
        capsys,
        f"Gemma 3 270M: loaded in {loaded - start:.1f} s with {with_weights - before} MiB; grammar tables of "
        f"{model.n_vocab} tokens in {ready - loaded:.1f} s with {with_tables - with_weights} MiB; first answer under "
        f"a schema in {answered - ready:.1f} s: {text}",
    )
    assert model.n_vocab == 262_144
    assert 1000 <= json.loads(text)["year"] <= 2100


def resident() -> int:
    """Return this process's memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) // 1024 if found else 0


def said(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")

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
NEAR = 1e-3


@pytest.fixture(scope="module")
def model(gemma3: Path) -> Iterator[LlamaRunner]:
    model = LlamaRunner(gemma3, slots=2, context=1024, threads=THREADS)
    yield model
    model.close()


@pytest.fixture(scope="module")
def tokens(model: LlamaRunner) -> list[int]:
    """A text of 700 tokens: the last ones do not see the first ones in layers with a window."""
    return model.tokenize(real_texts.document(600), add_special=True, parse_special=False)[:700]


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


def test_it_has_windows(model: LlamaRunner) -> None:
    assert model.metadata("gemma3.attention.sliding_window") == str(WINDOW)


@pytest.mark.parametrize("kept", [WINDOW + 120, 100])
def test_a_slot_that_was_cut_back_goes_on_as_if_it_were_new(kept: int, model: LlamaRunner, tokens: list[int]) -> None:
    """Also if it is cut to before the window of its last token."""
    expected = in_two_steps(model, tokens, kept)
    assert model.truncate(0, kept)

    assert np.allclose(last_logits(model, tokens, 0, kept), expected, atol=NEAR)


def test_a_slot_that_shares_a_prefix_longer_than_the_window_goes_on_alike(
    model: LlamaRunner, tokens: list[int]
) -> None:
    expected = in_two_steps(model, tokens, 650)
    model.truncate(1, 0)
    model.share(0, 1, 650)

    assert np.allclose(last_logits(model, tokens, 1, 650), expected, atol=NEAR)


def in_two_steps(model: LlamaRunner, tokens: list[int], first: int) -> np.ndarray:
    """Compute the tokens in slot 0, from an empty slot: `first` tokens, then the others. Return the last logits.

    Quantised weights round activations, and each number of tokens in a batch rounds differently. So the logits are only
    the same for the same batches.
    """
    model.truncate(0, 0)
    last_logits(model, tokens[:first], 0)
    return last_logits(model, tokens, 0, first)


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
    """Three prompts take turns in two slots. The second time, nearly all of their tokens are found.

    Each prompt counts, and the answer is the next number: no rounding changes such an answer.
    """
    engine = RunnerEngine(LlamaRunner(gemma3, slots=2, context=1024, threads=THREADS), "llama_cpp")
    starts = [100, 300, 500]
    prompts = [", ".join(map(str, range(start, start + 130))) + "," for start in starts]
    lengths = [len(engine.tokenize(prompt, add_special=True)) for prompt in prompts]
    assert min(lengths) > WINDOW

    answers = [answer(engine, prompt, max_tokens=4) for prompt in prompts]
    before = engine.stats().cached_tokens
    again = [answer(engine, prompt, max_tokens=4) for prompt in prompts]
    found = engine.stats().cached_tokens - before
    engine.close()

    assert answers == again == [str(start + 130) for start in starts]
    assert found >= 0.9 * sum(lengths)


def test_an_answer_under_a_schema_from_262144_tokens(gemma3: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, before = time.process_time(), resident()
    model = LlamaRunner(gemma3, slots=1, context=512, threads=THREADS)
    loaded, with_weights = time.process_time(), resident()
    engine = RunnerEngine(model, "llama_cpp")
    engine.token_table()
    ready, with_tables = time.process_time(), resident()
    schema = {"type": "object", "properties": {"year": {"type": "integer", "minimum": 1000, "maximum": 2100}}}
    constraint = Constraint("json_schema", json.dumps(schema | {"required": ["year"], "additionalProperties": False}))
    text = answer(engine, "The war ended in 1945. As JSON: ", constraint=constraint, max_tokens=30)
    answered = time.process_time()
    engine.close()

    said(
        capsys,
        f"Gemma 3 270M, seconds of processor time: loaded in {loaded - start:.1f} s with {with_weights - before} MiB; "
        f"grammar tables of {model.n_vocab} tokens in {ready - loaded:.1f} s with {with_tables - with_weights} MiB; "
        f"first answer under a schema in {answered - ready:.1f} s: {text.strip()}",
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

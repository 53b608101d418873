"""Models with a fixed state or odd caches: one greedy answer, whether alone, batched, preempted, or from a cache.

Two tiny hybrid models are written here. `make test-arch` gives more in the folder TOURKIT_ARCHITECTURES.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hybrid_gguf import write_hybrid

from tourkit.engine.engine import BatchEngine
from tourkit.engine.meter import WorkMeter
from tourkit.engine.run_store import open_store
from tourkit.generation import Delta, SamplingParams

GIVEN = os.environ.get("TOURKIT_ARCHITECTURES")
FAMILIES = ("qwen3.5", "gemma-4", "gpt-oss", "lfm2.5", "granite-4")
WRITTEN = ("qwen35", "lfm2")
HYBRID = {"qwen35", "lfm2", "qwen3.5", "lfm2.5", "granite-4"}
ANSWER = 8  # tokens
CLEAR = 0.02  # the least lead of each token in log probability: rounding must not change the answer
PARAMS = SamplingParams(temperature=0, top_logprobs=2)

pytestmark = pytest.mark.starts


@pytest.fixture(autouse=True)
def slow_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine believe that its model is slow, as a real one is: then every copy is faster than computing."""
    monkeypatch.setattr(WorkMeter, "prefill_rate", lambda meter: 1.0)


@pytest.fixture(scope="module", params=[*WRITTEN, *FAMILIES])
def model(request: pytest.FixtureRequest, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    if name in WRITTEN:
        return write_hybrid(tmp_path_factory.mktemp(name) / f"{name}.gguf", tiny_gguf, name)
    if not GIVEN:
        pytest.skip("no tiny model of it here: make test-arch")
    folder = Path(GIVEN) / name
    if (folder / "gguf.txt").is_file():
        pytest.skip((folder / "gguf.txt").read_text(encoding="utf-8"))
    return folder / "gguf" / "tiny-f32.gguf"


@dataclass
class Answer:
    """Collects the answer of one submission: its text, and the least lead of its tokens."""

    deltas: queue.SimpleQueue[Delta] = field(default_factory=queue.SimpleQueue)
    lead: float = 99.0
    cached: int = 0

    def wait(self) -> str:
        text = ""
        while True:
            delta = self.deltas.get()
            text += delta.text
            for each in delta.logprobs:
                best, second = (logprob for _, logprob in each.top)
                self.lead = min(self.lead, best - second)
            if delta.finish:
                assert delta.failure is None
                self.cached = delta.n_cached
                return text


class Model:
    """Engines over one model file."""

    def __init__(self, path: Path) -> None:
        from tourkit.backends.llama_cpp.runner import LlamaRunner

        self._runner, self._path = LlamaRunner, path

    def engine(self, *, slots: int = 4, n_ctx: int = 8192, **how: Any) -> BatchEngine:
        runner = self._runner(self._path, slots=slots, context=2048, n_ctx=n_ctx, n_batch=min(512, n_ctx), threads=1)
        return BatchEngine(runner, **how)


def ask(engine: BatchEngine, tokens: list[int]) -> Answer:
    answer = Answer()
    engine.submit(tokens, PARAMS, ANSWER, answer.deltas.put)
    return answer


def prompts() -> Iterator[list[int]]:
    """Yield prompts with a common beginning of 150 tokens: questions about a document."""
    rng = np.random.default_rng(1)
    document = rng.integers(20, 200, 150).tolist()
    while True:
        yield document + rng.integers(20, 200, int(rng.integers(40, 90))).tolist()


@pytest.fixture(scope="module")
def expected(model: Path) -> list[tuple[list[int], str]]:
    """Return five prompts with a clear answer, and the answer of each alone."""
    found: list[tuple[list[int], str]] = []
    engine = Model(model).engine(slots=1, deterministic=True)
    for tokens in prompts():
        answer = ask(engine, tokens)
        text = answer.wait()
        if answer.lead > CLEAR:
            found.append((tokens, text))
        if len(found) == 5:
            break
    engine.close()
    assert len({text for _, text in found}) > 1, "all answers are the same: they would prove nothing"
    return found


def test_a_batch_gives_the_answers_of_each_prompt_alone(model: Path, expected: list[tuple[list[int], str]]) -> None:
    engine = Model(model).engine()

    running = [ask(engine, tokens) for tokens, _ in expected]

    assert [each.wait() for each in running] == [text for _, text in expected]
    assert all(each.cached >= 150 for each in running[1:])
    engine.close()


def test_a_preempted_sequence_gives_the_same_answer(model: Path, expected: list[tuple[list[int], str]]) -> None:
    engine = Model(model).engine(n_ctx=256, prompt_cache=0)

    running = [ask(engine, tokens) for tokens, _ in expected]

    assert [each.wait() for each in running] == [text for _, text in expected]
    assert engine.stats().preemptions > 0
    engine.close()


def test_a_prompt_from_the_prefix_cache_gives_the_same_answer(
    model: Path, expected: list[tuple[list[int], str]]
) -> None:
    engine = Model(model).engine(slots=2)
    found, cached = [], []
    for tokens, _ in [*expected, *expected]:
        answer = ask(engine, tokens)
        found.append(answer.wait())
        cached.append(answer.cached)

    assert found == [text for _, text in expected] * 2
    assert min(cached[2:]) >= 150  # the second prompt leaves the first inside the document's checkpoint
    assert min(cached[5:]) >= 150 + 20
    engine.close()


def test_a_prompt_from_the_prompt_cache_gives_the_same_answer(
    model: Path, expected: list[tuple[list[int], str]], tmp_path: Path
) -> None:
    """The second process finds on disk what the first has parked."""
    for least in (0, 150 + 20):
        engine = Model(model).engine(slots=2, store=open_store(tmp_path, "model", print))
        for tokens, text in expected:
            answer = ask(engine, tokens)
            assert answer.wait() == text
            assert answer.cached >= least
            while engine.stats().running:
                pass
        engine.close()
    assert engine.stats().prompt_cache_hits_total > 0


def test_the_engine_says_how_a_model_shares(model: Path) -> None:
    engine = Model(model).engine()
    engine.close()

    name = model.stem if model.stem in WRITTEN else model.parents[1].name
    assert engine.prefix_sharing == ("from checkpoints" if name in HYBRID else "any prefix")

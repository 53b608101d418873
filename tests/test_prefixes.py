"""Prefixes on disk: after a restart a shared prompt is not computed again, and no wrong cells are read."""

from __future__ import annotations

import queue
import re
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from fake_runner import FakeRunner
from gguf_files import rewrite, write_lora
from serving import make_bundle, serving

from tourkit.backends.base import Engine
from tourkit.backends.llama_cpp import load
from tourkit.engine.engine import BatchEngine
from tourkit.engine.placement import Slot, worth_keeping
from tourkit.generation import Delta, Finish, Request, SamplingParams
from tourkit.launch import Launch

pytestmark = pytest.mark.starts

SYSTEM = (
    "Extract the name, the date, the type and the total of the bill. Answer with the label and the total only. " * 3
)
DOCUMENTS = ["the name", "the date of the bill", "total and type", "a label"]


@pytest.fixture
def spec(tiny_gguf: Path, tmp_path: Path) -> Launch:
    return Launch("tiny", "llama_cpp", str(tiny_gguf), 4, 1024, 1, prompt_cache_dir=str(tmp_path / "prefixes"))


@pytest.fixture
def kept(spec: Launch) -> Iterator[Path]:
    """The single file after a run over documents with the same system prompt."""
    answers(spec)
    (path,) = Path(spec.prompt_cache_dir).rglob("*.prefix")
    return path


def ask(engine: Engine, document: str, n: int = 1) -> list[str]:
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": document})
    engine.submit(Request(messages=messages, params=SamplingParams(max_tokens=20, temperature=0), n=n), deltas.put)
    texts, left = [""] * n, n
    while left:
        delta = deltas.get(timeout=60)
        texts[delta.index] += delta.text
        left -= delta.finish is not None
    return texts


def answers(spec: Launch, documents: Sequence[str] = DOCUMENTS) -> tuple[list[list[str]], int, int]:
    """Run a server once. Return the answers, the prompt tokens, and how many of them came from the cache."""
    engine = load(spec)
    found = [ask(engine, document) for document in documents]
    stats = engine.stats()
    engine.close()
    return found, stats.prompt_tokens, stats.cached_tokens


def test_after_a_restart_the_same_answers_come_with_less_prefill(spec: Launch) -> None:
    cold, prompt_tokens, cold_cached = answers(spec)

    warm, _, warm_cached = answers(spec)

    assert warm == cold == answers(replace(spec, prompt_cache_dir=""))[0]
    assert cold_cached < prompt_tokens / 2 + prompt_tokens / 4
    assert warm_cached - cold_cached > prompt_tokens / len(DOCUMENTS) / 2  # the first document used the cache too


def test_what_no_two_prompts_shared_is_not_kept(spec: Launch) -> None:
    answers(spec, DOCUMENTS[:1])

    assert not Path(spec.prompt_cache_dir).exists()


def test_a_prefix_is_kept_once_however_often_it_is_used(spec: Launch, kept: Path) -> None:
    for _ in range(2):
        answers(spec, DOCUMENTS[:2])

    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("damage", ["bit", "cut"])
def test_a_damaged_file_is_thrown_away_and_changes_no_answer(spec: Launch, kept: Path, damage: str) -> None:
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content if damage == "bit" else content[: len(content) // 2])

    (first,), _, cached = answers(spec, DOCUMENTS[:1])

    assert first == answers(replace(spec, prompt_cache_dir=""), DOCUMENTS[:1])[0][0]
    assert cached == 0
    assert not kept.exists()


def test_other_weights_adapters_or_cache_types_do_not_see_the_file(spec: Launch, kept: Path, tmp_path: Path) -> None:
    model = Path(spec.path)
    heads = {"attention__head_count": 2, "attention__head_count_kv": 1, "rope__dimension_count": 32}
    others = [
        replace(spec, path=str(rewrite(model, tmp_path / "other.gguf", context_length=4096))),
        replace(spec, lora=(str(write_lora(tmp_path / "lora.gguf", model)),)),
        replace(spec, path=str(rewrite(model, tmp_path / "wide.gguf", **heads)), cache_type="q8_0"),
    ]

    assert [answers(other, DOCUMENTS[:1])[2] for other in others] == [0, 0, 0]
    assert kept.exists()


def test_a_smaller_context_leaves_what_it_cannot_hold_on_disk(spec: Launch, kept: Path) -> None:
    """The prefix is longer than the smaller context: it is not restored, and its file stays."""
    engine = load(replace(spec, context=64))
    engine.close()

    assert kept.exists()
    assert answers(spec, DOCUMENTS[:1])[2] > 64


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_saving(spec: Launch, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")

    found, _, _ = answers(replace(spec, prompt_cache_dir=str(in_the_way)))

    assert found == answers(replace(spec, prompt_cache_dir=""))[0]


def test_what_runs_when_the_engine_closes_ends_once_and_its_prefix_is_kept() -> None:
    class Store:
        def __init__(self) -> None:
            self.saved: list[list[int]] = []

        def restore(self, slots: Sequence[int]) -> dict[int, list[int]]:
            return {}

        def save(self, slot: int, tokens: Sequence[int]) -> None:
            self.saved.append(list(tokens))

    store, endings, began = Store(), queue.SimpleQueue[Delta](), queue.SimpleQueue[Delta]()
    engine = BatchEngine(FakeRunner(slots=2, next_token=lambda history: 97), prefixes=store)
    prompt = list(b"shared " * 20)

    for _ in range(2):
        engine.submit(prompt, SamplingParams(), 3000, lambda d: (endings if d.finish else began).put(d))
    while engine.stats().running < 2 or not engine.stats().cached_tokens:
        began.get(timeout=60)
    engine.close()

    assert [endings.get(timeout=60).finish for _ in range(2)] == [Finish.ABORT] * 2
    assert endings.empty()
    assert store.saved == [prompt[:-1]]


def test_a_server_started_again_finds_what_the_last_one_kept(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    texts, cached = [], []
    for _ in range(2):
        options = ("--offline", "--context", "1024", "--prompt-cache-dir", str(tmp_path / "kept"))
        with (
            serving(bundle, tmp_path / "log", *options) as served,
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client,
        ):
            for document in DOCUMENTS:
                messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": document}]
                reply = client.chat.completions.create(model="tool", messages=messages, max_tokens=9, temperature=0)
                texts.append(reply.choices[0].message.content)
            with urllib.request.urlopen(f"{served.url}/metrics") as answer:
                figure = re.search(
                    r"^tourkit_prompt_tokens_cached_total\S* (\d+)", answer.read().decode(), re.MULTILINE
                )
            assert figure is not None
            cached.append(int(figure[1]))

    assert texts[: len(DOCUMENTS)] == texts[len(DOCUMENTS) :]
    assert cached[1] > cached[0] + len(SYSTEM) / 8


def slot(number: int, tokens: str, taken_over: int) -> Slot:
    return Slot(number, cells=list(tokens.encode()), taken_over=taken_over)


def test_the_longest_of_prefixes_that_begin_one_another_is_kept() -> None:
    long, other = "a" * 200, "b" * 100
    slots = [slot(0, long, 100), slot(1, long, 150), slot(2, other, 80), slot(3, other, 80), slot(4, "c" * 90, 63)]

    kept = worth_keeping([*slots, Slot(5)])

    assert [(place.id, len(tokens)) for place, tokens in kept] == [(1, 150), (2, 80)]

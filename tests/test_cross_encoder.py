"""Cross-encoders in safetensors: each score is that of transformers for the two texts alone, in any batch."""

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
from tourkit.backends.base import Scorer  # noqa: E402
from tourkit.errors import LocalError, RequestError  # noqa: E402
from tourkit.launch import Launch  # noqa: E402
from tourkit.planning.weights import read_weights  # noqa: E402

pytestmark = pytest.mark.starts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the name date of bill total is due number a b c ##s ##e".split()]
DOCUMENTS = ["dates of bill", "name", "", "total is due " * 7, "the number of the bill is due", "b c", "[SEP] name"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# How the published tokenizers of these families put two texts together.
BETWEEN = {"Bert": "[CLS] $A [SEP] $B:1 [SEP]:1", "XLMRoberta": "[CLS] $A [SEP] [SEP] $B [SEP]"}


def made(folder: Path, family: str, **more: Any) -> Path:
    """A tiny random cross-encoder with a WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    more = {"num_labels": 1, **more}
    config = getattr(transformers, f"{family}Config")(**SIZES, vocab_size=len(WORDS), pad_token_id=0, **more)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=BETWEEN[family], special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)  # some published tokenizers are saved with truncation on
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def load(folder: Path) -> Any:
    engine = backends.load(Launch("tiny", "transformers", str(folder), slots=2, context=64, threads=1))
    assert isinstance(engine, Scorer)
    return engine


@pytest.fixture(params=["Bert", "XLMRoberta"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return made(tmp_path / "model", request.param)


@pytest.fixture
def engine(folder: Path) -> Iterator[Any]:
    engine = load(folder)
    yield engine
    engine.close()


def test_scores_are_those_of_the_model_alone(engine: Any, folder: Path) -> None:
    from tokenizers import Tokenizer

    found = engine.score("the name", DOCUMENTS).result()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True

    expected, n_tokens = [], 0
    for document in DOCUMENTS:
        both = tokenizer.encode("the name", document)
        n_tokens += len(both.ids)
        types = {"token_type_ids": torch.tensor([both.type_ids])} if model.config.type_vocab_size > 1 else {}
        with torch.inference_mode():
            logit = model(torch.tensor([both.ids]), **types).logits.item()
        expected.append(1 / (1 + np.exp(-logit)))
    assert found.values == pytest.approx(expected, abs=1e-5)
    assert found.n_tokens == n_tokens
    assert max(expected) - min(expected) > 0.005


def test_a_bert_tells_the_query_from_the_document(tmp_path: Path) -> None:
    engine = load(made(tmp_path, "Bert"))

    one, other = (engine.score(*texts).result().values[0] for texts in (("a b", ["c"]), ("a", ["b c"])))

    engine.close()
    assert abs(one - other) > 1e-3


def test_a_document_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    engine = load(made(tmp_path, "Bert", max_position_embeddings=8))
    with pytest.raises(RequestError, match=r"documents\[1\] with the query has 10 tokens"):
        engine.score("a", ["b", "the name of the bill is"])
    engine.close()


def test_the_folder_is_served_as_rerank(folder: Path) -> None:
    assert list(read_weights(folder).index.roles) == ["rerank"]


def test_a_head_with_several_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="its head gives 3 scores"):
        load(made(tmp_path, "Bert", num_labels=3))


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    """Transformers would make up random ones."""
    folder = made(tmp_path, "Bert")
    transformers.AutoModel.from_pretrained(folder).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "LABEL_0"}}))

    with pytest.raises(LocalError, match=r"a reranker without weights of its head \(classifier"):
        load(folder)

"""What a row of families.py and families_2026.py says, and the sizes that many rows share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """A model that is made in a second, with the same files as the published models of its families.

    `architecture`: as in the catalogue. `config`: the class in transformers, with `fields`. `published`: keys of the
    published config.json that the class lacks or names differently; None removes a key. `pooling`: how an embedding
    model makes one vector of the tokens' vectors: "mean", "cls" or "last"; "rank" for a reranker. `options`: of
    llama.cpp's converter.
    """

    families: tuple[str, ...]
    architecture: str
    config: str
    vocabulary: str  # a key of kinds.KINDS
    template: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    padding: int = 64  # the vocabulary is padded to a multiple of this, as published weights are
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.families[0]


CONTEXT = 2048
SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TIED = SIZES | {"intermediate_size": 256, "max_position_embeddings": CONTEXT}
USUAL = TIED | {"tie_word_embeddings": False}
GROUPED = USUAL | {"num_key_value_heads": 2}
BERT = TIED | {"type_vocab_size": 2, "max_position_embeddings": 512}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

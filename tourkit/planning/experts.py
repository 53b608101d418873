"""Weights that one token does not read: those of experts that it does not use, and tables in which it looks up a row.

The names are those of llama.cpp for GGUF files (gguf-py/gguf/constants.py), and of transformers for config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MATRICES = 3  # of an expert: gate, up and down
_UNGATED = ("nemotron_h_moe", "nemotron_h")  # up and down only
_KIND = "moe"  # in `layer_types` of config.json, if a model has layers of experts alone


@dataclass(frozen=True, slots=True)
class Sparse:
    """What a token reads only a part of. `experts`: of each layer, 0 for a model without experts.

    `used`: experts of each layer that one token uses. `weights`: of all experts of all layers. `tables`: weights of the
    embeddings that each layer has of its own (Gemma 4 E2B and E4B).
    """

    experts: int = 0
    used: int = 0
    weights: int = 0
    tables: int = 0

    def skipped(self, tokens: int) -> float:
        """Return the weights that a step over `tokens` tokens does not read, if each token uses experts at random."""
        if not self.experts:
            return self.tables
        return self.tables + self.weights * (1 - self.used / self.experts) ** tokens


NOTHING = Sparse()


def of_gguf(header: Mapping[str, Any]) -> Sparse:
    """Return what the header of a GGUF file states."""
    name = header["general.architecture"]

    def number(key: str) -> int:
        return _largest(header.get(f"{name}.{key}", 0))

    widths = header.get(f"{name}.feed_forward_length", 0)
    layers = number("block_count")
    # A list has 0 for each layer without a feed-forward part, as Nemotron's layers that attend.
    with_experts = sum(map(bool, widths)) if isinstance(widths, list) else layers - number("leading_dense_block_count")
    inner = number("expert_feed_forward_length") or number("feed_forward_length")
    vocab = number("vocab_size") or int(header.get("tokenizer.ggml.tokens", 0))
    return _sparse(
        number("expert_count"),
        number("expert_used_count"),
        with_experts * number("embedding_length") * inner * _matrices(name),
        layers * vocab * number("embedding_length_per_layer_input"),
    )


def of_config(config: Mapping[str, Any], layers: int) -> Sparse:
    """Return what config.json states. `config`: the part about text."""

    def number(*names: str) -> int:
        return next((_largest(config[name]) for name in names if config.get(name)), 0)

    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    with_experts = kinds.count(_KIND) if _KIND in kinds else layers - number("first_k_dense_replace")
    inner = number("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
    return _sparse(
        number("num_experts", "num_local_experts", "n_routed_experts"),
        number("num_experts_per_tok", "top_k_experts"),
        with_experts * number("hidden_size") * inner * _matrices(str(config.get("model_type"))),
        layers * number("vocab_size_per_layer_input", "vocab_size") * number("hidden_size_per_layer_input"),
    )


def _matrices(architecture: str) -> int:
    return 2 if architecture in _UNGATED else _MATRICES


def _largest(value: Any) -> int:
    """Return a number, or the largest of a list with one for each layer."""
    return max(map(int, value), default=0) if isinstance(value, list) else int(value)


def _sparse(experts: int, used: int, one: int, tables: int) -> Sparse:
    """`one`: weights of one expert in all layers. A dense model may state a number of used experts too."""
    if experts < 2 or not 0 < used <= experts:
        return Sparse(tables=tables)
    return Sparse(experts, used, experts * one, tables)

"""The numbers of a model that decide how much memory it takes.

From the header of a GGUF file or config.json (headers.py reads them), from the catalogue, or guessed from the size of
the file alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from tourkit.headers import folder_config, gguf_header
from tourkit.manifest.models import Arch

GUESSED = "the file's size alone"  # a shape's source
_POOLINGS = (1, 2, 3, 4)  # mean, first token, last token, rank: any but none
_ENCODERS = ("bert", "xlm-roberta")  # model types whose tokens see the whole text: they make embeddings
_GUESSED_KV_PER_PARAM = 1 / 20_000  # values a token: Phi-3 mini, which keeps many, has 1/19,400


@dataclass(frozen=True, slots=True)
class Shape:
    """`kv`: values (key and value) a token leaves in each layer; `windows`: how many tokens back a layer looks, 0 for
    all. `context` in tokens, 0 for not known. `source`: where the numbers are from. `embeds`: it makes embeddings, and
    reads a text in one call."""

    kv: tuple[int, ...]
    windows: tuple[int, ...]
    width: int
    feed_forward: int
    vocab: int
    context: int
    source: str
    head: int = 0  # what divides the size of every key and value: a quantised cache wants a multiple of 32; 0 unknown
    experts_used: int = 1
    embeds: bool = False

    @property
    def layers(self) -> int:
        return len(self.kv)


def of_file(path: Path) -> Shape | None:
    """The shape of a weight file, or of the folder it is in; None when no header there tells."""
    try:
        if path.suffix.lower() == ".gguf":
            return _of_gguf(gguf_header(path))
        return _of_config(folder_config(path if path.is_dir() else path.parent))
    except (OSError, ValueError, KeyError, TypeError, struct.error):  # cut off or odd: loading it will say more
        return None


def of_arch(arch: Arch, context: int) -> Shape:
    """The shape the catalogue states. It has no width of the feed-forward layers: four times the model's, at most."""
    kv = (2 * arch.n_kv_heads * arch.head_dim,) * arch.n_layers
    windows = (0,) * arch.n_layers
    width = arch.hidden_size
    return Shape(kv, windows, width, 4 * width, arch.vocab_size, context, "the catalogue", head=arch.head_dim)


def of_size(size: int, bits: int, context: int) -> Shape:
    """A guess from `size` bytes of weights of `bits` each, on the large side: a model of 32 layers like Phi-3's."""
    params = size * 8 // max(bits, 2)
    kv = max(1, int(params * _GUESSED_KV_PER_PARAM / 32))
    width = int((params / 32 / 12) ** 0.5)  # a layer has about 12 times its width squared
    return Shape((kv,) * 32, (0,) * 32, width, 4 * width, 128_000, context, GUESSED)


def _of_gguf(header: dict[str, Any]) -> Shape:
    name = header["general.architecture"]

    def number(key: str, default: int = 0) -> int:
        return _largest(header.get(f"{name}.{key}", default))

    layers, width, heads = number("block_count"), number("embedding_length"), number("attention.head_count")
    if not layers or not width:
        raise ValueError(f"the header of a {name} without block_count or embedding_length")
    head = width // heads if heads else 0
    key, value = number("attention.key_length", head), number("attention.value_length", head)
    kv_heads = _per_layer(header.get(f"{name}.attention.head_count_kv", heads), layers)
    if header.get(f"{name}.attention.causal") is False:
        kv_heads = [0] * layers  # an embedder reads its text at once and keeps nothing
    return Shape(
        kv=tuple(each * (key + value) for each in kv_heads),
        windows=(0,) * layers,  # our backend keeps whole prefixes in every layer, so that slots can share them
        width=width,
        feed_forward=number("feed_forward_length", 4 * width),
        vocab=number("vocab_size") or int(header.get("tokenizer.ggml.tokens", 0)),
        context=number("context_length"),
        source="the GGUF header",
        head=gcd(key, value),
        experts_used=max(1, number("expert_used_count", 1)),
        embeds=number("pooling_type") in _POOLINGS,
    )


def _of_config(config: dict[str, Any]) -> Shape:
    """Hugging Face's config.json, under the names its families have given the same numbers."""
    config = config.get("text_config") or config

    def number(*names: str, default: int = 0) -> int:
        return next((_largest(config[name]) for name in names if config.get(name)), default)

    layers = number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    width = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "n_heads")
    if not layers or not width or not heads:
        raise ValueError("config.json names no layers, width or heads")
    kv_heads = number("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon's first design
    kv_heads = int((config.get("attn_config") or {}).get("kv_n_heads") or kv_heads)  # MPT
    head = number("head_dim", default=width // heads)
    embeds = embeds_by(config)
    return Shape(
        kv=(0 if embeds else kv_heads * 2 * head,) * layers,
        windows=_windows(config, layers),
        width=width,
        feed_forward=number("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * width),
        vocab=number("vocab_size"),
        context=number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        source="config.json",
        head=head,
        experts_used=max(1, number("num_experts_per_tok", default=1)),
        embeds=embeds,
    )


def embeds_by(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an encoder, which makes embeddings and writes no text."""
    return config.get("model_type") in _ENCODERS and not config.get("is_decoder")


def _windows(config: dict[str, Any], layers: int) -> tuple[int, ...]:
    """How many tokens back each layer looks, 0 for all."""
    window = _largest(config.get("sliding_window") or 0)
    if not window or config.get("use_sliding_window") is False:
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if config.get("model_type") == "gemma2":  # before layer_types were written: every other layer, the first too
        return tuple(window if layer % 2 == 0 else 0 for layer in range(layers))
    return (window,) * layers


def _largest(value: Any) -> int:
    """A number, or the largest of a list with one for each layer."""
    return max((int(each) for each in value), default=0) if isinstance(value, list) else int(value)


def _per_layer(value: Any, layers: int) -> list[int]:
    each = [int(item) for item in value] if isinstance(value, list) else [int(value)] * layers
    if len(each) != layers:
        raise ValueError("head_count_kv has another length than there are layers")
    return each

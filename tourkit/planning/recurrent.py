"""Layers with a state of fixed size, recurrent or convolutional: which they are, and how many values they keep.

A hybrid model has such layers beside layers with a KV cache. The rules are those of llama.cpp (src/llama-hparams.cpp
and src/models/) for GGUF files, and those of transformers' model classes for config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Every n-th layer attends, the others have a state. llama.cpp takes 4 if a header does not state n.
_INTERVAL = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
_BOTH = ("falcon-h1",)  # each layer has a KV cache and a state
_NO_FEED_FORWARD = ("nemotron_h", "nemotron_h_moe")  # a layer without KV heads is recurrent only if it has none
# In `layer_types` of config.json:
KINDS = ("linear_attention", "conv", "mamba", "mamba2", "recurrent")  # with a state
_NEITHER = ("mlp", "moe")  # with neither a state nor a KV cache


@dataclass(frozen=True, slots=True)
class States:
    """The states of one sequence. `values`: numbers in each state.

    `layers`: for each layer, whether it has a state. `attends`: for each layer, whether it has a KV cache.
    """

    layers: tuple[bool, ...]
    attends: tuple[bool, ...]
    values: int

    @property
    def total(self) -> int:
        """Values of all layers together, for one sequence."""
        return sum(self.layers) * self.values

    def cached(self, kv: Sequence[int]) -> tuple[int, ...]:
        """Return the values that one token adds to the KV cache of each layer. `kv`: those of a layer that attends."""
        return tuple(each if attends else 0 for each, attends in zip(kv, self.attends, strict=True))


def of_gguf(header: Mapping[str, Any], kv_heads: Sequence[int]) -> States:
    """Return the states that a GGUF header describes. `kv_heads`: of each layer, as the header states them."""
    values = _gguf_values(header)
    used = len(kv_heads) - int(header.get(f"{header['general.architecture']}.nextn_predict_layers", 0))
    found = _recurrent(header, kv_heads) if values else [False] * len(kv_heads)
    # The last layers may only guess further tokens. llama.cpp makes neither cells nor states for them.
    layers = tuple(has and layer < used for layer, has in enumerate(found))
    both = header["general.architecture"] in _BOTH
    attends = tuple(layer < used and (both or not has) for layer, has in enumerate(found))
    return States(layers, attends, values)


def _recurrent(header: Mapping[str, Any], kv_heads: Sequence[int]) -> list[bool]:
    """Return for each layer of a model with states whether it has one."""
    name = header["general.architecture"]
    layers = len(kv_heads)
    if name in _BOTH:
        return [True] * layers
    stated = header.get(f"{name}.attention.recurrent_layers")
    if isinstance(stated, list) and len(stated) == layers:
        return [bool(each) for each in stated]
    if interval := int(header.get(f"{name}.full_attention_interval", _INTERVAL.get(name, 0))):
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if name not in _NO_FEED_FORWARD:
        return [not heads for heads in kv_heads]
    widths = header.get(f"{name}.feed_forward_length", 0)
    each = widths if isinstance(widths, list) and len(widths) == layers else [widths] * layers
    return [not heads and not width for heads, width in zip(kv_heads, each, strict=True)]


def of_config(config: Mapping[str, Any], layers: int) -> States:
    """Return the states that config.json describes: `layer_types` names the layers."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if not isinstance(kinds, list) or len(kinds) != layers:
        return States((False,) * layers, (True,) * layers, 0)
    has = tuple(kind in KINDS for kind in kinds)
    return States(has, tuple(kind not in (*KINDS, *_NEITHER) for kind in kinds), _config_values(config))


def _gguf_values(header: Mapping[str, Any]) -> int:
    """Return the values of one state (`n_embd_r` + `n_embd_s` of llama.cpp); 0 for a model without states."""
    name = header["general.architecture"]

    def number(key: str) -> int:
        return int(header.get(f"{name}.{key}", 0))

    width = number("embedding_length")
    if head := number("wkv.head_size"):  # RWKV
        return width * (number("token_shift_count") + head)
    if kept := number("shortconv.l_cache"):  # LFM2
        return width * (kept - 1)
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    convolution = max(number("ssm.conv_kernel") - 1, 0) * (inner + 2 * number("ssm.group_count") * state)
    return convolution + state * inner


def _config_values(config: Mapping[str, Any]) -> int:
    """Return the values of one state, counted as transformers keeps them."""

    def number(key: str, default: int = 0) -> int:
        return int(config.get(key) or default)

    width = number("hidden_size")
    if kept := number("conv_L_cache"):  # LFM2
        return width * kept
    if heads := number("linear_num_value_heads"):  # Qwen3-Next, Qwen3.5
        key, value = number("linear_key_head_dim"), number("linear_value_head_dim")
        channels = 2 * number("linear_num_key_heads") * key + heads * value
        return channels * number("linear_conv_kernel_dim") + heads * key * value
    inner = number("mamba_n_heads") * number("mamba_d_head")  # Granite 4
    inner = inner or number("mamba_num_heads") * number("mamba_head_dim")  # Nemotron-H
    inner = inner or number("mamba_expand", 2) * width
    state = number("mamba_d_state") or number("ssm_state_size")
    channels = inner + 2 * (number("mamba_n_groups") or number("n_groups", 1)) * state
    return channels * (number("mamba_d_conv") or number("conv_kernel")) + inner * state

"""Write tiny hybrid models with random weights as GGUF: three layers with a fixed state, one with KV cells.

`qwen35` has the gated delta rule of Qwen3.5, `lfm2` the short convolutions of LFM2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf_files import copy_tokenizer, finish

_WIDTH, _LAYERS, _HEADS, _HEAD, _FORWARD = 64, 4, 4, 16, 128
_ATTENTION = 3  # the layer with KV cells
_KEY_HEADS, _VALUE_HEADS, _STATE, _KERNEL = 2, 4, 16, 4  # of Qwen3.5's layers with a state
Tensor = Callable[..., None]


def write_hybrid(path: Path, base: Path, name: str, *, seed: int = 0) -> Path:
    """Write a model of the architecture `name` with the tokenizer of `base`."""
    rng, reader = np.random.default_rng(seed), gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), name)
    n_vocab = copy_tokenizer(writer, reader)
    writer.add_context_length(4096)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000)
    writer.add_vocab_size(n_vocab)

    def tensor(tensor_name: str, *shape: int, scale: float = 0.25) -> None:
        values = rng.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(tensor_name, 1 + values * 0.1 if len(shape) == 1 else values * scale)

    tensor("token_embd.weight", n_vocab, _WIDTH, scale=1)
    _BLOCKS[name](writer, tensor)
    for i in range(_LAYERS):
        tensor(f"blk.{i}.attn_norm.weight", _WIDTH)
        tensor(f"blk.{i}.ffn_gate.weight", _FORWARD, _WIDTH)
        tensor(f"blk.{i}.ffn_up.weight", _FORWARD, _WIDTH)
        tensor(f"blk.{i}.ffn_down.weight", _WIDTH, _FORWARD)
    finish(writer)
    return path


def _attention(tensor: Tensor, *, query: int, key_heads: int) -> None:
    block = f"blk.{_ATTENTION}"
    tensor(f"{block}.attn_q.weight", query, _WIDTH)
    tensor(f"{block}.attn_k.weight", _HEAD * key_heads, _WIDTH)
    tensor(f"{block}.attn_v.weight", _HEAD * key_heads, _WIDTH)
    tensor(f"{block}.attn_output.weight", _WIDTH, _HEADS * _HEAD)
    tensor(f"{block}.attn_q_norm.weight", _HEAD)
    tensor(f"{block}.attn_k_norm.weight", _HEAD)


def _qwen35(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    writer.add_head_count_kv(2)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_rope_dimension_sections([4, 2, 2, 0])
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_group_count(_KEY_HEADS)
    writer.add_ssm_time_step_rank(_VALUE_HEADS)
    writer.add_ssm_inner_size(_STATE * _VALUE_HEADS)
    writer.add_full_attention_interval(_ATTENTION + 1)
    tensor("output_norm.weight", _WIDTH)
    keys, values = _STATE * _KEY_HEADS, _STATE * _VALUE_HEADS
    _attention(tensor, query=2 * _HEADS * _HEAD, key_heads=2)  # half of the queries are gates
    for i in range(_LAYERS):
        tensor(f"blk.{i}.post_attention_norm.weight", _WIDTH)
        if i == _ATTENTION:
            continue
        tensor(f"blk.{i}.attn_qkv.weight", 2 * keys + values, _WIDTH)
        tensor(f"blk.{i}.attn_gate.weight", values, _WIDTH)
        tensor(f"blk.{i}.ssm_conv1d.weight", 2 * keys + values, _KERNEL)
        tensor(f"blk.{i}.ssm_dt.bias", _VALUE_HEADS)
        writer.add_tensor(f"blk.{i}.ssm_a", np.full(_VALUE_HEADS, -0.05, dtype=np.float32))  # forgets slowly
        tensor(f"blk.{i}.ssm_beta.weight", _VALUE_HEADS, _WIDTH)
        tensor(f"blk.{i}.ssm_alpha.weight", _VALUE_HEADS, _WIDTH)
        tensor(f"blk.{i}.ssm_norm.weight", _STATE)
        tensor(f"blk.{i}.ssm_out.weight", _WIDTH, values)


def _lfm2(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    writer.add_head_count_kv([2 if i == _ATTENTION else 0 for i in range(_LAYERS)])
    writer.add_shortconv_l_cache(3)
    tensor("token_embd_norm.weight", _WIDTH)
    _attention(tensor, query=_HEADS * _HEAD, key_heads=2)
    for i in range(_LAYERS):
        tensor(f"blk.{i}.ffn_norm.weight", _WIDTH)
        if i == _ATTENTION:
            continue
        tensor(f"blk.{i}.shortconv.conv.weight", _WIDTH, 3)
        tensor(f"blk.{i}.shortconv.in_proj.weight", 3 * _WIDTH, _WIDTH)
        tensor(f"blk.{i}.shortconv.out_proj.weight", _WIDTH, _WIDTH)


_BLOCKS: dict[str, Callable[[gguf.GGUFWriter, Tensor], None]] = {"qwen35": _qwen35, "lfm2": _lfm2}

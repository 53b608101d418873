"""Models whose layers differ: states instead of a KV cache, shared cells, heads of two sizes.

The expected numbers are those that llama.cpp 0.3.36 prints when it makes the caches of such files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from tourkit.planning.memory import Sizing, cache_size
from tourkit.planning.model_shape import Shape, of_file

# What differs from a usual model, values of the KV cache of each layer, bytes of the states of one sequence.
HEADERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {
    "states but in every fourth layer, and a layer that guesses": (
        "qwen35",
        {
            "block_count": 5,
            "nextn_predict_layers": 1,
            "full_attention_interval": 4,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 128,
            "ssm.state_size": 32,
            "ssm.group_count": 2,
        },
        (0, 0, 0, 256, 0),
        58_368,
    ),
    "convolutions where no head is stated": (
        "lfm2",
        {"block_count": 4, "attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3},
        (0, 0, 128, 0),
        3_072,
    ),
    "a state and a cache in each layer": (
        "falcon-h1",
        {"block_count": 2, "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.group_count": 1},
        (128, 128),
        2 * 4 * (3 * (64 + 32) + 16 * 64),
    ),
    "a state only where there is no feed-forward": (
        "nemotron_h",
        {
            "block_count": 3,
            "attention.head_count_kv": [0, 0, 2],
            "feed_forward_length": [0, 256, 0],
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 16,
            "ssm.group_count": 1,
        },
        (0, 0, 128),
        4 * (3 * (64 + 32) + 16 * 64),
    ),
    "windows with small heads, and cells that later layers share": (
        "gemma4",
        {
            "block_count": 6,
            "attention.head_count_kv": 1,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.key_length_swa": 32,
            "attention.value_length_swa": 32,
            "attention.shared_kv_layers": 2,
            "attention.sliding_window_pattern": [True, False] * 3,
        },
        (64, 128, 64, 128, 0, 0),
        0,
    ),
    "no states at all": ("qwen3", {"block_count": 2}, (128, 128), 0),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_gguf_header_tells_which_layers_keep_cells_and_which_a_state(case: str, tmp_path: Path) -> None:
    name, more, kv, state = HEADERS[case]

    found = of_file(write_header(tmp_path / "odd.gguf", name, more))

    assert found is not None
    assert (found.kv, found.state) == (kv, state)


def write_header(path: Path, name: str, more: dict[str, Any]) -> Path:
    """Write a GGUF without tensors: width 128, 4 heads of 32, 2 of them with keys and values, changed by `more`."""
    writer = gguf.GGUFWriter(path, name)
    keys = {"embedding_length": 128, "attention.head_count": 4, "attention.head_count_kv": 2} | more
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(f"{name}.{key}", value)
        else:
            writer.add_uint32(f"{name}.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "Qwen3.5": (
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
        },
        (0, 128),
        4 * ((2 * 64 + 128) * 4 + 4 * 32 * 32),
    ),
    "LFM2": ({"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, (0, 128), 4 * 128 * 3),
    "Granite 4": (
        {
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
        },
        (0, 128),
        4 * ((256 + 32) * 4 + 256 * 16),
    ),
    "Nemotron-H": (
        {
            "layers_block_type": ["mamba", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "conv_kernel": 4,
        },
        (0, 0),
        4 * ((256 + 32) * 4 + 256 * 16),
    ),
    "Gemma 4": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 16,
            "global_head_dim": 64,
            "num_kv_shared_layers": 2,
        },
        (128, 256, 0, 0),
        0,
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_tells_which_layers_keep_cells_and_which_a_state(case: str, tmp_path: Path) -> None:
    more, kv, state = CONFIGS[case]
    usual = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(usual | more))

    found = of_file(tmp_path)

    assert found is not None
    assert (found.kv, found.state) == (kv, state)


@pytest.mark.parametrize(("stack", "spare"), [("llama_cpp", 1), ("vllm", 0)])
def test_states_count_once_for_each_slot_whatever_the_context(stack: str, spare: int) -> None:
    """llama.cpp has a spare sequence besides, through which cells of prompts are moved."""

    def size(slots: int, state: int) -> int:
        shape = Shape((512, 0), (0, 0), 1024, 4096, 32_000, 8192, "here", state=state)
        return cache_size(Sizing(stack, 1 << 20, shape, 4096, slots))

    assert size(4, 1000) - size(4, 0) == 1000 * (4 + spare)
    assert size(1, 1000) - size(1, 0) == 1000 * (1 + spare)


def test_the_cache_of_qwen_3_5_9b_is_a_quarter_of_what_all_layers_would_take(tmp_path: Path) -> None:
    """32 KiB a token in f16, as its publisher's own numbers give: 8 of 32 layers, 4 heads of 256."""
    found = of_file(
        write_header(
            tmp_path / "q.gguf",
            "qwen35",
            {
                "block_count": 32,
                "embedding_length": 4096,
                "attention.head_count": 16,
                "attention.head_count_kv": 4,
                "attention.key_length": 256,
                "attention.value_length": 256,
                "full_attention_interval": 4,
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 4096,
                "ssm.state_size": 128,
                "ssm.group_count": 16,
            },
        )
    )

    assert found is not None
    assert 2 * sum(found.kv) == 32_768

"""JSON files beside weights, above all Hugging Face's config.json: read within bounds, each number within its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tourkit.headers import bounds
from tourkit.headers.bounds import opened, refused, shown, whole, whole_or_each

CONFIG = "config.json"
SHARDS = "model.safetensors.index.json"

_MOST_CONFIG = 4 << 20  # bytes; a config.json has some kilobytes, lists of quantised layers included
_MOST_SHARDS = 64 << 20  # bytes; the list of Kimi K2's tensors has about 15 MB
_MOST_PARTS = 1_500_000  # values of a JSON text: Python takes about 100 bytes for each
_DEEPEST = 64  # levels; a config.json has about 5
_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}")
_SHARD = re.compile(r"[^/\\\x00-\x1f]{1,250}\.safetensors")

# Numbers that plans and loaders build from. Families use different names for the same number.
_NUMBERS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), bounds.LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), bounds.WIDTH),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), bounds.CONTEXT),
    "num_kv_shared_layers": bounds.LAYERS,
    "vocab_size": bounds.VOCABULARY,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), bounds.HEADS),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_n_groups", "n_groups"), bounds.HEADS),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), bounds.HEAD_SIZE),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), bounds.HEAD_SIZE),
    **dict.fromkeys(("linear_conv_kernel_dim", "conv_L_cache", "mamba_d_conv", "conv_kernel"), bounds.STATE),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size"), bounds.STATE),
    "mamba_expand": bounds.STATE,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "top_k_experts"), bounds.EXPERTS),
    "first_k_dense_replace": bounds.LAYERS,
    "hidden_size_per_layer_input": bounds.WIDTH,
    "vocab_size_per_layer_input": bounds.VOCABULARY,
}
_PER_LAYER = {
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), bounds.HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"), bounds.HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), bounds.FEED_FORWARD),
    **dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size"), bounds.FEED_FORWARD),
    **dict.fromkeys(("head_dim", "global_head_dim"), bounds.HEAD_SIZE),
    "num_global_key_value_heads": bounds.HEADS,
    "num_experts_per_tok": bounds.EXPERTS,
    "sliding_window": bounds.CONTEXT,
}
_BITS = 64  # of a quantised number


def folder_config(folder: Path) -> dict[str, Any]:
    """Return all keys of the config.json in a folder of safetensors. The file has some kilobytes.

    Raises OSError if there is none; LocalError if it is no JSON object, or states a number that no model has.
    """
    path = folder / CONFIG
    config = json_object(path)
    for where, part in (("", config), ("text_config.", _object(path, "text_config", config.get("text_config")))):
        _check_numbers(path, where, part)
        _check_numbers(path, f"{where}attn_config.", _object(path, f"{where}attn_config", part.get("attn_config")))
        key = f"{where}quantization_config"
        _check_quantisation(path, key, _object(path, key, part.get("quantization_config")))
    return config


def shard_names(path: Path) -> list[str]:
    """Return the names of the weight files that a list of shards states, sorted. They are in its own folder.

    Raises OSError, and LocalError for what is no list of shards.
    """
    listed = json_object(path, _MOST_SHARDS).get("weight_map")
    if not isinstance(listed, dict):
        raise refused(path, f"weight_map is {shown(listed)}, not an object")
    for tensor, name in listed.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            key = f"weight_map[{shown(tensor)}]"
            raise refused(path, f"{key} is {shown(name)}, not the name of a .safetensors file in this folder")
    return sorted(set(listed.values()))


def json_object(path: Path, most: int = _MOST_CONFIG) -> dict[str, Any]:
    """Return the JSON object in a file of at most `most` bytes. Raises OSError; LocalError for anything else."""
    with opened(path) as (file, size):
        if size > most:
            raise refused(path, f"{size} bytes, more than {most}")
        data = file.read(most)
    return parsed_object(data, path)


def parsed_object(data: bytes, where: object) -> dict[str, Any]:
    """Return the JSON object that `data` holds. `where`: the file, for messages. Raises LocalError."""
    if values_of(data) > _MOST_PARTS:
        raise refused(where, f"cannot be read (more than {_MOST_PARTS} values)")
    try:
        value = json.loads(data)
    except UnicodeDecodeError as exc:
        raise refused(where, f"cannot be read (not {exc.encoding} text at byte {exc.start})") from exc
    except json.JSONDecodeError as exc:
        raise refused(where, f"cannot be read (not JSON at line {exc.lineno}: {exc.msg})") from exc
    except ValueError as exc:  # Python refuses a number of more than 4300 digits
        raise refused(where, "cannot be read (a number has too many digits)") from exc
    except RecursionError as exc:
        raise refused(where, "cannot be read (it is nested too deeply)") from exc
    if not isinstance(value, dict):
        raise refused(where, f"cannot be read ({shown(value)}, not a JSON object)")
    if any(depth > _DEEPEST for depth in _depths(value)):
        raise refused(where, f"cannot be read (it is nested more than {_DEEPEST} levels deep)")
    return value


def values_of(data: bytes) -> int:
    """Return about how many values a JSON text has, without reading it: brackets and commas are counted."""
    return sum(map(data.count, (b"[", b"{", b",")))


def _depths(value: Any) -> Iterator[int]:
    """Yield how deep each list and object of a value is nested. No recursion: the value can be nested deeply."""
    todo = [(value, 1)]
    while todo:
        part, depth = todo.pop()
        yield depth
        inner = part.values() if isinstance(part, dict) else part
        todo += [(each, depth + 1) for each in inner if isinstance(each, dict | list)]


def _check_numbers(path: Path, where: str, config: Mapping[str, Any]) -> None:
    """Compare the numbers of one object with their bounds. A number that is absent, null or false is no error."""
    for key, most in _NUMBERS.items():
        if config.get(key) not in (None, False):
            whole(config[key], path, f"{where}{key}", most)
    for key, most in _PER_LAYER.items():
        if config.get(key) not in (None, False):
            whole_or_each(config[key], path, f"{where}{key}", most)
    if not isinstance(kind := config.get("model_type"), str | None):
        raise refused(path, f"{where}model_type is {shown(kind)}, not a name")
    for key in ("layer_types", "layers_block_type"):
        if not isinstance(kinds := config.get(key), list | None) or len(kinds or ()) > bounds.LAYERS:
            raise refused(path, f"{where}{key} is {shown(kinds)}, not a list of at most {bounds.LAYERS} names")


def _check_quantisation(path: Path, where: str, part: Mapping[str, Any]) -> None:
    """Check what states the quant: names and numbers of bits."""
    method = part.get("quant_method") or "none"
    if not isinstance(method, str) or not _NAME.fullmatch(method):
        raise refused(path, f"{where}.quant_method is {shown(method)}, not a name")
    _check_bits(path, f"{where}.bits", part.get("bits"))
    for name, group in _object(path, f"{where}.config_groups", part.get("config_groups")).items():
        place = f"{where}.config_groups[{shown(name)}]"
        for kind in ("weights", "input_activations"):
            key = f"{place}.{kind}"
            _check_bits(
                path, f"{key}.num_bits", _object(path, key, _object(path, place, group).get(kind)).get("num_bits")
            )


def _check_bits(path: Path, key: str, bits: Any) -> None:
    """Check a number of bits, which can have a fraction: an average over layers."""
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 <= bits <= _BITS:
        raise refused(path, f"{key} is {shown(bits)}, not a number from 0 to {_BITS}")


def _object(path: Path, key: str, value: Any) -> dict[str, Any]:
    """Return the value of a key that is an object; an empty one for null. Raises LocalError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refused(path, f"{key} is {shown(value)}, not an object")
    return value

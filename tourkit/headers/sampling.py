"""The sampling settings that a model's own files state: metadata of a GGUF file, or generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tourkit.defaults import UNSTATED, Sampling
from tourkit.headers.bounds import refused, shown
from tourkit.headers.config import json_object
from tourkit.headers.gguf import gguf_header, is_gguf

GENERATION_CONFIG = "generation_config.json"
GGUF_METADATA = "GGUF metadata"

_HOTTEST = 2.0  # the highest temperature that a request can have
_MOST_TOP_K = 2**31 - 1
# The keys of llama.cpp (`general.sampling.*` in its llama-arch.cpp) and of transformers, by our names.
_GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
}
_CONFIG_KEYS = {name: name for name in _GGUF_KEYS}


def sampling_in(path: Path) -> tuple[str, Sampling]:
    """Return what states the sampling settings of a model, `GENERATION_CONFIG` or `GGUF_METADATA`, and the settings.

    `path`: the (first) GGUF file, or the folder of the weights. A value that turns a setting off counts as stated: in
    both formats this is a top_k of 0 or less, a top_p of 1 or more, and a min_p of 0 or less. Raises OSError;
    LocalError for a file that cannot be read, or that states something that is no such number.
    """
    if path.is_dir():
        config = path / GENERATION_CONFIG
        return GENERATION_CONFIG, _of_config(config) if config.is_file() else UNSTATED
    if path.is_file() and is_gguf(path):
        return GGUF_METADATA, _sampling(path, gguf_header(path), _GGUF_KEYS)
    return "", UNSTATED


def _of_config(path: Path) -> Sampling:
    config = json_object(path)
    if config.get("do_sample") is False:  # transformers takes the likeliest token then, whatever else the file states
        return Sampling(temperature=0.0)
    return _sampling(path, config, _CONFIG_KEYS)


def _sampling(path: Path, values: Mapping[str, Any], keys: Mapping[str, str]) -> Sampling:
    found = {name: _number(path, key, values[key]) for name, key in keys.items() if values.get(key) is not None}
    temperature, top_p, top_k, min_p = map(found.get, keys)
    if temperature is not None and temperature > _HOTTEST:
        raise refused(path, f"{keys['temperature']} is {temperature}, more than {_HOTTEST}")
    if top_p is not None and top_p <= 0:
        raise refused(path, f"{keys['top_p']} is {top_p}, which leaves no token")
    return Sampling(
        temperature=None if temperature is None else max(0.0, temperature),
        top_p=None if top_p is None else min(1.0, top_p),
        top_k=None if top_k is None else _whole(path, keys["top_k"], top_k),
        min_p=None if min_p is None else min(1.0, max(0.0, min_p)),
    )


def _number(path: Path, key: str, value: Any) -> float:
    """Return a number. A float32 of a GGUF file gets the fewest digits that give the same float32: 0.6, not 0.60…24."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST_TOP_K or math.isnan(value):
        raise refused(path, f"{key} is {shown(value)}, not a number in its range")
    return float(f"{value:.7g}")


def _whole(path: Path, key: str, value: float) -> int:
    if not value.is_integer():
        raise refused(path, f"{key} is {value}, not a whole number")
    return max(0, int(value))

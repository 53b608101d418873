"""The command line and the environment of vLLM's own server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.vocabulary import read_json
from tourkit.launch import ALL_LAYERS, NO_LAYERS, Launch
from tourkit.offline import ENVIRONMENT
from tourkit.planning import memory
from tourkit.stacks import STACKS

if TYPE_CHECKING:
    from tourkit.planning.model_shape import Shape

_MAX_LOGPROBS = 20  # for each position, besides the sampled token
# Tokens a step: vLLM's default, except on the largest GPUs. There its default needs four times the working memory.
_BATCH = 2048
_BLOCK = 128  # tokens in a KV block on a CPU; a multiple of the block sizes on GPUs
_GUESSES = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
# GPUs by the first number of their compute capability. On all others vLLM's FlashAttention refuses an FP8 KV cache, and
# vLLM takes FlashInfer, which needs nvcc.
_FP8_CACHE_MAJORS = (9, 10)
_FP8_CAPABILITY = (8, 9)  # from here on a GPU multiplies FP8 numbers itself
_BFLOAT16_CAPABILITY = (8, 0)
_PROCESSES = "VLLM_ENABLE_V1_MULTIPROCESSING"


def serve_arguments(
    launch: Launch, folder: Path, shape: Shape, address: str, roles: Sequence[str], *, middleware: str, cpu: bool
) -> list[str]:
    """Return the arguments of `vllm serve`.

    `address`: `unix:PATH` or `HOST:PORT`. `middleware`: name of the ASGI middleware that vLLM loads.
    """
    host, _, port = address.rpartition(":")
    config = read_json(folder / "config.json")
    whole = cpu and not config.get("quantization_config")
    structured = {"backend": "guidance", "disable_any_whitespace": True}
    options: dict[str, Any] = {
        "served-model-name": launch.model,
        **({"uds": port} if host == "unix" else {"host": host, "port": port}),
        "middleware": middleware,
        "load-format": "safetensors",  # never pickles
        "dtype": "float32" if whole else "auto",  # with 16 bits on a CPU the answers differ from the other stacks
        "max-model-len": launch.context,
        "max-num-seqs": launch.slots,
        "scheduling-policy": "priority",  # the priority is the turn of a client: see engine.waiting
        "max-num-batched-tokens": max(_BATCH, launch.slots),
        "kv-cache-memory-bytes": _cache_bytes(launch, shape, whole=whole),
        "gpu-memory-utilization": 0.01,  # no limit because of the line before; but vLLM needs this share to be free
        "generation-config": "vllm",  # no defaults from the model's files: each request sets every value (requests.py)
        "structured-outputs-config": json.dumps(structured),
        "max-logprobs": _MAX_LOGPROBS,
        "fingerprint-mode": "none",
        "uvicorn-log-level": "warning",
    }
    switches = ["enable-prefix-caching", "disable-uvicorn-access-log", "disable-fastapi-docs"]
    if cpu:
        options["distributed-executor-backend"] = "uni"  # this saves one process and its import of vLLM
    if cpu or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        switches.append("enforce-eager")  # compiling has no benefit on a CPU, and needs a compiler on a GPU
    if launch.capability is not None:
        options |= _cuda_options(config, folder, launch.capability)
    if STACKS["vllm"].guesses(roles, on_gpu=not launch.gpu_layers.is_none):
        options["speculative-config"] = json.dumps(_GUESSES)
    named = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["serve", str(folder), *named, *(f"--{name}" for name in switches)]


def environment(launch: Launch, *, cpu: bool) -> dict[str, str]:
    """Return the environment of vLLM and its libraries: no log output, offline, no more threads than granted."""
    found = ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_COLOR": "0"}
    if not cpu:
        # FlashInfer's sampler is compiled at its first use, which needs nvcc. vLLM does not check that nvcc is there.
        return found | {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return found | {
        "OMP_NUM_THREADS": str(launch.threads),
        "TORCHDYNAMO_DISABLE": "1",  # without it the first request for logprobs compiles C++ for seconds
        # Without 0 vLLM silently ignores the executor "uni". Tests set it to 1.
        _PROCESSES: os.environ.get(_PROCESSES, "0"),
    }


def _cuda_options(config: dict[str, Any], folder: Path, capability: tuple[int, int]) -> dict[str, str]:
    """Return the options without which vLLM would use kernels that are compiled on the machine, with nvcc."""
    packed = config.get("quantization_config") or read_json(folder / "hf_quant_config.json")
    options = {}
    if _asks_for_small_cache(packed) and capability[0] not in _FP8_CACHE_MAJORS:
        # The type must be that of the model, because attention reads both together.
        is_half = capability < _BFLOAT16_CAPABILITY or _type_of(config) == "float16"
        options["kv-cache-dtype"] = "float16" if is_half else "bfloat16"
    if capability < _FP8_CAPABILITY and _is_compressed_fp8(packed):
        options["linear-backend"] = "marlin"  # vLLM would take Humming, which is compiled at its first use
    return options


def _asks_for_small_cache(packed: dict[str, Any]) -> bool:
    """Whether the quantisation of a checkpoint asks for a KV cache of 8 bits or fewer."""
    kinds = (packed, packed.get("quantization") or {})  # ModelOpt's own file has one more level
    return any(kind.get("kv_cache_scheme") or kind.get("kv_cache_quant_algo") for kind in kinds)


def _is_compressed_fp8(packed: dict[str, Any]) -> bool:
    """Whether weights are FP8 in the format of compressed-tensors."""
    groups = (packed.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    is_fp8 = any(each.get("type") == "float" and each.get("num_bits") == 8 for each in weights)
    return packed.get("quant_method") == "compressed-tensors" and is_fp8


def _type_of(config: dict[str, Any]) -> str | None:
    """Return the type of the weights in config.json; None if it names none."""
    kinds = (config, config.get("text_config") or {})
    return next((kind[name] for kind in kinds for name in ("dtype", "torch_dtype") if kind.get(name)), None)


def _cache_bytes(launch: Launch, shape: Shape, *, whole: bool) -> int:
    """Return the bytes of KV cache for `slots` sequences of `context` tokens, in whole blocks.

    One more block is added, because vLLM keeps one for itself. `whole`: the cache holds 32-bit numbers. An FP8 cache
    gets the bytes of 16-bit numbers too, because the plan counts them; then it holds more tokens.
    """
    length = -(-launch.context // _BLOCK) * _BLOCK
    sizing = memory.Sizing("vllm", 0, shape, length, launch.slots, gpu_layers=NO_LAYERS if whole else ALL_LAYERS)
    return memory.cache_size(sizing) + sum(shape.kv) * _BLOCK * (4 if whole else 2)

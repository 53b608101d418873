"""Import torch and transformers, and load models with them: safetensors only, offline, and no code from a model."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tourkit.backends.out_of_memory import is_out_of_memory
from tourkit.backends.vocabulary import read_json
from tourkit.errors import LocalError, one_line
from tourkit.launch import GpuLayers
from tourkit.offline import ENVIRONMENT
from tourkit.planning import recurrent

_TEKKEN = "tekken.json"
_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def import_torch() -> Any:
    """Import torch and transformers so that neither uses the network. Return torch. Raises LocalError."""
    missing = [name for name in ("torch", "transformers", "tokenizers") if find_spec(name) is None]
    if missing:
        raise LocalError(f"{missing[0]} is not installed: install tourkit[transformers]")
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    os.environ.update({name: ENVIRONMENT[name] for name in names})
    try:
        import torch
        import transformers
    except (ImportError, OSError, RuntimeError) as exc:
        why = one_line(str(exc))
        raise LocalError(f"transformers cannot be imported: {why}: install tourkit[transformers]") from exc
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch


def device_of(torch: Any, gpu_layers: GpuLayers) -> str:
    """Return torch's name of the device for these layers: the GPU if there is one."""
    if gpu_layers.is_none:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def language_model(folder: Path, device: str) -> Any:
    """Load a causal language model: float32 on a CPU, the weights' own type on a GPU. Raises LocalError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    quantized = (read_json(folder / "config.json").get("quantization_config") or {}).get("quant_method")
    if quantized == "bitsandbytes" and device != "cuda":
        raise LocalError(f"{folder}: bitsandbytes weights need a CUDA GPU: use the GGUF of this model")
    try:
        config = AutoConfig.from_pretrained(folder, **_HERE)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="float32" if device == "cpu" and quantized is None else "auto",
            device_map={"": device} if device != "cpu" else None,
            use_safetensors=True,
            **_HERE,
        )
    except Exception as exc:  # a damaged file or an unknown architecture: each library raises its own exceptions
        raise _failure(folder, exc) from exc
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if getattr(model, "_is_stateful", False) or not set(kinds).isdisjoint(recurrent.KINDS):
        raise LocalError(f"{folder}: this stack does not support recurrent models: use the GGUF of this model")
    return model.eval()


def encoder(folder: Path, device: str) -> Any:
    """Load an embedding model: float32 on a CPU, the weights' own type on a GPU. Raises LocalError."""
    from transformers import AutoModel

    dtype = "float32" if device == "cpu" else "auto"
    try:
        return AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, **_HERE).to(device).eval()
    except Exception as exc:  # a damaged file or an unknown architecture: each library raises its own exceptions
        raise _failure(folder, exc) from exc


def cross_encoder(folder: Path, device: str) -> Any:
    """Load a reranker: float32 on a CPU, the weights' own type on a GPU. Raises LocalError."""
    from transformers import AutoModelForSequenceClassification

    dtype = "float32" if device == "cpu" else "auto"
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_HERE
        )
    except Exception as exc:  # a damaged file or an unknown architecture: each library raises its own exceptions
        raise _failure(folder, exc) from exc
    if missing := sorted(info["missing_keys"]):  # transformers would give them random numbers
        raise LocalError(f"{folder}: a reranker without weights of its head ({missing[0]}): choose another copy of it")
    if model.config.num_labels != 1:
        raise LocalError(
            f"{folder}: not a reranker that can be served (its head gives {model.config.num_labels} scores): choose "
            "another model"
        )
    return model.to(device).eval()


def ran_out_of_memory(exc: Exception) -> bool:
    """Whether an exception of torch means that memory ran out. On a MIG slice it can be a plain RuntimeError."""
    import torch

    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or is_out_of_memory(str(exc))


def _failure(folder: Path, exc: Exception) -> LocalError:
    """Return the error for weights that cannot be loaded."""
    if ran_out_of_memory(exc):  # torch's text is not quoted: on a MIG slice it asks to report a bug
        return LocalError(f"{folder}: no memory for the weights: free some memory, or choose a smaller quant")
    return LocalError(f"{folder}: transformers cannot load it: {one_line(str(exc))}")


def converted_tokenizer(folder: Path) -> str:
    """Return the text of a tokenizer.json that transformers makes from other tokenizer files. Raises LocalError."""
    from transformers import AutoTokenizer

    try:
        return str(AutoTokenizer.from_pretrained(folder, **_HERE).backend_tokenizer.to_str())
    except (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as exc:
        if (folder / _TEKKEN).is_file():
            fix = "use the GGUF of this model, or a repository that has tokenizer.json"
            raise LocalError(f"{folder}: only {_TEKKEN}, Mistral's own format, and no tokenizer.json: {fix}") from exc
        why = one_line(str(exc))
        raise LocalError(f"{folder}: no tokenizer.json, and transformers cannot make one: {why}") from exc

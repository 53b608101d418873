"""One file a stack, each with `load(spec)`; an inference library is imported in its own file only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tourkit.errors import LocalError

if TYPE_CHECKING:
    from tourkit.backends.base import Engine, LoadSpec

# Stack → the format it loads, the preferred stack of a format first.
STACKS = {"llama_cpp": "gguf", "vllm": "safetensors", "transformers": "safetensors", "onnx": "onnx"}


def load(spec: LoadSpec) -> Engine:
    """Load a variant with its stack. Raises LocalError when the stack or the files are no good."""
    if spec.deterministic and spec.stack != "llama_cpp":
        raise LocalError(f"{spec.model}: --deterministic is for llama_cpp, not {spec.stack}: take a GGUF of the model")
    engine: Engine = import_module(f"tourkit.backends.{spec.stack}").load(spec)
    return engine

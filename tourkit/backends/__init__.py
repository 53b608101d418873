"""One file a stack, each with `load(spec)`; an inference library is imported in its own file only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.backends.base import Engine, LoadSpec

STACKS = {"llama_cpp": "gguf"}  # stack → the format it loads, the preferred stack of a format first


def load(spec: LoadSpec) -> Engine:
    """Load a variant with its stack. Raises LocalError when the stack or the files are no good."""
    engine: Engine = import_module(f"tourkit.backends.{spec.stack}").load(spec)
    return engine

"""One file a stack, each with `load(launch)`; an inference library is imported in its own file only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tourkit.errors import LocalError
from tourkit.stacks import STACKS

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a variant with its stack. Raises LocalError when the stack or the files are no good."""
    if launch.deterministic and not STACKS[launch.stack].deterministic:
        raise LocalError(
            f"{launch.model}: --deterministic is for llama_cpp, not {launch.stack}: take a GGUF of the model"
        )
    engine: Engine = import_module(f"tourkit.backends.{launch.stack}").load(launch)
    return engine

"""How each stack loads a variant and serves requests: one module or package a stack, named like the stack.

Each has `load(launch)`, which gives an Engine. Only that module or package imports the stack's library, and only inside
functions. The other modules here are shared by several stacks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a variant with its stack. Raises LocalError when the stack or the files are no good, or an option is not
    for this stack."""
    engine: Engine = import_module(f"tourkit.backends.{launch.stack}").load(launch)
    return engine

"""Tries an installed stack: whether its libraries can be imported, and whether they find a GPU.

`python -m tourkit.checks.stack_trial NAME` is the process that imports them.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from tourkit import offline
from tourkit.checks import child
from tourkit.errors import one_line
from tourkit.stacks import STACKS

_ALL_NEED = ("llguidance", "jinja2", "numpy")  # for grammars and chat templates


@dataclass(frozen=True, slots=True)
class Trial:
    """`error`: why the stack cannot be imported, "" if it can. `finds_gpu`: None if it was not asked."""

    error: str = ""
    finds_gpu: bool | None = None


def try_stack(name: str) -> Trial:
    """Import a stack in a new process."""
    answer = child.ask("tourkit.checks.stack_trial", name)
    return Trial(answer.get("error", ""), answer.get("finds_gpu"))


def imported(name: str) -> dict[str, Any]:
    """Import a stack in this process. Return "finds_gpu", or the "error" of the import."""
    try:
        for module in (*STACKS[name].modules, *_ALL_NEED):
            importlib.import_module(module)
        return {"finds_gpu": _finds_gpu(name)}
    except Exception as exc:  # noqa: BLE001 - a broken package can raise anything, and its error is the answer
        return {"error": one_line(f"{type(exc).__name__}: {exc}")}


def _finds_gpu(name: str) -> bool | None:
    if not STACKS[name].uses_gpu:
        return None
    if "torch" in STACKS[name].modules:
        torch = sys.modules["torch"]
        return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
    return bool(sys.modules[STACKS[name].modules[0]].llama_supports_gpu_offload())


if __name__ == "__main__":
    offline.engage()
    child.tell(imported(sys.argv[1]))

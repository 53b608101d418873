"""Tries an installed stack: whether its libraries can be imported, and whether they find a GPU.

`python -m tourkit.checks.stack_trial NAME` is the process that imports them.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from tourkit import offline
from tourkit.backends.llama_cpp.library import import_llama
from tourkit.checks import child
from tourkit.errors import TourkitError, one_line
from tourkit.stacks import STACKS

_AGAIN = "install it again, with `sh install.sh` of the bundle or with pip"
_ALL_NEED = ("llguidance", "jinja2", "numpy")  # for grammars and chat templates


@dataclass(frozen=True, slots=True)
class Trial:
    """`error`: why the stack cannot be imported, with the fix; "" if it can. `finds_gpu`: None if it was not asked."""

    error: str = ""
    finds_gpu: bool | None = None


def try_stack(name: str) -> Trial:
    """Import a stack in a new process."""
    answer = child.ask("tourkit.checks.stack_trial", name)
    if "error" in answer:  # it ended by a signal, or it hangs
        return Trial(f"cannot be imported ({answer['error']}): {_AGAIN}")
    return Trial(answer["problem"], answer["finds_gpu"])


def imported(name: str) -> dict[str, Any]:
    """Import a stack in this process as its worker does. Return the fields of a trial."""
    try:
        if name == "llama_cpp":
            import_llama()  # first loads the libraries that it needs
        for module in (*STACKS[name].modules, *_ALL_NEED):
            importlib.import_module(module)
        return {"problem": "", "finds_gpu": _finds_gpu(name)}
    except TourkitError as exc:
        return {"problem": str(exc), "finds_gpu": None}
    except Exception as exc:  # noqa: BLE001 - a broken package can raise anything, and its error is the answer
        return {
            "problem": f"cannot be imported ({one_line(f'{type(exc).__name__}: {exc}')}): {_AGAIN}",
            "finds_gpu": None,
        }


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

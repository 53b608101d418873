"""Import llama-cpp-python: before it the CUDA libraries that it needs, after it the CPU library for this processor."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

from tourkit.errors import LocalError
from tourkit.hardware import llama_cuda
from tourkit.hardware.llama_library import load_backends

_NO_REASON = "failed to load model"  # the last line of llama.cpp's log of a failed load; the line before it says why

_log_tail: deque[str] = deque(maxlen=20)
_log_callback: Any = None


def import_llama() -> Any:
    """Import the low-level module. Keep llama.cpp's log in memory, not on stderr. Raises LocalError."""
    global _log_callback
    fix = "install tourkit[llama], or run the bundle's install.sh"
    try:
        folder = llama_cuda.llama_folder()
        _, wanted = llama_cuda.llama_build(folder)
        missing = llama_cuda.load_cuda_libraries(wanted, folder)
        if missing:
            fix = f"{llama_cuda.install_command(missing[0])}, or install the CUDA toolkit"
        import llama_cpp

        if _log_callback is None:
            _log_callback = llama_cpp.llama_log_callback(_keep)
            llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        load_backends(folder)
        llama_cpp.llama_backend_init()  # every call after the first does nothing
    except (ImportError, OSError, RuntimeError) as exc:
        raise LocalError(f"llama-cpp-python cannot be imported ({exc}): {fix}") from exc
    return llama_cpp


def _keep(_level: int, text: bytes, _data: object) -> None:
    _log_tail.append(text.decode(errors="replace").rstrip())


def reason() -> str:
    """Return the last line of llama.cpp's log that says what went wrong."""
    lines = [line for line in _log_tail if line and line != "."]
    words = ("error", "fail", "invalid", "does not", "requires")
    said = [line for line in lines if not line.endswith(_NO_REASON)]
    wrong = [line for line in said if any(word in line.lower() for word in words)]
    return (wrong or lines or ["llama.cpp gave no reason"])[-1]

"""Import llama-cpp-python: first the CUDA libraries that it needs. Keep llama.cpp's log in memory, not on stderr."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections import deque
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tourkit.errors import LocalError

# The order of loading: libcublas needs libcublasLt.
_CUDA = ("cudart", "cublasLt", "cublas")
_NO_REASON = "failed to load model"  # the last line of llama.cpp's log of a failed load; the line before it says why

_log_tail: deque[str] = deque(maxlen=20)
_log_callback: Any = None


def import_llama() -> Any:
    """Import the low-level module. Keep llama.cpp's log in memory, not on stderr. Raises LocalError."""
    global _log_callback
    try:
        load_cuda_libraries(_folders_of("llama_cpp"), _folders_of("nvidia"))
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as exc:
        raise LocalError(f"llama-cpp-python cannot be imported ({exc}): {_fix(str(exc))}") from exc
    if _log_callback is None:

        def keep(_level: int, text: bytes, _data: object) -> None:
            _log_tail.append(text.decode(errors="replace").rstrip())

        _log_callback = llama_cpp.llama_log_callback(keep)
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def reason() -> str:
    """Return the last line of llama.cpp's log that says what went wrong."""
    lines = [line for line in _log_tail if line and line != "."]
    words = ("error", "fail", "invalid", "does not", "requires")
    said = [line for line in lines if not line.endswith(_NO_REASON)]
    wrong = [line for line in said if any(word in line.lower() for word in words)]
    return (wrong or lines or ["llama.cpp gave no reason"])[-1]


def load_cuda_libraries(llama: Iterable[Path], nvidia: Iterable[Path]) -> list[Path]:
    """Load the CUDA libraries that llama.cpp needs from NVIDIA's Python packages. Return their paths.

    `llama`, `nvidia`: the folders of the packages llama_cpp and nvidia. The loader does not search in NVIDIA's folders,
    but it takes a library that is already loaded. Nothing is loaded if llama.cpp has no CUDA, or if the packages are
    missing: then the loader looks for a CUDA toolkit. Raises OSError if a library is damaged.
    """
    versions = {name: version for folder in llama for name, version in _needed(folder).items()}
    versions["cublasLt"] = versions.get("cublas", "")  # llama.cpp does not name it
    folders = tuple(nvidia)
    found = []
    for name in _CUDA:
        file = f"lib{name}.so.{versions.get(name, '')}"
        path = next((path for folder in folders for path in sorted(folder.glob(f"*/lib/{file}"))), None)
        if path is not None:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            found.append(path)
    return found


def _needed(llama: Path) -> dict[str, str]:
    """Return the version of each CUDA library that libggml-cuda.so names; empty if there is no such file."""
    path = next((path for path in sorted(llama.glob("lib/libggml-cuda.so*")) if path.stat().st_size), None)
    if path is None:
        return {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        named = re.findall(rb"lib(cudart|cublas)\.so\.(\d+)\0", content)
    return {name.decode(): version.decode() for name, version in named}


def _folders_of(package: str) -> list[Path]:
    """Return the folders of a package without importing it; several for a namespace package, none if it is missing."""
    spec = find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations if spec is not None else None) or ()]


def _fix(why: str) -> str:
    """Return the fix for a failed import."""
    missing = re.search(r"lib(?:cudart|cublas|cublasLt)\.so\.(\d+)", why)
    if missing is None:
        return "install tourkit[llama], or run the bundle's install.sh"
    suffix = "-cu12" if missing[1] == "12" else ""  # from CUDA 13 on, the packages have no suffix
    return f"it is built for CUDA {missing[1]}: install nvidia-cuda-runtime{suffix} and nvidia-cublas{suffix}"

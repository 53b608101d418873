"""Loads the CPU library of llama.cpp that fits this processor. gpu_probe.py runs this file by its path.

So this module imports nothing of tourkit. A portable build of llama-cpp-python has one CPU library for each kind of
processor. llama.cpp does not look for them in the package: it looks beside the executable and in the current directory,
where anybody may have put a file of that name. So they are loaded here, by path, before the first call.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_LIBRARIES = ("libllama.so", "libllama.dylib")


def load_backends(folder: Path) -> None:
    """Load the backends in llama.cpp's folder if none is built into it.

    Call it after the import of llama_cpp and before any other function. `folder`: where llama_cpp loaded libllama from.
    A second call does nothing. Raises OSError if no backend runs on this processor.
    """
    path = next((path for name in _LIBRARIES if (path := folder.resolve() / name).is_file()), None)
    if path is None:
        return  # Windows: the backends are built in
    # libllama is loaded already, so this is the same one. ctypes finds the functions of libggml through it, so this is
    # the libggml that it uses. A copy of libggml under another name would be a second one, with its own backends.
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "ggml_backend_load_all_from_path") or library.ggml_backend_reg_count():
        return
    library.ggml_backend_load_all_from_path(os.fsencode(path.parent))
    if not library.ggml_backend_reg_count():
        raise OSError(f"{path.parent}: none of its CPU libraries runs on this processor")

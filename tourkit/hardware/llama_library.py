"""Loads the CPU library of llama.cpp that fits this processor. gpu_probe.py runs this file by its path.

So this module imports nothing of tourkit. A portable build of llama-cpp-python has one CPU library for each kind of
processor. llama.cpp does not look for them in the package: it looks beside the executable and in the current directory,
where anybody may have put a file of that name. So they are loaded here, by path, before the first call.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def load_backends(llama_cpp: Any) -> None:
    """Load the backends beside libllama if none is built into it. Call it after the import, before other functions.

    `llama_cpp`: the imported module. A second call does nothing. Raises OSError if no backend runs on this processor.
    """
    # ctypes finds the functions of libggml through libllama, so this is the libggml that libllama uses. A copy of that
    # file under another name would be a second libggml, with a list of backends of its own.
    library = llama_cpp.llama_cpp._lib
    if not hasattr(library, "ggml_backend_load_all_from_path"):
        return  # Windows, or an old release: the backends are built in
    if library.ggml_backend_reg_count():
        return
    folder = Path(library._name).resolve().parent
    library.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not library.ggml_backend_reg_count():
        raise OSError(f"{folder}: none of its CPU libraries runs on this processor")

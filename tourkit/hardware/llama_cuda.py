"""Finds what llama.cpp is built for, and loads the CUDA libraries that its build needs, before it is imported.

Imports nothing of tourkit, because gpu_probe.py runs this file by its path.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
from pathlib import Path

# In loading order: libcublas needs libcublasLt.
_CUDA_LIBRARIES = ("libcudart", "libcublasLt", "libcublas")


def llama_folder() -> Path:
    """Return the folder from which llama-cpp-python loads its libraries, without importing it."""
    if "LLAMA_CPP_LIB_PATH" in os.environ:
        return Path(os.environ["LLAMA_CPP_LIB_PATH"])
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("llama_cpp is not installed")
    return Path(spec.origin).with_name("lib")


def llama_build(folder: Path) -> tuple[str, list[str]]:
    """Return llama.cpp's GPU runtime ("cuda 12", "" if none), and the CUDA libraries it needs, in loading order."""
    for part, runtime in (("cuda", "cuda"), ("hip", "rocm"), ("metal", "metal"), ("vulkan", "vulkan")):
        for library in sorted(folder.glob(f"*ggml-{part}*")):
            names = needed(library)
            names += [name.replace("libcublas.", "libcublasLt.") for name in names if name.startswith("libcublas.")]
            wanted = [name for stem in _CUDA_LIBRARIES for name in names if name.startswith(f"{stem}.so.")]
            return f"{runtime} {_major(wanted[0])}" if wanted else runtime, list(dict.fromkeys(wanted))
    return "", []


def load_cuda_libraries(wanted: list[str], beside: Path) -> list[str]:
    """Load CUDA libraries so that llama.cpp finds them, and return the names of those that cannot be loaded.

    llama.cpp's CUDA wheels leave these libraries out. A library that needs one takes it if it is already loaded. It is
    loaded from where the system finds it, from the folder `beside`, or from a package of NVIDIA, such as
    nvidia/cuda_runtime/lib or nvidia/cu13/lib.
    """
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    missing = []
    for name in wanted:
        packaged = [str(path) for folder in packages for path in sorted(folder.glob(f"*/lib/{name}"))]
        if not any(_loads(path) for path in (name, str(beside / name), *packaged)):
            missing.append(name)
    return missing


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def install_command(library: str) -> str:
    """Return the command that installs the CUDA libraries of the same major version as `library`."""
    major = _major(library)
    names = ("nvidia-cuda-runtime", "nvidia-cublas")
    packages = [f"{name}-cu{major}" if int(major) < 13 else f"'{name}=={major}.*'" for name in names]
    return f"pip install {' '.join(packages)}"


def _major(library: str) -> str:
    return library.partition(".so.")[2].partition(".")[0]


def needed(library: Path) -> list[str]:
    """Return the names of the libraries that a 64-bit ELF library needs (DT_NEEDED). Empty for another kind of file.

    It reads the file, because loading it fails if one of these libraries is missing.
    """
    with library.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return []
        (table,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(table)
        rows = file.read(size * count)
        segments = [struct.unpack_from("<IIQQQQQQ", rows, size * row) for row in range(count)]
        # Kind 1 is PT_LOAD: bytes of the file at an address in memory. Kind 2 is PT_DYNAMIC: the table with the names.
        loaded = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in segments if kind == 1]
        dynamic = next(((offset, length) for kind, _, offset, _, _, length, _, _ in segments if kind == 2), (0, 0))
        file.seek(dynamic[0])
        entries = list(struct.iter_unpack("<qQ", file.read(dynamic[1])))
        strings = next((value for tag, value in entries if tag == 5), 0)  # DT_STRTAB, an address in memory
        length = next((value for tag, value in entries if tag == 10), 0)  # DT_STRSZ
        file.seek(next((strings - start + offset for start, offset, size in loaded if 0 <= strings - start < size), 0))
        names = file.read(length)
    return [names[at : names.index(0, at)].decode() for tag, at in entries if tag == 1]  # DT_NEEDED

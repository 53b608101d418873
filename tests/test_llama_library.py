"""The import of llama-cpp-python: a CUDA build takes the CUDA libraries of NVIDIA's Python packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.starts,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make libraries with"),
]

# A llama_cpp that loads its CUDA backend when it is imported. No machine has this version of the CUDA runtime.
RUNTIME = "libcudart.so.99"
LLAMA_CPP = """
import ctypes, pathlib
try:
    ctypes.CDLL(str(pathlib.Path(__file__).with_name("lib") / "libggml-cuda.so"))
except OSError as exc:
    raise RuntimeError(f"Failed to load shared library: {exc}")
def llama_log_callback(function): return function
def llama_log_set(callback, data): pass
def llama_backend_init(): pass
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder of packages: llama_cpp for CUDA, and NVIDIA's package with the library that it needs."""
    lib, runtime = tmp_path / "llama_cpp" / "lib", tmp_path / "nvidia" / "cuda_runtime" / "lib"
    lib.mkdir(parents=True)
    runtime.mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").write_text(LLAMA_CPP)
    (tmp_path / "fake.c").write_text("int fake(void) { return 7; }\n")
    compile_ = ["cc", "-shared", "-fPIC", tmp_path / "fake.c", "-Wl,--no-as-needed"]
    subprocess.run([*compile_, f"-Wl,-soname,{RUNTIME}", "-o", runtime / RUNTIME], check=True)
    subprocess.run([*compile_, runtime / RUNTIME, "-o", lib / "libggml-cuda.so"], check=True)
    return tmp_path


def imported(site: Path) -> str:
    """Import llama.cpp in a process of its own. Return "imported", or the error."""
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from tourkit.backends.llama_cpp import library\n"
        "from tourkit.errors import LocalError\n"
        "try: library.import_llama(); print('imported')\n"
        "except LocalError as exc: print(exc)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_library_in_nvidias_package_is_loaded_first_so_that_llama_cpp_finds_it(site: Path) -> None:
    assert imported(site) == "imported"


def test_without_the_library_the_error_names_what_to_install(site: Path) -> None:
    shutil.rmtree(site / "nvidia")

    said = imported(site)

    assert said.startswith("llama-cpp-python cannot be imported (Failed to load shared library: libcudart.so.99")
    assert "pip install 'nvidia-cuda-runtime==99.*' 'nvidia-cublas==99.*'" in said

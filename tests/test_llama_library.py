"""The import of llama-cpp-python: a CUDA build finds the CUDA libraries of NVIDIA's Python packages."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tourkit.backends.llama_cpp import library
from tourkit.errors import LocalError

# A llama_cpp that needs the CUDA runtime by its bare name, as libggml-cuda.so does. No machine has this version.
NEEDS_CUDA = """
import ctypes
try:
    ctypes.CDLL("libcudart.so.99")
except OSError as exc:
    raise RuntimeError(f"Failed to load shared library: {exc}")
def llama_log_callback(function): return function
def llama_log_set(callback, data): pass
def llama_backend_init(): pass
"""


def llama(folder: Path, needed: bytes = b"\0libcudart.so.12\0libcublas.so.12\0libcuda.so.1\0") -> Path:
    """Make the package llama_cpp of a CUDA build. `needed`: the names in the file of its CUDA backend."""
    (folder / "llama_cpp" / "lib").mkdir(parents=True)
    (folder / "llama_cpp" / "__init__.py").write_text(NEEDS_CUDA)
    (folder / "llama_cpp" / "lib" / "libggml-cuda.so").write_bytes(b"\x7fELF" + needed)
    return folder / "llama_cpp"


def nvidia(folder: Path, *files: str) -> Path:
    """Make NVIDIA's packages with empty libraries."""
    for file in files:
        (folder / "nvidia" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "nvidia" / file).touch()
    return folder / "nvidia"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The libraries that would be loaded, in this order, and the mode. No CUDA library exists here."""
    calls: list[tuple[str, int]] = []

    def record(path: str, mode: int) -> None:
        calls.append((Path(path).name, mode))

    monkeypatch.setattr(library.ctypes, "CDLL", record)
    return calls


def test_the_cuda_libraries_are_loaded_for_all_before_those_that_need_them(
    loaded: list[tuple[str, int]], tmp_path: Path
) -> None:
    files = ("cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12", "cuda_runtime/lib/libcudart.so.12")
    found = library.load_cuda_libraries([llama(tmp_path)], [nvidia(tmp_path, *files)])

    assert [name for name, _ in loaded] == ["libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12"]
    assert {mode for _, mode in loaded} == {ctypes.RTLD_GLOBAL}
    assert [path.name for path in found] == [name for name, _ in loaded]


def test_only_the_version_that_llama_cpp_was_built_for_is_loaded(loaded: list[tuple[str, int]], tmp_path: Path) -> None:
    """Two versions of the CUDA runtime in one process would be two runtimes. torch brings the other one."""
    files = ("cuda_runtime/lib/libcudart.so.12", "cu13/lib/libcudart.so.13", "cu13/lib/libcublas.so.13")
    library.load_cuda_libraries([llama(tmp_path, b"\0libcudart.so.13\0libcublas.so.13\0")], [nvidia(tmp_path, *files)])

    assert [name for name, _ in loaded] == ["libcudart.so.13", "libcublas.so.13"]


def test_a_build_for_the_cpu_loads_no_cuda_library(loaded: list[tuple[str, int]], tmp_path: Path) -> None:
    folder = llama(tmp_path)
    (folder / "lib" / "libggml-cuda.so").unlink()

    assert library.load_cuda_libraries([folder], [nvidia(tmp_path, "cuda_runtime/lib/libcudart.so.12")]) == []
    assert loaded == []


def test_without_nvidias_packages_the_loader_looks_for_a_toolkit(loaded: list[tuple[str, int]], tmp_path: Path) -> None:
    assert library.load_cuda_libraries([llama(tmp_path)], []) == []
    assert loaded == []


@pytest.mark.parametrize(
    ("why", "fix"),
    [
        ("libcudart.so.12: cannot open shared object file", "nvidia-cuda-runtime-cu12 and nvidia-cublas-cu12"),
        ("libcublasLt.so.13: cannot open shared object file", "nvidia-cuda-runtime and nvidia-cublas"),
        ("No module named 'llama_cpp'", "install tourkit[llama]"),
    ],
)
def test_an_import_that_fails_names_what_to_install(why: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*folders: Any) -> None:
        raise OSError(why)

    monkeypatch.setattr(library, "load_cuda_libraries", fail)

    with pytest.raises(LocalError, match="llama-cpp-python cannot be imported") as error:
        library.import_llama()

    assert why in str(error.value)
    assert fix in str(error.value)


@pytest.mark.starts
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a library with")
@pytest.mark.parametrize("installed", [True, False])
def test_a_library_in_nvidias_package_is_found_by_its_bare_name(installed: bool, tmp_path: Path) -> None:
    llama(tmp_path, b"\0libcudart.so.99\0")
    nvidia(tmp_path, "cuda_runtime/lib/libcudart.so.99")
    made = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.99"
    source = tmp_path / "fake.c"
    source.write_text("int fake(void) { return 7; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.99", "-o", made, source], check=True)
    if not installed:
        made.unlink()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from tourkit.backends.llama_cpp import library; library.import_llama(); print('imported')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ("imported" in done.stdout) is installed
    assert ("install nvidia-cuda-runtime and" in done.stderr) is not installed

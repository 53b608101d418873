"""Build llama-server and llama-batched-bench from the same sources as the installed llama-cpp-python.

`python bench/build_llama_cpp.py [FOLDER]` prints the folder of the binaries. It needs cmake, a C++ compiler and the
package index. The first run takes about ten minutes on two cores.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path("build/llama.cpp")
TARGETS = ("llama-server", "llama-batched-bench")
_OFF = ("LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")


def build(folder: Path = FOLDER) -> Path:
    """Download, unpack and compile what is not there yet. Return the folder of the binaries."""
    binaries = folder / "build" / "bin"
    if all((binaries / target).is_file() for target in TARGETS):
        return binaries
    folder.mkdir(parents=True, exist_ok=True)
    source = sources(folder)
    configure = ["cmake", "-S", str(source), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=Release"]
    flags = shlex.split(os.environ.get("CMAKE_ARGS", ""))  # the flags of the library (see the Makefile)
    _run([*configure, *(f"-D{option}=OFF" for option in _OFF), *flags])
    _run(["cmake", "--build", str(folder / "build"), "--parallel", str(os.cpu_count() or 1), "--target", *TARGETS])
    return binaries


def sources(folder: Path = FOLDER) -> Path:
    """Return the folder of llama.cpp from the sdist of the installed llama-cpp-python."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    source = folder / name / "vendor" / "llama.cpp"
    if not source.is_dir():
        spec = name.replace("llama_cpp_python-", "llama-cpp-python==")
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--no-binary",
                ":all:",
                "-d",
                str(folder),
                spec,
            ]
        )
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return source


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))

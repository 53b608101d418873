"""Looks into a wheel: can it run on a target? Platform tag, needed libraries, symbol versions, processor instructions.

Nothing in the wheel is run. Only libraries of Linux are read. For macOS and Windows the tag alone decides.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.errors import UsageError
from tourkit.fetch.wheels import elf
from tourkit.fetch.wheels.target import fits

if TYPE_CHECKING:
    from tourkit.fetch.wheels.target import Target

Version = tuple[int, ...]

# What every Linux of a manylinux tag has, by auditwheel's policies: the newest symbol versions for a glibc.
_RUNTIMES: Mapping[Version, Mapping[str, Version]] = {
    (2, 31): {"GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12), "GCC": (7, 0, 0)},
    (2, 34): {"GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)},
    (2, 35): {"GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)},
    (2, 39): {"GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0)},
}
_SYSTEM = re.compile(
    r"(ld-linux-(x86-64|aarch64)|lib(c|m|dl|rt|pthread|util|nsl|resolv|anl|mvec|gcc_s|stdc\+\+|z|atomic))\.so\.\d+"
)
# Not in the manylinux policy, but present almost everywhere. Without it the wheel does not load.
_USUAL = {"libgomp.so.1": "the package libgomp1 (Debian) or libgomp (Red Hat)"}
_CUDA = re.compile(
    r"lib(cuda|cudart|cublas|cublasLt|cudnn\w*|cufft|cufile|cupti|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvJitLink"
    r"|nvToolsExt|nvidia-ml|nvshmem_host)\.so(\.\d+)*"
)
# ggml's functions that say what a CPU library was compiled for, with the names of /proc/cpuinfo.
_INSTRUCTIONS = {
    "ggml_cpu_has_sse3": "pni",
    "ggml_cpu_has_ssse3": "ssse3",
    "ggml_cpu_has_avx": "avx",
    "ggml_cpu_has_avx_vnni": "avx_vnni",
    "ggml_cpu_has_avx2": "avx2",
    "ggml_cpu_has_bmi2": "bmi2",
    "ggml_cpu_has_f16c": "f16c",
    "ggml_cpu_has_fma": "fma",
    "ggml_cpu_has_avx512": "avx512f",
    "ggml_cpu_has_avx512_vbmi": "avx512vbmi",
    "ggml_cpu_has_avx512_vnni": "avx512_vnni",
    "ggml_cpu_has_avx512_bf16": "avx512_bf16",
    "ggml_cpu_has_amx_int8": "amx_int8",
}
_RETURNS_ONE = re.compile(rb"(\xf3\x0f\x1e\xfa)?(\x55\x48\x89\xe5)?\xb8\x01\x00\x00\x00")  # endbr64, push, mov eax, 1
_CPU_LIBRARY = re.compile(r"libggml-cpu(?:-(?P<variant>[a-z0-9_]+))?\.so(\.\d+)*")


@dataclass(frozen=True, slots=True)
class Inside:
    """What the libraries in a wheel need from the machine. Empty for a wheel without libraries of Linux.

    `machines`: "x86_64" or "aarch64". `libraries`: those that are not in the wheel. `versions`: the newest symbol
    version of each set, such as GLIBC, with the library that needs it. `cpu_libraries`: for each CPU library of
    llama.cpp, the instructions it was compiled for, in the names of /proc/cpuinfo; they are known for x86-64.
    """

    machines: frozenset[str]
    libraries: Mapping[str, str]
    versions: Mapping[str, tuple[Version, str]]
    cpu_libraries: Mapping[str, frozenset[str]]

    def instructions(self) -> frozenset[str]:
        """Return the instructions that a processor must have: those of the CPU library that needs the fewest."""
        return min(self.cpu_libraries.values(), key=len, default=frozenset())


def look_into(wheel: Path) -> Inside:
    """Read the libraries in a wheel. Raises OSError or ValueError if the wheel is damaged."""
    machines, present = set(), set()
    needed: dict[str, str] = {}
    versions: dict[str, tuple[Version, str]] = {}
    cpu: dict[str, frozenset[str]] = {}
    for name, data in _libraries(wheel):
        found = elf.read(data)
        machines.add(found.machine)
        present |= {name, found.soname}
        needed |= dict.fromkeys(found.needed, name)
        for kind, version in _numbered(found.versions):
            versions[kind] = max(versions.get(kind, ((), "")), (version, name))
        if _CPU_LIBRARY.fullmatch(name) and found.machine == "x86_64":
            cpu[name] = _compiled_for(data)
    outside = {library: name for library, name in needed.items() if library not in present}
    return Inside(frozenset(machines), outside, versions, cpu)


def refusal(wheel: Path, target: Target, processor: Collection[str] = ()) -> str | None:
    """Return why a wheel cannot run on a target, in one line, or None if nothing is against it.

    `processor`: the flags of the target's processor, as /proc/cpuinfo names them; empty if they are not known.
    """
    try:
        if not fits(wheel.name, target):
            return f"{wheel.name}: its tag does not fit {target.machine}: give a wheel for this target"
        why = _problem(look_into(wheel), target, processor)
    except (OSError, ValueError, zipfile.BadZipFile) as exc:
        return f"{wheel.name}: cannot be read as a wheel ({exc}): download or build it again"
    except UsageError as exc:  # the name of the file is not that of a wheel
        return str(exc)
    return f"{wheel.name}: {why}" if why else None


def remarks(wheel: Path) -> list[str]:
    """Return what the owner of a wheel should know, a line each: what it needs that most machines have, but not all.

    Raises OSError or ValueError if the wheel is damaged.
    """
    inside = look_into(wheel)
    said = [
        f"{wheel.name}: needs {library} on the machine: {package}"
        for library, package in _USUAL.items()
        if library in inside.libraries
    ]
    if flags := inside.instructions() - {"pni", "ssse3"}:  # every x86-64 processor since 2008 has these
        said.append(f"{wheel.name}: runs only on processors with {', '.join(sorted(flags))}, and stops on others")
    return said


def _libraries(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the file name and the bytes of every ELF library in a wheel, one at a time."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename.rpartition("/")[2]
            if ".so" not in name:
                continue
            data = archive.read(entry)
            if data.startswith(elf.MAGIC):
                yield name, data


def _numbered(versions: Collection[str]) -> Iterator[tuple[str, Version]]:
    """Yield the set and the number of each symbol version: ("GLIBC", (2, 34))."""
    for each in versions:
        # This mark has no number. glibc has it since 2.36.
        found = re.fullmatch(r"([A-Z]+)_(\d+(?:\.\d+)*)", each.replace("GLIBC_ABI_DT_RELR", "GLIBC_2.36"))
        if found is not None:
            yield found[1], tuple(int(part) for part in found[2].split("."))


def _compiled_for(data: bytes) -> frozenset[str]:
    """Return the instructions whose function in this CPU library returns 1."""
    functions = elf.code(data, frozenset(_INSTRUCTIONS), 16)
    return frozenset(_INSTRUCTIONS[name] for name, code in functions.items() if _RETURNS_ONE.match(code))


def _problem(inside: Inside, target: Target, processor: Collection[str]) -> str | None:
    """Return the first thing that the libraries need and the target lacks."""
    if target.glibc is None:
        return None  # only libraries of Linux are read
    machine = "aarch64" if target.platform.endswith("_aarch64") else "x86_64"
    if other := inside.machines - {machine}:
        return f"its libraries are for {', '.join(sorted(other))}, and the target is {machine}"
    runtime = {"GLIBC": target.glibc, **_RUNTIMES[max(glibc for glibc in _RUNTIMES if glibc <= target.glibc)]}
    kinds = sorted(inside.versions, key=lambda kind: kind != "GLIBC")  # glibc first: people know that name
    for kind in kinds:
        number, library = inside.versions[kind]
        if kind in runtime and number > runtime[kind]:
            needs, has = (".".join(map(str, each)) for each in (number, runtime[kind]))
            return (
                f"{library} needs {kind}_{needs}, and {target.platform} has {kind}_{has} at most: choose a target with "
                "a newer glibc, or give a wheel that is built for an older one"
            )
    for library, user in inside.libraries.items():
        if _CUDA.fullmatch(library) and any(each.startswith("cuda") for each in target.sets):
            continue
        if not _SYSTEM.fullmatch(library) and library not in _USUAL:
            return f"{user} needs {library}, which is not in the wheel, and not part of every Linux"
    if processor and (missing := inside.instructions() - set(processor)):
        return f"it is compiled for {', '.join(sorted(missing))}, which the target's processor does not have"
    return None

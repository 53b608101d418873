"""Reads what decides which binaries run here and whether Triton can compile: compiler, Python.h, C library, CPU level.

It reads files and starts no process.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# The flags in /proc/cpuinfo that each level of the x86-64 psABI adds. Linux calls SSE3 pni and LZCNT abm.
_LEVELS = (
    ("x86-64-v2", "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"),
    ("x86-64-v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("x86-64-v4", "avx512bw avx512cd avx512dq avx512f avx512vl"),
)
_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}  # one name for each, however the system spells it


def compiler() -> str:
    """Return the C compiler that Triton runs: $CC, else gcc, else clang. "" if there is none.

    Triton takes $CC as the name of one program, without arguments, and tries no other compiler if it is set.
    """
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    return next((name for name in names if shutil.which(name)), "")


def has_python_headers() -> bool:
    """Return whether Python.h is in the folder in which Triton looks for it."""
    scheme = sysconfig.get_default_scheme()
    if scheme == "posix_local":  # Debian's scheme for /usr/local, which has no headers
        scheme = "posix_prefix"
    return Path(sysconfig.get_path("include", scheme), "Python.h").is_file()


def glibc() -> str:
    """Return the version of glibc ("2.35"), "" if the system has another C library."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return ""
    try:
        answer = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except OSError:  # musl has the name in its headers and gives no answer
        return ""
    return answer.removeprefix("glibc ") if answer.startswith("glibc ") else ""


def cpu_level(cpuinfo: Path = CPUINFO) -> str:
    """Return the x86-64 instruction set level, from "x86-64-v1" to "x86-64-v4". "" if the CPU is another or unknown."""
    if architecture() != "x86_64":
        return ""
    flags = _flags(cpuinfo)
    if not flags:
        return ""
    level = "x86-64-v1"
    for name, added in _LEVELS:
        if not flags.issuperset(added.split()):
            break
        level = name
    return level


def system() -> str:
    """Return "linux", "darwin" or "windows"."""
    return platform.system().lower()


def architecture() -> str:
    """Return "x86_64", "arm64", or the system's own name of another architecture."""
    name = platform.machine().lower()
    return _ARCHITECTURES.get(name, name)


def python() -> str:
    """Return the version of Python without its last part: "3.12"."""
    return ".".join(platform.python_version_tuple()[:2])


def _flags(cpuinfo: Path) -> set[str]:
    """Return the flags of the first processor. All processors of a machine have the same ones."""
    try:
        with cpuinfo.open() as lines:
            for line in lines:
                name, _, flags = line.partition(":")
                if name.strip() == "flags":
                    return set(flags.split())
    except OSError:
        pass  # not Linux: there is no such file
    return set()

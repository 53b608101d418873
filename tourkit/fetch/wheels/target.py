"""Targets: the machine that wheels are for, and the sets of packages for it. This module runs nothing."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tourkit.errors import UsageError
from tourkit.hardware.machine import Hardware
from tourkit.manifest.validation import did_you_mean
from tourkit.stacks import STACKS

if TYPE_CHECKING:
    from packaging.tags import Tag

OLDEST_GLIBC = (2, 31)  # of llguidance, which every set needs
_OLDEST_PYTHON = 11
_NEWEST_OF_UV = 40  # the newest glibc 2.X that uv knows a platform for
_LEGACY = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}  # PEP 600
_FORM = "cp312-manylinux_2_31_x86_64, cp312-macosx_14_0_arm64, cp312-win_amd64 or here, with :SET behind it"
_PYTHON = re.compile(r"cp3(\d{1,2})")
_LINUX = re.compile(r"manylinux_(\d+)_(\d+)_(x86_64|aarch64)")
_MACOS = re.compile(r"macosx_(\d+)_(\d+)_(arm64|x86_64)")
_WINDOWS = re.compile(r"win_(amd64|arm64)")
_MACOS_OF_FILES = "14.0"  # a machine file does not have the version of macOS
# Tags of wheels name the processor as the system does. A machine file has one name for each processor.
_ARCHITECTURES = {("linux", "arm64"): "aarch64", ("windows", "x86_64"): "amd64"}
DEFAULT_SET = "cpu"

# A set of packages and the stack that it installs.
SETS = {name: stack for stack, row in STACKS.items() for name in row.wheel_sets}


@dataclass(frozen=True, slots=True)
class Target:
    """One machine to install on and what to install: `python` such as "cp312", `platform` such as "win_amd64"."""

    python: str
    platform: str
    sets: tuple[str, ...]  # sorted

    @property
    def machine(self) -> str:
        return f"{self.python}-{self.platform}"

    @property
    def name(self) -> str:
        """Its name in file names: the machine and the sets."""
        return f"{self.machine}-{'+'.join(self.sets)}"

    @property
    def version(self) -> tuple[int, int]:
        return 3, int(self.python.removeprefix("cp3"))

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The oldest glibc that its wheels may need; None if it is not a Linux machine."""
        match = _LINUX.fullmatch(self.platform)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of tourkit that the sets install."""
        return tuple(sorted({STACKS[SETS[name]].extra for name in self.sets}))

    def __str__(self) -> str:
        return f"{self.machine}:{'+'.join(self.sets)}"


def parse_target(text: str, machine_file: Hardware | None = None) -> Target:
    """Return the target that a text such as "cp312-win_amd64:cpu+onnx" or "here" names.

    `machine_file`: the machine that "here" names instead of this one. Raises UsageError for a text that names none, and
    for a machine or a set that has no wheels.
    """
    machine, _, named = text.partition(":")
    sets = sets_of(text, named or DEFAULT_SET)
    if machine == "here":
        return here(sets) if machine_file is None else of_machine(machine_file, sets)
    python, _, system = machine.partition("-")
    for legacy, (major, minor) in _LEGACY.items():
        system = system.replace(f"{legacy}_", f"manylinux_{major}_{minor}_")
    return checked(python, system, sets)


def sets_of(where: str, named: str) -> tuple[str, ...]:
    """Return the sets of a text such as "cpu+onnx", sorted. `where` begins the message of the UsageError."""
    sets = sorted(set(named.split("+")))
    for name in sets:
        if name not in SETS:
            raise UsageError(f"{where}: no set {name!r}: {did_you_mean(name, SETS)}")
    return tuple(sets)


def here(sets: tuple[str, ...]) -> Target:
    """Return the target of this Python on this machine. Raises UsageError if there are no wheels for it."""
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    glibc = platform.libc_ver()[1] if platform.libc_ver()[0] == "glibc" else None
    return target_of(python, platform.system(), platform.machine(), sets, glibc=glibc, macos=platform.mac_ver()[0])


def of_machine(machine: Hardware, sets: tuple[str, ...]) -> Target:
    """Return the target of a machine that a file describes. Raises UsageError if the file does not say enough."""
    if not (machine.python and machine.system and machine.arch):
        fix = "make the file with `tourkit doctor --json` on that machine"
        raise UsageError(f"the machine file names no python, system and arch: {fix}")
    python = f"cp{machine.python.replace('.', '')}"
    system = {"linux": "Linux", "darwin": "Darwin"}.get(machine.system, machine.system)
    arch = arch_of(machine)
    return target_of(python, system, arch, sets, glibc=machine.glibc or None, macos=_MACOS_OF_FILES)


def arch_of(machine: Hardware) -> str:
    """Return the machine's processor as the tags of wheels name it on its system."""
    return _ARCHITECTURES.get((machine.system, machine.arch), machine.arch)


def target_of(
    python: str, system: str, arch: str, sets: tuple[str, ...], *, glibc: str | None = None, macos: str = ""
) -> Target:
    """Return the target of a machine by what Python's `platform` says of it.

    `glibc` and `macos`: versions such as "2.36" and "14.5". Raises UsageError if there are no wheels for it.
    """
    if system == "Linux":
        if glibc is None:
            raise UsageError(f"{python} on {arch}: no glibc, it is perhaps musl: use a system with glibc 2.31 or newer")
        major, minor = (int(part) for part in glibc.split(".")[:2])
        return checked(python, f"manylinux_{major}_{minor}_{arch}", sets)
    if system == "Darwin":
        major, minor = (int(part) for part in f"{macos}.0".split(".")[:2])
        return checked(python, f"macosx_{major}_{minor if major < 11 else 0}_{arch}", sets)
    return checked(python, f"win_{arch.lower()}", sets)


def checked(python: str, system: str, sets: tuple[str, ...]) -> Target:
    """Return the target, or raise UsageError if there are no wheels for it."""
    name = f"{python}-{system}".removesuffix("-")
    version = _PYTHON.fullmatch(python)
    if version is None or not any(form.fullmatch(system) for form in (_LINUX, _MACOS, _WINDOWS)):
        raise UsageError(f"{name!r} is no target: write it like {_FORM}")
    if int(version[1]) < _OLDEST_PYTHON:
        raise UsageError(
            f"{name}: tourkit needs Python 3.{_OLDEST_PYTHON} or newer: choose cp3{_OLDEST_PYTHON} or newer"
        )
    target = Target(python, system, sets)
    if target.glibc is not None and target.glibc < OLDEST_GLIBC:
        found, needed = (".".join(map(str, each)) for each in (target.glibc, OLDEST_GLIBC))
        fix = f"choose manylinux_{'_'.join(map(str, OLDEST_GLIBC))} and use a system with that glibc or a newer one"
        raise UsageError(f"{name}: glibc {found} is too old, llguidance has no wheel for less than {needed}: {fix}")
    for each in sets:
        if (each.startswith("cuda-") and _MACOS.fullmatch(system)) or (SETS[each] == "vllm" and target.glibc is None):
            raise UsageError(
                f"{name}: there is no set {each} for this system: choose another set, such as {DEFAULT_SET}"
            )
    return target


def uv_platform(target: Target) -> tuple[str, dict[str, str]]:
    """Return uv's name of the platform, and the environment variables that uv reads for it."""
    if match := _LINUX.fullmatch(target.platform):
        return f"{match[3]}-manylinux_{match[1]}_{min(int(match[2]), _NEWEST_OF_UV)}", {}
    if match := _MACOS.fullmatch(target.platform):
        arch = {"arm64": "aarch64"}.get(match[3], match[3])
        return f"{arch}-apple-darwin", {"MACOSX_DEPLOYMENT_TARGET": f"{match[1]}.{match[2]}"}
    arch = "aarch64" if target.platform == "win_arm64" else "x86_64"
    return f"{arch}-pc-windows-msvc", {}


@cache
def tags_of(target: Target) -> dict[Tag, int]:
    """Return the tags of wheels that pip installs on the target, with their rank: 0 is the best."""
    from packaging.tags import compatible_tags, cpython_tags

    platforms = list(_platforms(target.platform))
    specific = cpython_tags(target.version, [target.python], platforms)
    tags = [*specific, *compatible_tags(target.version, target.python, platforms)]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def rank(wheel_name: str, target: Target) -> int | None:
    """Return how well a wheel fits the target by its file name: 0 is the best, None if it does not fit.

    Raises UsageError for a name that no wheel has.
    """
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        tags = parse_wheel_filename(wheel_name)[3]
    except InvalidWheelFilename as exc:
        raise UsageError(f"{wheel_name}: not the name of a wheel ({exc}): give the file the name it had") from exc
    known = tags_of(target)
    return min((known[tag] for tag in tags if tag in known), default=None)


def fits(wheel_name: str, target: Target) -> bool:
    """Return whether pip installs a wheel of this file name on the target. Raises UsageError for a bad name."""
    return rank(wheel_name, target) is not None


def _platforms(system: str) -> Iterator[str]:
    """Yield the platform tags that a machine accepts, the best first."""
    from packaging.tags import mac_platforms

    if match := _MACOS.fullmatch(system):
        yield from mac_platforms((int(match[1]), int(match[2])), match[3])
        return
    match = _LINUX.fullmatch(system)
    if match is None:
        yield system
        return
    major, newest, arch = int(match[1]), int(match[2]), match[3]
    names = {version: name for name, version in _LEGACY.items()}
    for minor in range(newest, 4, -1):
        yield f"manylinux_{major}_{minor}_{arch}"
        if (major, minor) in names:
            yield f"{names[major, minor]}_{arch}"
    yield f"linux_{arch}"

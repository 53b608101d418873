"""Checks whether the wheels of a bundle can be installed on this machine. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.hardware.machine import Hardware

_WHAT = "wheels"
_LIST = re.compile(r"wheels/(?P<python>cp\d+)-(?P<platform>[^-/]+)-(?P<sets>[^/]+)\.txt")
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")
_MACOS = re.compile(r"macosx_(\d+)_(\d+)_(\w+)")
# Tags of wheels name the processor as the system does. A machine file has one name for each processor.
_ARCHITECTURES = {("linux", "arm64"): "aarch64", ("windows", "x86_64"): "amd64"}
_COLLECT = "on a connected machine run `tourkit wheels {} --bundle DIR`"


@dataclass(frozen=True, slots=True)
class WheelList:
    """One list of a bundle. `python`: "cp312". `platform`: the platform tag. `sets`: "cpu", "cuda-llama+onnx", …"""

    python: str
    platform: str
    sets: str

    @property
    def target(self) -> str:
        return f"{self.python}-{self.platform}"


def lists_of(paths: Iterable[str]) -> tuple[WheelList, ...]:
    """Return the wheel lists among the paths of an index."""
    return tuple(WheelList(**found.groupdict()) for path in paths if (found := _LIST.fullmatch(path)))


def findings(lists: Iterable[WheelList], hardware: Hardware) -> Iterator[Finding]:
    """Yield whether the wheels fit this machine, and whether they use its GPU.

    Wheels that do not fit are a failure only if no stack is installed: else they are not needed here.
    """
    lists = tuple(lists)
    bad = warning if hardware.stacks else failure
    collect = _COLLECT.format(wanted_target(hardware) or "TARGET")
    refusals = {each.target: refusal(each, hardware) for each in lists}
    fitting = [each for each in lists if not refusals[each.target]]
    if not lists:
        yield bad(_WHAT, "the bundle has none, so it cannot install anything", collect)
    elif not fitting:
        why = "; ".join(f"{target}: {reason}" for target, reason in sorted(refusals.items()))
        yield bad(_WHAT, f"none fit this machine ({why})", collect)
    else:
        names = ", ".join(sorted(f"{each.target} {each.sets}" for each in fitting))
        yield ok(_WHAT, f"{names} fit this machine")
        cuda = any(gpu.runtime == "cuda" for gpu in hardware.gpus)
        if cuda and not any("cuda" in each.sets for each in fitting):
            fix = _COLLECT.format(f"{fitting[0].target}:cuda-llama")
            yield warning(_WHAT, "none of them uses the GPU of this machine", fix)


def refusal(wheels: WheelList, hardware: Hardware) -> str:
    """Return why wheels of this list cannot be installed on the machine; "" if they can."""
    if hardware.python and wheels.python != _python(hardware):
        return f"this is Python {hardware.python}"
    if manylinux := _MANYLINUX.fullmatch(wheels.platform):
        return _linux_refusal((int(manylinux[1]), int(manylinux[2])), manylinux[3], hardware)
    if macos := _MACOS.fullmatch(wheels.platform):
        same = hardware.system == "darwin" and macos[3] == _arch(hardware)
        return "" if same else f"this is {_named(hardware)}"
    is_windows = hardware.system == "windows" and wheels.platform == f"win_{_arch(hardware)}"
    return "" if is_windows else f"this is {_named(hardware)}"


def wanted_target(hardware: Hardware) -> str:
    """Return the target of this machine as `tourkit wheels` takes it; "" if none is known for its system."""
    if hardware.system == "linux" and hardware.glibc and hardware.python:
        return f"{_python(hardware)}-manylinux_2_31_{_arch(hardware)}"
    return ""


def _linux_refusal(lowest: tuple[int, int], arch: str, hardware: Hardware) -> str:
    if hardware.system != "linux" or arch != _arch(hardware):
        return f"this is {_named(hardware)}"
    if not hardware.glibc:
        return "this system has no glibc"
    if tuple(map(int, hardware.glibc.split(".")[:2])) < lowest:
        return f"this is glibc {hardware.glibc}"
    return ""


def _python(hardware: Hardware) -> str:
    return "cp" + hardware.python.replace(".", "")


def _arch(hardware: Hardware) -> str:
    return _ARCHITECTURES.get((hardware.system, hardware.arch), hardware.arch)


def _named(hardware: Hardware) -> str:
    return f"{hardware.system} {hardware.arch}"

"""Checks whether the wheels of a bundle can be installed on this machine. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.errors import UsageError
from tourkit.fetch.wheels.target import OLDEST_GLIBC, Target, arch_of, parse_target
from tourkit.hardware.machine import Hardware

_WHAT = "wheels"
_LIST = re.compile(r"wheels/(cp\d+-[^-/]+)-([^/]+)\.txt")
_COLLECT = "on a connected machine run `tourkit wheels {} --bundle DIR`"


def targets_of(paths: Iterable[str]) -> Iterator[Target]:
    """Yield the target of each wheel list among the paths of an index."""
    for path in paths:
        if found := _LIST.fullmatch(path):
            try:
                yield parse_target(f"{found[1]}:{found[2]}")
            except UsageError:
                continue  # a list of a newer tourkit, with a set or a system that this one does not know


def findings(targets: Iterable[Target], hardware: Hardware) -> Iterator[Finding]:
    """Yield whether the wheels fit this machine, and whether they use its GPU.

    Wheels that do not fit are a failure only if no stack is installed: else they are not needed here.
    """
    targets = tuple(targets)
    bad = warning if hardware.stacks else failure
    collect = _COLLECT.format(wanted_target(hardware) or "TARGET")
    refusals = {target.machine: refusal(target, hardware) for target in targets}
    fitting = [target for target in targets if not refusals[target.machine]]
    if not targets:
        yield bad(_WHAT, "the bundle has none, so it cannot install anything", collect)
    elif not fitting:
        why = "; ".join(f"{machine}: {reason}" for machine, reason in sorted(refusals.items()))
        yield bad(_WHAT, f"none fit this machine ({why})", collect)
    else:
        yield ok(_WHAT, f"{', '.join(sorted(map(str, fitting)))} fit this machine")
        cuda = any(gpu.runtime == "cuda" for gpu in hardware.gpus)
        if cuda and not any("cuda-" in name for target in fitting for name in target.sets):
            fix = _COLLECT.format(f"{fitting[0].machine}:cuda-llama")
            yield warning(_WHAT, "none of them uses the GPU of this machine", fix)


def refusal(target: Target, hardware: Hardware) -> str:
    """Return why wheels for a target cannot be installed on the machine; "" if they can."""
    if hardware.python and target.python != _python(hardware):
        return f"this is Python {hardware.python}"
    system = {"man": "linux", "mac": "darwin", "win": "windows"}[target.platform[:3]]
    if system != hardware.system or not target.platform.endswith(f"_{arch_of(hardware)}"):
        return f"this is {hardware.system} {hardware.arch}"
    if target.glibc is not None and not hardware.glibc:
        return "this system has no glibc"
    if target.glibc is not None and tuple(map(int, hardware.glibc.split(".")[:2])) < target.glibc:
        return f"this is glibc {hardware.glibc}"
    return ""


def wanted_target(hardware: Hardware) -> str:
    """Return the target of this machine as `tourkit wheels` takes it; "" if none is known for its system."""
    if hardware.system == "linux" and hardware.glibc and hardware.python:
        return f"{_python(hardware)}-manylinux_{'_'.join(map(str, OLDEST_GLIBC))}_{arch_of(hardware)}"
    return ""


def _python(hardware: Hardware) -> str:
    return "cp" + hardware.python.replace(".", "")

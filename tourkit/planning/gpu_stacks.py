"""Whether a stack can use the GPUs of a described machine, and if not, why and with which fix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.stacks import STACKS

_RELEASES = {12: "R525", 13: "R580"}  # by CUDA's major version: the first driver that runs all its minor versions


def usable_gpus(stack: InstalledStack, hardware: Hardware) -> tuple[Gpu, ...]:
    """Return the GPUs that the stack is built for."""
    return tuple(gpu for gpu in hardware.gpus if stack.runtime in (gpu.runtime, "vulkan"))


def gpu_refusal(stack: InstalledStack, hardware: Hardware) -> str:
    """Return why a stack cannot use the machine's GPUs, with the fix; "" if it can, or if there is no GPU."""
    if not hardware.gpus:
        return ""
    if stack.problem:
        return stack.problem
    if not usable_gpus(stack, hardware):
        return _not_built_for(stack, hardware.gpus[0].runtime)
    return "; ".join(why for why in (_old_driver(stack, hardware), _cannot_compile(stack, hardware)) if why)


def unused_gpus(hardware: Hardware, formats: Iterable[str]) -> Iterator[str]:
    """Yield a line for each stack that loads one of the `formats` and cannot use the GPUs that are there."""
    wanted = set(formats)
    for stack in hardware.stacks:
        traits = STACKS[stack.name]
        if traits.uses_gpu and traits.format in wanted and (why := gpu_refusal(stack, hardware)):
            names = ", ".join(dict.fromkeys(gpu.name for gpu in hardware.gpus))
            yield f"WARNING: {stack.name} does not use the GPU ({names}): {why}"


def _not_built_for(stack: InstalledStack, runtime: str) -> str:
    named = f"{stack.name} {stack.version}".rstrip()
    fix = STACKS[stack.name].gpu_build if runtime == "cuda" else f"install a build for {runtime}"
    return f"{named} is built for {stack.gpu}: {fix}" if stack.gpu else f"{named} is built for the CPU only: {fix}"


def _old_driver(stack: InstalledStack, hardware: Hardware) -> str:
    """Compare the major versions of CUDA: a driver runs every minor version of its own major version and older ones."""
    built = stack.gpu.partition(" ")[2]
    needed, offered = _major(built), _major(hardware.driver)
    if stack.runtime != "cuda" or not needed or not offered or needed <= offered:
        return ""
    newer = f"to {_RELEASES[needed]} or newer" if needed in _RELEASES else f"to one for CUDA {needed}"
    return (
        f"{stack.name} is built for CUDA {built}, and the driver runs CUDA {hardware.driver}: "
        f"update the driver {newer}, or install a build for CUDA {offered}"
    )


def _major(version: str) -> int:
    """Return the first number of a version, 0 if there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def _cannot_compile(stack: InstalledStack, hardware: Hardware) -> str:
    if not STACKS[stack.name].compiles_on_gpu:
        return ""
    parts = (
        ("C compiler", "gcc", not hardware.compiler),
        ("Python.h", f"the package python{hardware.python or '3'}-dev", not hardware.python_headers),
    )
    lacking = [part for part, _, is_missing in parts if is_missing]
    fixes = [fix for _, fix, is_missing in parts if is_missing]
    if not lacking:
        return ""
    found = f"{stack.name} compiles code for the GPU and finds no {' and no '.join(lacking)}"
    return f"{found}: install {' and '.join(fixes)}"

"""Findings on the hardware and on the installed stacks. Pure: reads nothing but its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tourkit.checks.findings import Finding, Status, failure, of_message, ok, warning
from tourkit.checks.stack_trial import Trial
from tourkit.fetch.wheels.target import OLDEST_GLIBC
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.planning.gpu_stacks import gpu_refusal
from tourkit.stacks import STACKS
from tourkit.units import counted, size_text

_OTHER_SYSTEM = "use a Linux with glibc 2.31 or newer (Ubuntu 20.04, Debian 11 or later), or a container of one"


def hardware_findings(hardware: Hardware) -> Iterator[Finding]:
    """Yield a finding for system, processor, memory, each GPU, each device that failed, and the compiler."""
    yield _system(hardware)
    about = ", ".join(filter(None, (counted(hardware.threads, "thread"), hardware.cpu)))
    yield ok("processor", about)
    free = "" if hardware.ram_free is None else f", {size_text(hardware.ram_free)} free"
    yield ok("memory", f"{size_text(hardware.ram)} of RAM{free}")
    if hardware.bandwidth:
        yield ok(
            "memory speed",
            ", ".join(f"{each.rate / 1e9:.1f} GB/s of {size_text(each.size)}" for each in hardware.bandwidth),
        )
    for gpu in hardware.gpus:
        yield ok("GPU", _gpu(gpu, hardware.driver))
    for problem in hardware.problems:
        yield of_message(Status.WARNING, "GPU", problem)
    if not hardware.gpus and not hardware.problems:
        yield ok("GPU", "none; models run on the CPU")
    yield _compiler(hardware)


def stack_findings(hardware: Hardware, trials: Mapping[str, Trial]) -> Iterator[Finding]:
    """Yield a finding for each installed stack. `trials`: what happened when each was imported, by its name."""
    if not hardware.stacks:
        fix = "run `sh install.sh` of the bundle, or install tourkit[llama]"
        yield failure("stacks", "none is installed, so no model can be loaded", fix)
    for stack in hardware.stacks:
        yield _stack(stack, hardware, trials.get(stack.name, Trial()))


def _system(hardware: Hardware) -> Finding:
    names = " ".join(filter(None, (hardware.system, hardware.arch)))
    python = f", Python {hardware.python}" if hardware.python else ""
    if hardware.system != "linux":
        return ok("system", f"{names}{python}")
    if not hardware.glibc:
        return warning("system", f"{names} without glibc (musl?){python}: few wheels can be installed", _OTHER_SYSTEM)
    said = f"{names}, glibc {hardware.glibc}{python}"
    if tuple(map(int, hardware.glibc.split(".")[:2])) < OLDEST_GLIBC:
        return warning("system", f"{said}: too old for the wheels of a bundle", _OTHER_SYSTEM)
    return ok("system", said)


def _gpu(gpu: Gpu, driver: str) -> str:
    parts = [f"{gpu.name} ({gpu.runtime})", f"{size_text(gpu.free)} of {size_text(gpu.total)} free"]
    if gpu.capability is not None:
        parts.append("compute capability {}.{}".format(*gpu.capability))
    if gpu.mig:
        parts.append("a MIG slice")
    if gpu.runtime == "cuda" and driver:
        parts.append(f"driver for CUDA {driver}")
    return ", ".join(parts)


def _compiler(hardware: Hardware) -> Finding:
    """Return a warning only if an installed stack compiles, which some do on a GPU."""
    said = hardware.compiler or "none"
    headers = "with Python.h" if hardware.python_headers else "no Python.h"
    needs = [stack.name for stack in hardware.stacks if stack.gpu and STACKS[stack.name].compiles_on_gpu]
    if not (needs and hardware.gpus) or (hardware.compiler and hardware.python_headers):
        return ok("compiler", f"{said}, {headers}" + ("" if needs else "; no installed stack needs one"))
    fix = "install gcc and the headers of this Python (Debian: `apt install gcc python3-dev`), or use llama_cpp"
    return warning("compiler", f"{said}, {headers}; {needs[0]} needs both on a GPU", fix)


def _stack(stack: InstalledStack, hardware: Hardware, trial: Trial) -> Finding:
    what = f"stack {stack.name}"
    if trial.error:
        return of_message(Status.FAILURE, what, trial.error)
    uses_gpu = STACKS[stack.name].uses_gpu
    if why := gpu_refusal(stack, hardware) if uses_gpu else stack.problem:
        return of_message(Status.WARNING, what, why)
    if hardware.gpus and uses_gpu and trial.finds_gpu is False:
        detail = f"{stack.version} is built for {stack.gpu} and finds no GPU".strip()
        return warning(what, detail, "compare the driver with the build; `nvidia-smi` shows the driver's CUDA version")
    where = f"with {stack.gpu}" if stack.gpu and hardware.gpus else "on the CPU"
    return ok(what, f"{stack.version} {where}".strip())

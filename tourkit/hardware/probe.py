"""Reads what this machine offers: processors and memory within the cgroups' limits, GPUs, and stacks.

A short process of its own (gpu_probe.py) asks the libraries of GPUs and stacks, so that no library and no GPU context
stays in this process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tourkit.hardware import toolchain
from tourkit.hardware.cgroups import Files, granted_threads, memory_in_use, memory_limit
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.stacks import STACKS

_GPU_PROBE = str(Path(__file__).with_name("gpu_probe.py"))
_GPU_PROBE_SECONDS = 90.0  # a driver that hangs must not hang the command; one that wakes up may need a minute


def probe(
    cgroup: Path = Files.cgroup,
    meminfo: Path = Files.meminfo,
    membership: Path = Files.membership,
    *,
    gpu_probe: Sequence[str] = (sys.executable, "-P", _GPU_PROBE),
) -> Hardware:
    """Return what this machine offers. The paths and the command are parameters so that tests can replace them."""
    files = Files(cgroup, meminfo, membership)
    driver, gpus, problems = gpus_of(ask([*gpu_probe, "devices"]))
    total = min(size for size in (_total_memory(meminfo), memory_limit(files)) if size > 0)
    free = [size for size in (_meminfo(meminfo, "MemAvailable"), total - memory_in_use(files)) if size > 0]
    return Hardware(
        threads=granted_threads(files),
        ram=total,
        ram_free=min(free, default=total),
        gpus=gpus,
        stacks=_stacks(gpu_probe if gpus else ()),
        problems=problems,
        driver=driver,
        compiler=toolchain.compiler(),
        python_headers=toolchain.has_python_headers(),
        glibc=toolchain.glibc(),
        cpu=toolchain.cpu_level(),
        system=toolchain.system(),
        arch=toolchain.architecture(),
        python=toolchain.python(),
    )


def imagined(
    here: Hardware,
    *,
    vram: int | None = None,
    ram: int | None = None,
    threads: int | None = None,
    stacks: Sequence[str] = (),
) -> Hardware:
    """Return another machine: `vram` bytes of one GPU (0 for none), `ram` bytes, `threads`, `stacks` by name.

    What is None or empty is as here. Stacks that can use a GPU are assumed to use this one, whatever they use here:
    driver, C compiler and Python.h are assumed to be right. A stack that is not installed here is assumed to be built
    for the first GPU.
    """
    made = here
    if ram is not None:
        made = replace(made, ram=ram, ram_free=None)
    if threads is not None:
        made = replace(made, threads=threads)
    if stacks:
        installed = {stack.name: stack for stack in here.stacks}
        runtime = made.gpus[0].runtime if made.gpus else ""
        asked = {name: InstalledStack(name, gpu=runtime if STACKS[name].uses_gpu else "") for name in stacks}
        made = replace(made, stacks=tuple(installed.get(name, stack) for name, stack in asked.items()))
    if vram == 0:
        made = replace(made, gpus=())
    elif vram is not None:
        gpu = Gpu("0", "requested GPU", "cuda", vram, vram)
        able = tuple(
            replace(stack, gpu="cuda", problem="") if STACKS[stack.name].uses_gpu else stack for stack in made.stacks
        )
        made = replace(made, gpus=(gpu,), stacks=able, driver="", compiler=made.compiler or "cc", python_headers=True)
    return made


def gpus_of(answer: dict[str, Any]) -> tuple[str, tuple[Gpu, ...], tuple[str, ...]]:
    """Return the driver's CUDA version, the GPUs, and what failed, from the answer of `gpu_probe.py devices`."""
    if "failed" in answer:
        return "", (), (f"GPUs: {answer['failed']}: no GPU is used; check them with `nvidia-smi`",)
    gpus = tuple(
        Gpu(
            id=device["id"],
            name=device["name"],
            runtime=device["runtime"],
            total=device["total"],
            free=device["free"],
            capability=tuple(device["capability"]) if device.get("capability") else None,
            mig=device.get("mig", False),
        )
        for device in answer["devices"]
    )
    return answer["driver"], gpus, tuple(answer["problems"])


def _stacks(command: Sequence[str]) -> tuple[InstalledStack, ...]:
    """Return every stack whose modules are installed. `command` asks them about GPUs; empty if there is no GPU.

    Each is asked in a process of its own: a library that crashes hides no other stack.
    """
    found = [stack for name in STACKS if (stack := _installed(name)) is not None]
    if not command:
        return tuple(found)
    return tuple(
        with_gpu(stack, ask([*command, "stack", stack.name])) if STACKS[stack.name].uses_gpu else stack
        for stack in found
    )


def with_gpu(stack: InstalledStack, answer: dict[str, Any]) -> InstalledStack:
    """Return a stack with what `gpu_probe.py stack NAME` answered. A failed probe is the stack's problem."""
    if "failed" in answer:
        fix = "reinstall it, or choose other stacks with --stack"
        return replace(stack, problem=f"cannot be asked whether it uses the GPU ({answer['failed']}): {fix}")
    return replace(stack, gpu=answer["gpu"], problem=answer["problem"])


def _installed(name: str) -> InstalledStack | None:
    stack = STACKS[name]
    if not all(importlib.util.find_spec(module) for module in stack.modules):
        return None
    version = next((version for dist in stack.distributions if (version := _version(dist))), "")
    quantised = importlib.util.find_spec("bitsandbytes") is not None
    return InstalledStack(name, version, cpu=runs_on_cpu(name), bitsandbytes=quantised)


def runs_on_cpu(name: str) -> bool:
    """Return whether the installed build of a stack runs without a GPU. Its version shows this without an import."""
    stack = STACKS[name]
    if not stack.separate_cpu_build:
        return True
    versions = {dist: _version(dist) for dist in stack.distributions}
    return any("cpu" in dist + version for dist, version in versions.items() if version)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def ask(command: list[str]) -> dict[str, Any]:
    """Return the JSON object that a probe prints, or {"failed": why there is none}."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_PROBE_SECONDS, check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"failed": f"the probe gave no answer in {_GPU_PROBE_SECONDS:.0f} s"}
    except OSError as exc:
        return {"failed": f"the probe did not start ({exc})"}
    except json.JSONDecodeError:
        why = done.stderr.strip().splitlines()[-1:] or [_end(done.returncode)]
        return {"failed": f"the probe failed: {why[0]}"}
    return answer


def _end(code: int) -> str:
    """Return how a process ended without a word: by a signal, such as SIGILL in code for another CPU, or by itself."""
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"exit code {code}"


def _total_memory(meminfo: Path) -> int:
    if total := _meminfo(meminfo, "MemTotal"):
        return total
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30  # this system does not report it: a modest guess


def _meminfo(path: Path, wanted: str) -> int:
    """Return a line of /proc/meminfo in bytes, 0 if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) * 1024
    return 0

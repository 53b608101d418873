"""What this machine grants: processors and memory as the cgroup allows them, not as the host has them; GPUs; stacks.

The libraries of GPUs and stacks are asked in a short process of their own (gpu_probe.py), so that neither a library
nor a GPU's context stays in this one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tourkit.hardware.cgroups import Files, granted_threads, memory_in_use, memory_limit
from tourkit.stacks import STACKS

_GPU_PROBE = str(Path(__file__).with_name("gpu_probe.py"))
_GPU_PROBE_SECONDS = 30.0  # a driver that hangs must not hang the command


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or a MIG slice. `id` is what its runtime's own variable (CUDA_VISIBLE_DEVICES, …) takes; bytes."""

    id: str
    name: str
    runtime: str  # cuda, rocm or metal
    total: int
    free: int
    capability: tuple[int, int] | None = None  # CUDA's compute capability


@dataclass(frozen=True, slots=True)
class InstalledStack:
    """A stack that is installed. `gpu` says with which runtime it uses GPUs ("cuda 12.8"); "" for the CPU only."""

    name: str
    version: str = ""
    gpu: str = ""
    cpu: bool = True  # whether it runs without a GPU
    bitsandbytes: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """`threads` that may run at once, `ram` in bytes that may be used in all; `ram_free` None when nobody looked.

    `problems`: what was there but would not answer, one line each.
    """

    threads: int
    ram: int
    ram_free: int | None = None
    gpus: tuple[Gpu, ...] = ()
    stacks: tuple[InstalledStack, ...] = ()
    problems: tuple[str, ...] = ()


def probe(
    cgroup: Path = Files.cgroup,
    meminfo: Path = Files.meminfo,
    membership: Path = Files.membership,
    *,
    gpu_probe: Sequence[str] = (sys.executable, "-P", _GPU_PROBE),
) -> Hardware:
    """Look at this machine. The paths and the command are arguments so that copies can stand in for them."""
    files = Files(cgroup, meminfo, membership)
    gpus, problems = _gpus(gpu_probe)
    total = min(size for size in (_total_memory(meminfo), memory_limit(files)) if size > 0)
    free = [size for size in (_meminfo(meminfo, "MemAvailable"), total - memory_in_use(files)) if size > 0]
    return Hardware(
        threads=granted_threads(files),
        ram=total,
        ram_free=min(free, default=total),
        gpus=gpus,
        stacks=_stacks(gpu_probe if gpus else ()),
        problems=problems,
    )


def imagined(
    here: Hardware,
    *,
    vram: int | None = None,
    ram: int | None = None,
    threads: int | None = None,
    stacks: Sequence[str] = (),
) -> Hardware:
    """Another machine: `vram` bytes of one GPU (0 for none), `ram` bytes, `threads`, `stacks` by name.

    What is None or empty is as here. Every stack is taken to use the GPU asked for, whatever it can use here.
    """
    made = here
    if ram is not None:
        made = replace(made, ram=ram, ram_free=None)
    if threads is not None:
        made = replace(made, threads=threads)
    if stacks:
        installed = {stack.name: stack for stack in here.stacks}
        asked = dict.fromkeys(stacks)
        made = replace(made, stacks=tuple(installed.get(name, InstalledStack(name)) for name in asked))
    if vram == 0:
        made = replace(made, gpus=())
    elif vram is not None:
        gpu = Gpu("0", "GPU as asked for", "cuda", vram, vram)
        able = tuple(replace(stack, gpu="cuda" if STACKS[stack.name].uses_gpu else "") for stack in made.stacks)
        made = replace(made, gpus=(gpu,), stacks=able)
    return made


def _gpus(command: Sequence[str]) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Devices, and what would not answer. A probe that crashes is a problem to tell of, not an error."""
    answer = _ask([*command, "devices"])
    if "problem" in answer:
        return (), (f"GPUs: {answer['problem']}",)
    gpus = tuple(
        Gpu(
            id=device["id"],
            name=device["name"],
            runtime=device["runtime"],
            total=device["total"],
            free=device["free"],
            capability=tuple(device["capability"]) if device.get("capability") else None,
        )
        for device in answer["devices"]
    )
    return gpus, tuple(answer["problems"])


def _stacks(command: Sequence[str]) -> tuple[InstalledStack, ...]:
    """Every stack whose modules can be found. `command` asks them about GPUs; empty when there is none to use."""
    found = [stack for name in STACKS if (stack := _installed(name)) is not None]
    asked = [stack.name for stack in found if STACKS[stack.name].uses_gpu]
    if not command or not asked:
        return tuple(found)
    answer = _ask([*command, "stacks", *asked])
    return tuple(replace(stack, gpu=answer.get(stack.name, "")) for stack in found)


def _installed(name: str) -> InstalledStack | None:
    stack = STACKS[name]
    if not all(importlib.util.find_spec(module) for module in stack.modules):
        return None
    version = next((version for dist in stack.distributions if (version := _version(dist))), "")
    quantised = importlib.util.find_spec("bitsandbytes") is not None
    return InstalledStack(name, version, cpu=runs_on_cpu(name), bitsandbytes=quantised)


def runs_on_cpu(name: str) -> bool:
    """Whether the build of a stack that is installed runs without a GPU; told by its version, without importing it."""
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


def _ask(command: list[str]) -> dict[str, Any]:
    """The JSON object a probe prints, or {"problem": why there is none}."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_PROBE_SECONDS, check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return {"problem": f"the probe did not answer ({exc})"}
    except json.JSONDecodeError:
        why = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
        return {"problem": f"the probe broke: {why[0]}"}
    return answer


def _total_memory(meminfo: Path) -> int:
    if total := _meminfo(meminfo, "MemTotal"):
        return total
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30  # nothing on this system tells: a modest guess


def _meminfo(path: Path, wanted: str) -> int:
    """A line of /proc/meminfo in bytes; 0 where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name == wanted:
            return int(rest.split()[0]) * 1024
    return 0

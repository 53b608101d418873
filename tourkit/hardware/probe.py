"""Reads what this machine offers: processors and memory within the cgroups' limits, GPUs, and stacks.

A short process of its own (gpu_probe.py) asks the libraries of GPUs and stacks, so that no library and no GPU context
stays in this process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tourkit.hardware.cgroups import Files, granted_threads, memory_in_use, memory_limit
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.stacks import STACKS

_GPU_PROBE = str(Path(__file__).with_name("gpu_probe.py"))
_GPU_PROBE_SECONDS = 30.0  # a driver that hangs must not hang the command


def probe(
    cgroup: Path = Files.cgroup,
    meminfo: Path = Files.meminfo,
    membership: Path = Files.membership,
    *,
    gpu_probe: Sequence[str] = (sys.executable, "-P", _GPU_PROBE),
) -> Hardware:
    """Return what this machine offers. The paths and the command are parameters so that tests can replace them."""
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
    """Return another machine: `vram` bytes of one GPU (0 for none), `ram` bytes, `threads`, `stacks` by name.

    What is None or empty is as here. Stacks that can use a GPU are assumed to use this one, whatever they use here.
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
        gpu = Gpu("0", "requested GPU", "cuda", vram, vram)
        able = tuple(replace(stack, gpu="cuda" if STACKS[stack.name].uses_gpu else "") for stack in made.stacks)
        made = replace(made, gpus=(gpu,), stacks=able)
    return made


def _gpus(command: Sequence[str]) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Return the GPUs, and what failed. A probe that crashes is reported as a problem; nothing is raised."""
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
    """Return every stack whose modules are installed. `command` asks them about GPUs; empty if there is no GPU."""
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


def _ask(command: list[str]) -> dict[str, Any]:
    """Return the JSON object that a probe prints, or {"problem": why there is none}."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_PROBE_SECONDS, check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return {"problem": f"the probe did not answer ({exc})"}
    except json.JSONDecodeError:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"problem": f"the probe failed: {why[0]}"}
    return answer


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

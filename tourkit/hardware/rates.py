"""Measures what decides how fast a model runs on this machine: memory, llama.cpp's kernels, and a disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tourkit.hardware import bandwidth
from tourkit.hardware.disk import read_some
from tourkit.hardware.machine import Hardware, Kernel
from tourkit.hardware.probe import ask

_LLAMA_SPEED = str(Path(__file__).with_name("llama_speed.py"))
_TIMED = "llama_cpp"  # the stack whose kernels are timed


def with_rates(
    hardware: Hardware, weights: Path | None, *, llama_speed: Sequence[str] = (sys.executable, "-P", _LLAMA_SPEED)
) -> Hardware:
    """Return this machine with its rates. It takes about a second. Nothing else should run meanwhile.

    `weights`: a file on the disk from which models are loaded, None if there is none. `llama_speed`: the command of the
    process that times the kernels, a parameter so that tests can replace it. What cannot be measured stays unknown;
    why the kernels cannot be timed is in `problems`.
    """
    threads = hardware.threads
    hardware = replace(hardware, bandwidth=bandwidth.measured(threads, hardware.ram_free or hardware.ram))
    if any(stack.name == _TIMED for stack in hardware.stacks):
        hardware = _with_kernels(hardware, ask([*llama_speed, str(threads)]))
    return hardware if weights is None else replace(hardware, disk=_disk(weights))


def _with_kernels(hardware: Hardware, answer: dict[str, Any]) -> Hardware:
    if "failed" in answer:
        why = f"speed: llama.cpp's kernels cannot be timed ({answer['failed']}): run `tourkit doctor`"
        return replace(hardware, problems=(*hardware.problems, why))
    return replace(hardware, kernels=tuple(Kernel(**each) for each in answer["kernels"]))


def _disk(weights: Path) -> int | None:
    """Return bytes a second; None if the file cannot be read, or is empty."""
    try:
        return round(read_some(weights).rate) or None
    except OSError:  # the plan is about what is planned: `verify` and `doctor` say what is wrong with the file
        return None

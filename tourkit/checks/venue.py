"""What the machine at the venue has: memory, processors, Python. The rehearsal holds this machine to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tourkit.checks.findings import Finding, warning
from tourkit.errors import UsageError
from tourkit.hardware.machine import Hardware, InstalledStack
from tourkit.units import KIB, MIB, size_text


@dataclass(frozen=True, slots=True)
class Venue:
    """None and "" stand for what this machine has.

    `vram`: bytes of each GPU, 0 for no GPU. `ram`: bytes. `threads`: processors. `python`: the command or path of an
    interpreter. `machine`: the whole machine if somebody described it with `tourkit doctor --json`.
    """

    vram: int | None = None
    ram: int | None = None
    threads: int | None = None
    python: str = ""
    machine: Hardware | None = None


def venue(vram: int | None, ram: int | None, threads: int | None, python: str, machine: Hardware | None) -> Venue:
    """Return the venue of the options. What they leave open is as in the machine file. Raises UsageError."""
    if machine is not None:
        most = max((gpu.total for gpu in machine.gpus), default=0)
        vram = most if vram is None else vram
        ram = machine.ram if ram is None else ram
        threads = machine.threads if threads is None else threads
        python = python or machine.python
    if re.fullmatch(r"\d+(\.\d+)*", python):
        if not re.fullmatch(r"3\.\d+", python):
            raise UsageError(f"--python {python}: give a version such as 3.12, or the path of an interpreter")
        python = f"python{python}"
    return Venue(vram, ram, threads, python, machine)


def planned_machine(venue: Venue, here: Hardware) -> Hardware:
    """Return the machine to plan for: the described one with the stacks that are installed here, or this one."""
    if venue.machine is None:
        return here
    stacks: tuple[InstalledStack, ...] = tuple(replace(stack, problem="") for stack in here.stacks)
    return replace(venue.machine, stacks=stacks, problems=())


def served_machine(venue: Venue, here: Hardware) -> Hardware:
    """Return this machine with no more RAM and threads than the venue has. The models must really run on it."""
    ram = min(here.ram, venue.ram or here.ram)
    free = None if here.ram_free is None else min(here.ram_free, ram)
    return replace(here, ram=ram, ram_free=free, threads=min(here.threads, venue.threads or here.threads))


def shortages(venue: Venue, here: Hardware) -> Iterator[Finding]:
    """Yield a warning if the venue has a larger GPU or more RAM than this machine."""
    fix = "rehearse on a machine that has as much to see the speed of the venue"
    most = max((gpu.total for gpu in here.gpus), default=0)
    if venue.vram is not None and venue.vram > most:
        has = f"one of {size_text(most)}" if most else "none"
        detail = f"the plan is for a GPU of {size_text(venue.vram)}; the server runs with what is here: {has}"
        yield warning("GPU", detail, fix)
    if venue.ram is not None and venue.ram - here.ram > MIB:  # a cgroup rounds to pages
        detail = f"the plan is for {size_text(venue.ram)}; the server runs with what is here: {size_text(here.ram)}"
        yield warning("memory", detail, fix)


def size_option(size: int) -> str:
    """Return a size as the options of tourkit take it, whole KiB."""
    return f"{size // KIB}KiB" if size else "0"

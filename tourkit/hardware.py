"""What this machine grants: processors and memory as the cgroup allows them, not as the host has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Hardware:
    """`threads` that may run at once, `ram` in bytes that may be used in all."""

    threads: int
    ram: int


def probe(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> Hardware:
    """Look at this machine. The paths are arguments so that copies of the files can stand in for them."""
    return Hardware(threads=_threads(cgroup), ram=_ram(cgroup, meminfo))


def _threads(cgroup: Path) -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(cgroup / "cpu.max").split()  # "200000 100000" microseconds of a period, or "max 100000"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        return max(1, min(affinity, int(quota[0]) // int(quota[1])))
    return affinity


def _ram(cgroup: Path, meminfo: Path) -> int:
    sizes = [_total_memory(meminfo)]
    limit = _read(cgroup / "memory.max").strip()
    if limit.isdigit():
        sizes.append(int(limit))
    return min(size for size in sizes if size > 0)


def _total_memory(meminfo: Path) -> int:
    for line in _read(meminfo).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 << 30  # nothing on this system tells: a modest guess


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

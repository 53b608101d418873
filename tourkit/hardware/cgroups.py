"""Reads the limits of this process's cgroups, version 1 and 2: processors, memory, and memory in use.

The limits of all parent cgroups apply too, so all are read and the smallest counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """The paths of Linux's answers: the cgroup mount, /proc/meminfo, and the list of this process's cgroups."""

    cgroup: Path = Path("/sys/fs/cgroup")
    meminfo: Path = Path("/proc/meminfo")
    membership: Path = Path("/proc/self/cgroup")


def granted_threads(files: Files) -> int:
    """Return how many threads may run at once by affinity, cpuset and quota, at least 1."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in folders(files, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if processors := _processors(_read(folder / name)):
                counts.append(processors)
                break
    for folder in folders(files, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            counts.append(quota // period)
    return max(1, min(counts))


def memory_limit(files: Files) -> int:
    """Return the smallest limit in bytes, 0 if there is none.

    Version 1 writes "no limit" as a number larger than the memory of any machine.
    """
    limits = [
        int(text)
        for folder in folders(files, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name).strip()).isdigit()
    ]
    return min(limits, default=0)


def memory_in_use(files: Files) -> int:
    """Return the bytes in use in the cgroup with the smallest limit, without page cache, which is freed on demand."""
    limited = []
    for folder in folders(files, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            text, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if text.isdigit() and used.isdigit():
                limited.append((int(text), max(0, int(used) - _page_cache(folder))))
    return min(limited, default=(0, 0))[1]


def folders(files: Files, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, its own first, then its parents, for both versions.

    In a container the path may exist only on the host. Then only the mount itself counts.
    """
    for line in _read(files.membership).splitlines() or ["0::/"]:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            mounts = [files.cgroup]
        elif controller in names.split(","):
            mounts = [files.cgroup / names, files.cgroup / controller]
        else:
            continue
        relative = PurePosixPath(path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for part in (relative, *relative.parents):
                if ".." not in part.parts and (mount / part).is_dir():
                    yield mount / part


def _quota(folder: Path) -> tuple[int, int]:
    """Return the microseconds of processor time per period, and the period; (0, 0) if there is no limit."""
    fields = _read(folder / "cpu.max").split()  # version 2: "200000 100000", or "max 100000"
    if len(fields) != 2:
        fields = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
    if not (fields[0].isdigit() and fields[1].isdigit()):  # "max", or version 1's "-1"
        return 0, 0
    return int(fields[0]), int(fields[1])


def _processors(text: str) -> int:
    """Return how many processors a list such as "0-3,8" names; 0 if it is empty or no list."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdigit():
            return 0
        count += int(last or first) - int(first) + 1
    return count


def _page_cache(folder: Path) -> int:
    fields = dict(line.split(None, 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    whole = "total_" if "total_cache" in fields else ""  # version 1: only total_* includes child cgroups
    return sum(int(fields.get(f"{whole}{name}", "0")) for name in ("inactive_file", "active_file"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

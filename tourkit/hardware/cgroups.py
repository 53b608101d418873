"""Limits of the cgroups a process is in, of version 1 and 2: processors, memory, and memory in use.

A limit of any cgroup up to the root holds, so each is read and the smallest counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Files:
    """Where Linux tells: the cgroup mount, /proc/meminfo, and which cgroups this process is in."""

    cgroup: Path = Path("/sys/fs/cgroup")
    meminfo: Path = Path("/proc/meminfo")
    membership: Path = Path("/proc/self/cgroup")


def granted_threads(files: Files) -> int:
    """Threads that may run at once: by affinity, by cpuset and by quota, at least 1."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in _folders(files, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if processors := _processors(_read(folder / name)):
                counts.append(processors)
                break
    for folder in _folders(files, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            counts.append(quota // period)
    return max(1, min(counts))


def memory_limit(files: Files) -> int:
    """The smallest limit in bytes; 0 for none. Version 1 writes "none" as a number larger than any machine."""
    limits = [
        int(text)
        for folder in _folders(files, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name).strip()).isdigit()
    ]
    return min(limits, default=0)


def memory_in_use(files: Files) -> int:
    """Bytes in use in the cgroup whose limit is the smallest, without the page cache that is given up on demand."""
    limited = []
    for folder in _folders(files, "memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            text, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if text.isdigit() and used.isdigit():
                limited.append((int(text), max(0, int(used) - _page_cache(folder))))
    return min(limited, default=(0, 0))[1]


def _folders(files: Files, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups, its own first, then its parents; both versions' places.

    In a container the path may be one of the host's that does not exist inside: then only the mount itself counts.
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
    """Microseconds of processor time in a period, and the period; (0, 0) for no limit."""
    fields = _read(folder / "cpu.max").split()  # version 2: "200000 100000", or "max 100000"
    if len(fields) != 2:
        fields = [_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()]
    if not (fields[0].isdigit() and fields[1].isdigit()):  # "max", or version 1's "-1"
        return 0, 0
    return int(fields[0]), int(fields[1])


def _processors(text: str) -> int:
    """How many a list such as "0-3,8" names; 0 when it is empty or not a list."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdigit():
            return 0
        count += int(last or first) - int(first) + 1
    return count


def _page_cache(folder: Path) -> int:
    fields = dict(line.split(None, 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
    whole = "total_" if "total_cache" in fields else ""  # version 1 counts the groups below apart
    return sum(int(fields.get(f"{whole}{name}", "0")) for name in ("inactive_file", "active_file"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""What the system says about a process and its children."""

from __future__ import annotations

from pathlib import Path

_PAGE = 4096  # bytes


def memory(pid: int) -> int:
    """Return the resident memory of a process and of its children, in bytes."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            resident = int((path / "statm").read_text().split()[1]) * _PAGE
        except OSError:
            continue  # it has just ended
        total += resident if int(path.name) == pid or parent == pid else 0
    return total

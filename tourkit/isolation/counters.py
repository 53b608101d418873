"""Counts packets that the kernel could not send because there was no route, in this process's network namespace."""

from __future__ import annotations

from pathlib import Path

_COUNTERS = Path("/proc/self/net/snmp"), Path("/proc/self/net/snmp6")


def unroutable() -> int:
    """Return how many packets had no route so far. 0 on a system without these counters."""
    four, six = (path.read_text().splitlines() if path.exists() else [] for path in _COUNTERS)
    ip = [line.split() for line in four if line.startswith("Ip: ")]
    total = int(dict(zip(*ip, strict=True))["OutNoRoutes"]) if len(ip) == 2 else 0
    return total + sum(int(line.split()[1]) for line in six if line.startswith("Ip6OutNoRoutes"))

"""Keeps tourkit offline: sets the opt-out of every stack, refuses connections in Python code, and enters a guard.

The audit hook sees Python code alone, and names the line that tried to connect. It is engaged in every process that is
offline. The kernel holds native code and children where the system can do it: see `isolation.guard`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tourkit.errors import TourkitError
from tourkit.isolation import guard, hook
from tourkit.isolation.counters import unroutable
from tourkit.isolation.guard import HOOK, NAMESPACE, Held, Needs
from tourkit.terminal import visible

# The libraries read these when they are imported, so they are set first. Sources: the documentation of each library.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "LLAMA_ARG_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
}
# A proxy on loopback would pass the hook.
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_MOST_KEPT = 1000  # attempts, of which the last are kept
_MOST_SHOWN = 200  # characters of a target


class OfflineError(TourkitError, ConnectionError):
    """Something tried to reach the network while tourkit is offline."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Attempt:
    """One refused attempt: its target, and the last Python line outside the standard library that led to it."""

    target: str
    caller: str


@dataclass(slots=True)
class _Record:
    """What was refused. `unroutable`: how many packets had no route at the start, if this is a namespace of its own.

    `engaged`: the arguments of `engage`; None before it.
    """

    count: int = 0
    last: deque[Attempt] = field(default_factory=lambda: deque(maxlen=_MOST_KEPT))
    unroutable: int | None = None
    engaged: dict[str, Any] | None = None


_record = _Record()


def isolate(needs: Needs, wish: str = "", allowed: Collection[str] = ()) -> Held:
    """Enter the strongest guard that the system allows, or the one named `wish`, and engage the hook. For good.

    This is the first thing a process does, while it has one thread. `allowed`: as in `engage`. Prints a line if a
    stronger guard cannot be had. Raises LocalError, in one line, if the wish cannot be had.
    """
    held = guard.enter(needs, wish)
    if held.name == NAMESPACE:
        _record.unroutable = unroutable()
    engage(allowed, beside=held.name)
    if held.weaker:
        sys.stderr.write(f"tourkit: offline: the guard is {held.name}: {held.weaker}\n")
    return held


def engage(allowed: Collection[str] = (), *, beside: str = HOOK) -> None:
    """Set every opt-out, and refuse all connections of Python code that are not loopback until this process ends.

    `allowed`: other names and addresses that may be reached. `beside`: the guard that holds, "hook" for none of the
    kernel.
    """
    os.environ.update(ENVIRONMENT)
    for name in _PROXIES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    if _record.engaged is None:
        _record.engaged = {"allowed": sorted(allowed), "beside": beside}
        sys.addaudithook(hook.made(_refusing(_record), frozenset(allowed), beside))


def handed_down() -> dict[str, Any] | None:
    """Return the arguments with which a Python child engages the same hook; None if this process is not offline."""
    return _record.engaged


def attempts() -> tuple[Attempt, ...]:
    """Return the last attempts of Python code that this process has refused, at most 1000."""
    return tuple(_record.last)


def refused() -> int:
    """Return how many attempts were refused so far: of Python code, and in a namespace of native code and children."""
    native = 0 if _record.unroutable is None else unroutable() - _record.unroutable
    return _record.count + native


def _refusing(record: _Record) -> Callable[[str], None]:
    """Return the function that refuses a target: it counts, prints and raises. It keeps what it uses, as the hook."""
    caller, attempt, error, write, seen = _caller, Attempt, OfflineError, os.write, visible

    def refuse(target: str) -> None:
        target = seen(target[:_MOST_SHOWN])
        made = attempt(target, caller())
        record.count += 1
        record.last.append(made)
        with contextlib.suppress(OSError):  # stderr is closed
            write(2, f"tourkit: offline: refused a connection to {target}, asked for by {made.caller}\n".encode())
        raise error(f"offline: refused a connection to {target}: serve without --offline to allow it")

    return refuse


def _caller() -> str:
    """Return the last line outside the standard library and outside the guard."""
    library = os.path.dirname(socket.__file__)  # noqa: PTH120 - no pathlib inside an audit hook
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        standard = code.co_filename.startswith(library) and "site-packages" not in code.co_filename
        if not standard and code.co_filename not in (__file__, hook.__file__):
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        frame = frame.f_back
    return "unknown"

"""Keeps tourkit offline: sets the opt-out of every stack, and refuses all connections that are not loopback.

The guard is a Python audit hook, so it can name the line that tried to connect. It does not see native code: the
opt-outs keep that offline.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from dataclasses import dataclass

from tourkit.errors import TourkitError
from tourkit.net import is_address, is_loopback

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


class OfflineError(TourkitError, ConnectionError):
    """Something tried to reach the network while tourkit is offline."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Attempt:
    """One refused attempt: its target, and the last Python line outside the standard library that led to it."""

    target: str
    caller: str


_attempts: list[Attempt] = []
_engaged = False


def engage() -> None:
    """Set every opt-out, and refuse all connections that are not loopback until this process ends."""
    global _engaged
    os.environ.update(ENVIRONMENT)
    if not _engaged:
        _engaged = True
        sys.addaudithook(_guard)


def attempts() -> tuple[Attempt, ...]:
    """Return the attempts that this process has refused so far."""
    return tuple(_attempts)


def _guard(event: str, args: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        sock, address = args[0], args[-1]
        internet = isinstance(sock, socket.socket) and sock.family in (socket.AF_INET, socket.AF_INET6)
        if internet and isinstance(address, tuple) and not is_loopback(str(address[0])):
            _refuse(f"{address[0]}:{address[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex"):
        host = args[0]
        name = host.decode(errors="replace") if isinstance(host, bytes) else host
        if isinstance(name, str) and name and not (is_address(name) or is_loopback(name)):
            _refuse(name)


def _refuse(target: str) -> None:
    attempt = Attempt(target, _caller())
    _attempts.append(attempt)
    sys.stderr.write(f"tourkit: offline: refused a connection to {target}, asked for by {attempt.caller}\n")
    raise OfflineError(f"offline: refused a connection to {target}: serve without --offline to allow it")


def _caller() -> str:
    frames = traceback.extract_stack()
    library = os.path.dirname(socket.__file__)  # noqa: PTH120 - no pathlib inside an audit hook
    for frame in reversed(frames):
        if frame.filename == __file__ or (frame.filename.startswith(library) and "site-packages" not in frame.filename):
            continue
        return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return "unknown"

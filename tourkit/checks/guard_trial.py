"""Tries the offline guard: which one the system allows for workers, and whether the hook works.

`python -m tourkit.checks.guard_trial` is the process that engages the hook. It stays engaged until the process ends.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

from tourkit import net, offline
from tourkit.checks import child
from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.errors import TourkitError
from tourkit.isolation import guard
from tourkit.isolation.guard import HOOK, NAMESPACE, SECCOMP, Needs

_WHAT = "offline guard"
# Addresses for documentation (RFC 5737, RFC 6761): nobody has them, so a guard that does not hold harms nobody.
_ADDRESS = ("192.0.2.1", 80)
_NAME = "tourkit.invalid"
_HOLDS = {
    NAMESPACE: "workers have a network of their own",
    SECCOMP: "workers can make no IP sockets",
    HOOK: "holds in Python code, not in native code and children",
}
_ALLOW = "allow user namespaces (docs/offline.md says how), to hold native code and children too"
_REPORT = "do not rely on --offline here; run `python -m tourkit.checks.guard_trial` and report what it prints"


def answer() -> dict[str, Any]:
    """Ask the guard in a new process. The keys are those of `trial`, or "error"."""
    return child.ask("tourkit.checks.guard_trial")


def finding(answer: dict[str, Any]) -> Finding:
    """Return the finding for an answer of the trial."""
    if "error" in answer:
        return failure(_WHAT, f"cannot be tried: {answer['error']}", _REPORT)
    open_ = [name for name in ("address", "name") if not answer[f"{name}_refused"]]
    if open_:
        return failure(_WHAT, f"does not refuse an {' and a '.join(open_)} of another machine", _REPORT)
    if not answer["loopback"]:
        return failure(
            _WHAT, "loopback does not work under it", "check that the interface lo is up: `ip link set lo up`"
        )
    detail = f"{answer['guard']}: {_HOLDS[answer['guard']]}; refuses other machines, allows loopback"
    if answer["guard"] == HOOK and sys.platform == "linux":
        return warning(_WHAT, f"{detail} ({answer['weaker']})", _ALLOW)
    return ok(_WHAT, detail)


def trial() -> dict[str, Any]:
    """Return which guard workers get; what the hook refuses, and whether loopback works beside it.

    Engages the hook in this process.
    """
    held = guard.available(Needs())
    offline.engage()
    return {
        "guard": held.name,
        "weaker": held.weaker,
        "address_refused": _is_refused(_connect),
        "name_refused": _is_refused(_look_up),
        "loopback": _loopback_works(),
    }


def _is_refused(reach: Callable[[], None]) -> bool:
    """Whether the guard refuses it. An error of the network does not count: then the guard let it pass."""
    try:
        reach()
    except offline.OfflineError:
        return True
    except OSError:
        return False
    return False


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # if the guard lets it pass, do not wait for an answer that cannot come
        sock.connect(_ADDRESS)


def _look_up() -> None:
    socket.getaddrinfo(_NAME, 80)


def _loopback_works() -> bool:
    try:
        with net.listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()[:2]) as client:
            connection, _ = server.accept()
            with connection:
                client.sendall(b"x")
                return connection.recv(1) == b"x"
    except (TourkitError, OSError):
        return False


if __name__ == "__main__":
    child.tell(trial())

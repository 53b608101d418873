"""Which guard keeps this process and everything that it starts away from the network, and entering it.

The strongest that the system allows: a network namespace, else a filter of system calls, else none of the kernel. Then
the audit hook of `offline` is all that is left, and it sees Python code alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.isolation import namespaces, seccomp

NAMESPACE, SECCOMP, HOOK = "namespace", "seccomp", "hook"
GUARDS = (NAMESPACE, SECCOMP, HOOK)  # the strongest first
# Services that look names up for others. Their Unix sockets cross network namespaces, so they are hidden there.
_RESOLVERS = tuple(map(Path, ("/run/systemd/resolve", "/run/nscd", "/run/avahi-daemon")))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a process needs of the network of its own machine.

    `loopback`: IP sockets for itself and its children. `reached_by_ip`: another process connects to it on loopback.
    `mounts`: it mounts a file in the namespace.
    """

    loopback: bool = False
    reached_by_ip: bool = False
    mounts: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The guard that holds. `weaker`: why it is not the strongest one of this system; "" if it is."""

    name: str
    weaker: str = ""


def available(needs: Needs, wish: str = "") -> Held:
    """Return the strongest guard that this process can have; with `wish` that one. It is only tried, in a fork.

    The process must have one thread. Raises LocalError, in one line, if the wish cannot be had.
    """
    if wish and wish not in GUARDS:
        raise LocalError(f"no guard {wish!r}: choose one of {', '.join(GUARDS)}")
    if not wish and sys.platform != "linux":
        return Held(HOOK)
    refusals: dict[str, str] = {}
    for name in (wish,) if wish else GUARDS:
        refusals[name] = _refusal(name, needs)
        if not refusals[name]:
            return Held(name, "; ".join(dict.fromkeys(filter(None, refusals.values()))))
    raise LocalError(f"--guard {wish}: {refusals[wish]}: take another guard, or leave the choice to tourkit")


def enter(needs: Needs, wish: str = "") -> Held:
    """Put this process under the strongest guard that it can have, for good. Raises what `available` raises."""
    held = available(needs, wish)
    if held.name == NAMESPACE:
        _enter_namespace(needs)
        try:
            seccomp.allow(seccomp.SEPARATED)
        except LocalError as exc:
            held = Held(held.name, f"{exc}: kinds of sockets that no namespace separates stay open, such as AF_VSOCK")
    elif held.name == SECCOMP:
        seccomp.allow(seccomp.LOCAL)
    if held.name != HOOK:
        _close_inherited()
    return held


def _refusal(name: str, needs: Needs) -> str:
    """Return why this process cannot have a guard; "" if it can."""
    if name == HOOK:
        return ""
    if sys.platform != "linux":
        return f"the kernel's guards are for Linux, and this is {sys.platform}"
    if needs.reached_by_ip:
        return "the gateway reaches this process over loopback, not over a Unix socket"
    if name == SECCOMP and needs.loopback:
        return "this process needs IP sockets on loopback, which the filter refuses"
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - the number alone
    if threads > 1:
        return f"this process has {threads} threads already"
    if name == SECCOMP:
        return _tried(lambda: seccomp.allow(seccomp.LOCAL))
    return _tried(lambda: _enter_namespace(needs))


def _enter_namespace(needs: Needs) -> None:
    """Enter a network namespace. Raises LocalError if the system refuses it, or hiding the resolvers in it."""
    resolvers = [folder for folder in _RESOLVERS if folder.is_dir()]
    namespaces.enter_network(mounts=needs.mounts or bool(resolvers))
    for folder in resolvers:
        namespaces.hide(folder)


def _tried(step: Callable[[], None]) -> str:
    """Take a step in a fork of this process, because there is no way back. Return the error; "" if it worked."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        why = "it ended early"
        try:
            step()
            why = ""
        except (LocalError, OSError) as exc:
            why = str(exc)
        finally:
            os.write(writer, b"." + why.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said[1:].decode() if said else "the trial ended by a signal"


def _close_inherited() -> None:
    """Close sockets of before. They belong to the network outside, whatever guard holds now.

    Unix sockets stay, and so do standard input and output.
    """
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, no paths
        with contextlib.suppress(OSError):  # the folder's own descriptor
            if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as sock:
                    family = sock.family
                if family != socket.AF_UNIX:
                    os.close(number)

"""A network without anybody: its default route is an interface that leads nowhere, and what goes there is counted.

So an attempt to reach another machine is seen even if the program catches the error, and even if native code makes it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.isolation import namespaces, netlink
from tourkit.isolation.counters import unroutable
from tourkit.isolation.packets import destination

_INTERFACE = "deadend"
# Addresses for documentation (RFC 5737, RFC 3849): nobody has them.
_ADDRESSES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_NAME_SERVER = "192.0.2.53"
_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_MOST_PACKET = 65535
_SYN_RETRIES = Path("/proc/sys/net/ipv4/tcp_syn_retries")


@dataclass(slots=True)
class DeadEnd:
    """Counts what wanted to leave this machine.

    `names`: whether look-ups of names are led to the dead end too. `_tun`: the interface's packets; None if the system
    gives no interface: then there is no default route, and the kernel's own counters are read.
    """

    names: bool
    _tun: int | None
    _counted: int = field(default_factory=unroutable)

    @property
    def shows_packets(self) -> bool:
        """Whether attempts have an address. Without the interface they are only counted."""
        return self._tun is not None

    def attempts(self) -> Counter[str]:
        """Return the packets since the last call by their destination."""
        found: Counter[str] = Counter()
        while self._tun is not None:
            try:
                where = destination(os.read(self._tun, _MOST_PACKET))
            except BlockingIOError:
                break
            if where is not None:
                found[where] += 1
        counted = unroutable()
        if counted > self._counted:
            found["an address that is not known"] += counted - self._counted
            self._counted = counted
        return found


def isolate(folder: Path) -> DeadEnd:
    """Move this process into namespaces whose default route is a dead end. It must have one thread.

    `folder`: gets two small files that replace the system's settings for names, for this process and its children.
    Raises LocalError as `namespaces.enter` does.
    """
    namespaces.enter()
    with contextlib.suppress(OSError):  # where /proc/sys is read-only a refused connection takes two minutes
        _SYN_RETRIES.write_text("1")
    names = _redirect_names(folder)
    return DeadEnd(names, _interface())


def _interface() -> int | None:
    """Make the interface. Return the file whose reads give its packets; None if the system does not allow it."""
    import fcntl  # Windows has none

    try:
        tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(tun)
        return None
    netlink.set_up(_INTERFACE)
    for family, address in _ADDRESSES:
        try:
            netlink.add_address(_INTERFACE, family, address)
            netlink.add_default_route(_INTERFACE, family)
        except LocalError:
            if family == socket.AF_INET:
                raise
            # a kernel without IPv6: nothing can leave by it
    return tun


def _redirect_names(folder: Path) -> bool:
    """Make look-ups of names ask a server at the dead end. Return whether it worked.

    On many systems they ask a service on loopback, or through a file, and that service asks the network.
    """
    files = {
        Path("/etc/resolv.conf"): f"nameserver {_NAME_SERVER}\noptions timeout:1 attempts:1\n",
        Path("/etc/nsswitch.conf"): "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    redirected = True
    for path, text in files.items():
        ours = folder / path.name
        ours.write_text(text)
        try:
            namespaces.bind(ours, path.resolve(strict=True))
        except (LocalError, OSError):
            redirected = redirected and path.name != "resolv.conf"
    cache = Path("/run/nscd")
    if cache.is_dir():
        empty = folder / "nscd"
        empty.mkdir()
        namespaces.bind(empty, cache)
    return redirected

"""Listening sockets and addresses of this machine. Every socket that tourkit listens on is made here."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tourkit.errors import LocalError

_BACKLOG = 256  # connections that wait to be accepted
_LISTENING = "0A"  # the state of a socket in /proc/net/tcp
_SECRET_OPTION = "--api-key"
_MOST_SHOWN = 120  # characters of a command line
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface (netdevice(7))


@dataclass(frozen=True, slots=True)
class Urls:
    """The base URLs of a server: for clients `here` on this machine, and for clients `elsewhere`.

    `elsewhere` has a URL for each network interface if the server listens on all addresses, else none: `here` is all.
    """

    here: str
    elsewhere: tuple[str, ...] = ()


def listen(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens. Port 0 picks a free port. Raises LocalError if the address is not available.

    The protocol is given because asyncio turns off Nagle's algorithm only if it is. With that algorithm an answer in
    two segments waits 40 ms for the client's delayed acknowledgement. Accepted sockets inherit the option.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as exc:  # OverflowError: a port over 65535
        sock.close()
        why = getattr(exc, "strerror", None) or exc
        holder = holder_of(port) if getattr(exc, "errno", None) == errno.EADDRINUSE else ""
        by = f" by {holder}" if holder else ""
        message = f"cannot listen on {host} port {port} ({why}{by}): choose another with --host or --port"
        raise LocalError(message) from exc
    return sock


def holder_of(port: int) -> str:
    """Return which process of this machine listens on a TCP port: its id and its command line.

    The text is empty if it cannot be found out: only Linux tells it, and only for processes of the same user.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for folder in Path("/proc").glob("[0-9]*/fd") if sockets else ():
        with contextlib.suppress(OSError):  # it belongs to another user, or has just ended
            if any(str(each.readlink()) in sockets for each in folder.iterdir()):
                return f"process {folder.parent.name}{_command_of(folder.parent)}"
    return ""


def _listening(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a TCP port (Linux: proc_pid_net(5))."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _command_of(process: Path) -> str:
    """Return the command line of a process for a message, without the values of secret options; "" if unknown."""
    try:
        words = (process / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return ""
    shown = ["…" if before == _SECRET_OPTION else word for before, word in zip(["", *words], words, strict=False)]
    shown = [f"{_SECRET_OPTION}=…" if word.startswith(f"{_SECRET_OPTION}=") else word for word in shown]
    line = "".join(char if char.isprintable() else "?" for char in " ".join(shown)[:_MOST_SHOWN])
    return f", `{line}`" if line else ""


def listen_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens at `path`, for this user alone. Raises OSError and LocalError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        make_private(path)  # before `listen`: until then the system refuses every connection
        sock.listen(_BACKLOG)
    except (OSError, LocalError):
        sock.close()
        raise
    return sock


def make_private(path: Path) -> None:
    """Allow a folder, or a socket, to this user alone, and check it. Raises LocalError if others may open it."""
    if not hasattr(os, "getuid"):  # Windows, where a temporary folder belongs to its user
        return
    path.chmod(0o700 if path.is_dir() else 0o600)
    found = path.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise LocalError(
            f"{path}: other users of this machine can open it: set TMPDIR to a folder on a disk that keeps permissions"
        )


def free_port(host: str) -> int:
    """Return a TCP port of `host` that is free now, for a server that makes its own listening socket.

    Raises LocalError if the address is not available.
    """
    with listen(host, 0) as sock:
        return int(sock.getsockname()[1])


def urls_of(sock: socket.socket) -> Urls:
    """Return the base URLs of a listening TCP socket. One that listens on all addresses is on loopback too."""
    host, port = sock.getsockname()[:2]
    if not ipaddress.ip_address(host.split("%")[0]).is_unspecified:
        return Urls(_url(host, port))
    here = "::1" if ":" in host else "127.0.0.1"
    return Urls(_url(here, port), tuple(_url(address, port) for address in interface_addresses()))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def interface_addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses of this machine's network interfaces, without loopback. Asks no network.

    Only Linux tells them without a look-up of a name; on other systems the answer is this machine's name.
    """
    if sys.platform != "linux":
        return (socket.gethostname(),)
    import fcntl

    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                found.append(socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24]))
    return tuple(address for address in dict.fromkeys(found) if not is_loopback(address))


def is_loopback(host: str) -> bool:
    """Return whether a connection to `host` stays on this machine: localhost, loopback and unspecified addresses.

    No name is looked up. Other names that end in ".localhost" do not count: a resolver may ask the network for them.
    """
    if host in ("localhost", ""):
        return True
    if not is_address(host):
        return False
    address = ipaddress.ip_address(host.split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def is_address(host: str) -> bool:
    """Return whether `host` is an IPv4 or IPv6 address and not a name."""
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True

"""The one way out of a network namespace: a process outside connects to one server for the processes inside.

The process is forked before the namespace is entered, and gets a listening socket of the namespace afterwards. A socket
stays in the namespace in which it was made, so the process accepts there and connects here. It knows one address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tourkit import net
from tourkit.errors import LocalError
from tourkit.isolation import namespaces, netlink
from tourkit.parent import end_with_parent

_BLOCK = 1 << 16  # bytes
_SECONDS = 10.0  # to look for an address that answers
_HOSTS = Path("/etc/hosts")
Address = tuple[str, int]


def addresses_of(host: str, port: int) -> tuple[Address, ...]:
    """Return the addresses of a server, the one that answers first. Raises LocalError if none of them answers."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise LocalError(f"cannot find {host} ({exc.strerror}): check the address") from exc
    every = tuple(dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in found))
    why = ""
    for address in every:
        try:
            socket.create_connection(address, _SECONDS).close()
        except OSError as exc:
            why = exc.strerror or str(exc)
        else:
            return (address, *(each for each in every if each != address))
    raise LocalError(f"no server answers at {host} port {port} ({why}): check the address")


@dataclass(frozen=True, slots=True)
class Outlet:
    """The process outside. It ends with this process."""

    address: Address
    pid: int
    _control: socket.socket

    def open(self, name: str = "") -> None:
        """Let the address be reached in the namespace that this process has entered. Raises LocalError.

        `name`: a name for the address, for which the mount namespace gets a line in /etc/hosts; "" for none.
        """
        host, port = self.address
        try:
            if not net.is_loopback(host):
                netlink.add_address("lo", socket.AF_INET6 if ":" in host else socket.AF_INET, host)
            with net.listen(host, port) as listening:
                socket.send_fds(self._control, [b"."], [listening.fileno()])
            self._control.recv(1)
            if name:
                _add_host(host, name)
            self._control.detach()  # it stays open until this process ends
        except (LocalError, OSError) as exc:
            raise LocalError(f"{host}: cannot be reached in a network namespace ({exc}): try --guard hook") from exc


def start(address: Address) -> Outlet:
    """Fork the process outside. This process must have one thread, and enter its namespace afterwards."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Outlet(address, pid, ours)
    code = 1
    try:
        ours.close()
        _end_with(parent)
        asyncio.run(_forward(theirs, address))
        code = 0
    finally:
        os._exit(code)


def _end_with(parent: int) -> None:
    """End with the parent, and not before: a signal for both, such as Ctrl-C, is for the parent to handle.

    Who reads a pipe of the parent waits until all who hold it have closed it, so this process holds none.
    """
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    end_with_parent()
    if os.getppid() != parent:
        os._exit(0)


async def _forward(control: socket.socket, address: Address) -> None:
    """Take the listening socket, and forward what comes until the other end of `control` is closed."""
    control.setblocking(False)
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(control, ready.set)
    await ready.wait()
    loop.remove_reader(control)
    data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not data:
        return

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _relay(reader, writer, address)

    async with await asyncio.start_server(accepted, sock=socket.socket(fileno=descriptors[0])):
        await loop.sock_sendall(control, b".")
        await loop.sock_recv(control, 1)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address) -> None:
    """Connect one accepted connection to the server. Each end closes with the other."""
    try:
        answers, asked = await asyncio.open_connection(*address)
    except OSError:
        writer.transport.abort()  # the client gets a reset, and says it
        return
    ways = [asyncio.create_task(_copy(reader, asked)), asyncio.create_task(_copy(answers, writer))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    for end in (asked, writer):
        end.close()
        with contextlib.suppress(OSError):
            await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # an end is gone
        while data := await reader.read(_BLOCK):
            writer.write(data)
            await writer.drain()


def _add_host(address: str, name: str) -> None:
    """Show /etc/hosts with one more line in this mount namespace."""
    known = _HOSTS.read_text() if _HOSTS.exists() else ""
    with tempfile.NamedTemporaryFile("w", prefix="tourkit-") as file:
        file.write(f"{address} {name}\n{known}")
        file.flush()
        Path(file.name).chmod(0o644)
        namespaces.bind(Path(file.name), _HOSTS)

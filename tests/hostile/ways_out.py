"""Tries every known way out of the offline guard, and prints as JSON what came of each.

`ways_out.py GUARD`: each way runs in a fork of its own, under this guard, in a namespace whose default route is a dead
end. What leaves the guard is a packet there. `ways_out.py GUARD plain`: without that namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import multiprocessing
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tourkit import net, offline
from tourkit.isolation import dead_end, hook
from tourkit.isolation.guard import GUARDS, HOOK, Needs

# For documentation (RFC 5737, RFC 3849, RFC 6761): nobody has them.
FOUR, SIX, NAME = "203.0.113.7", "2001:db8:1::7", "hub.invalid"
PACKED = socket.inet_aton(FOUR)
SOON = 0.05  # seconds: enough for the first packet
LIBC = ctypes.CDLL(None, use_errno=True)
SOCKADDR = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 9, PACKED)
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IO_URING_SETUP, X32 = 425, 0x40000000
INHERITED = 50  # the number of a socket that was open before the guard

Way = Callable[[], Any]
WAYS: dict[str, Way] = {}
INSIDE = {"netlink"}  # it reaches the kernel of the same namespace


def way(function: Way) -> Way:
    """Name a way. It raises OSError or returns a false value if the system or the guard refused it."""
    WAYS[function.__name__] = function
    return function


def udp(address: Any, family: int = socket.AF_INET, kind: Any = socket.socket) -> bool:
    with contextlib.closing(kind(family, DATAGRAM)) as sock:
        return bool(sock.sendto(b"x", address))


def tcp(address: Any, family: int = socket.AF_INET, kind: Any = socket.socket) -> bool:
    with contextlib.closing(kind(family, STREAM)) as sock:
        sock.settimeout(SOON)
        sock.connect(address)
    return True


# --- Python's sockets ------------------------------------------------------------------------------------------------


@way
def connect() -> bool:
    return tcp((FOUR, 443))


@way
def connect_ipv6() -> bool:
    return tcp((SIX, 443), socket.AF_INET6)


@way
def connect_mapped() -> bool:
    return tcp((f"::ffff:{FOUR}", 443), socket.AF_INET6)


@way
def connect_hexadecimal() -> bool:
    return tcp((hex(int.from_bytes(PACKED, "big")), 443))


@way
def connect_integer() -> bool:
    return tcp((str(int.from_bytes(PACKED, "big")), 443))


@way
def connect_short() -> bool:
    return tcp(("203.28935", 443))


@way
def connect_bytes() -> bool:
    return tcp((FOUR.encode(), 443))


class Loopback(str):
    """Says that it is loopback, and is another address."""

    def __str__(self) -> str:
        return "127.0.0.1"

    def __eq__(self, other: object) -> bool:
        return other == "127.0.0.1"

    def __hash__(self) -> int:
        return hash("127.0.0.1")


class Pair(tuple[Any, ...]):
    """Says that it begins with a loopback address."""

    def __getitem__(self, index: Any) -> Any:
        return "127.0.0.1" if index == 0 else super().__getitem__(index)


@way
def connect_subclass_of_str() -> bool:
    return tcp((Loopback(FOUR), 443))


@way
def connect_subclass_of_tuple() -> bool:
    return tcp(Pair((FOUR, 443)))


@way
def connect_ex() -> bool:
    with socket.socket() as sock:
        sock.setblocking(False)
        return sock.connect_ex((FOUR, 443)) in (0, 115)


@way
def sendto() -> bool:
    return udp((FOUR, 53))


@way
def sendto_ipv6() -> bool:
    return udp((SIX, 53), socket.AF_INET6)


@way
def sendmsg() -> bool:
    with socket.socket(type=DATAGRAM) as sock:
        return bool(sock.sendmsg([b"x"], [], 0, (FOUR, 53)))


@way
def connect_and_send() -> bool:
    with socket.socket(type=DATAGRAM) as sock:
        sock.connect((FOUR, 53))
        return bool(sock.send(b"x"))


@way
def broadcast() -> bool:
    with socket.socket(type=DATAGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return bool(sock.sendto(b"x", ("<broadcast>", 9)))


@way
def multicast() -> bool:
    return udp(("224.0.0.251", 5353))


@way
def fast_open() -> bool:
    with socket.socket() as sock:
        sock.settimeout(SOON)
        return bool(sock.sendto(b"x", socket.MSG_FASTOPEN, (FOUR, 443)))


@way
def fromfd() -> bool:
    with socket.socket(type=DATAGRAM) as sock, socket.fromfd(sock.fileno(), socket.AF_INET, DATAGRAM) as same:
        return bool(same.sendto(b"x", (FOUR, 53)))


@way
def raw_socket() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        return bool(sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (FOUR, 0)))


@way
def own_socket_connect() -> bool:
    import _socket

    return tcp((FOUR, 443), kind=_socket.socket)


@way
def own_socket_sendto() -> bool:
    import _socket

    return udp((FOUR, 53), kind=_socket.socket)


class Liar(socket.socket):
    family = socket.AF_UNIX  # type: ignore[assignment]


@way
def family_that_lies() -> bool:
    return udp((FOUR, 53), kind=Liar)


# --- look-ups --------------------------------------------------------------------------------------------------------


@way
def getaddrinfo() -> bool:
    return bool(socket.getaddrinfo(NAME, 443))


@way
def gethostbyname() -> bool:
    return bool(socket.gethostbyname(NAME))


@way
def gethostbyname_ex() -> bool:
    return bool(socket.gethostbyname_ex(NAME))


@way
def gethostbyaddr() -> bool:
    return bool(socket.gethostbyaddr(FOUR))


@way
def getnameinfo() -> bool:
    return socket.getnameinfo((FOUR, 443), 0)[0] != FOUR


@way
def getfqdn() -> bool:
    return socket.getfqdn(FOUR) != FOUR


# --- libraries -------------------------------------------------------------------------------------------------------


@way
def urllib_() -> bool:
    return bool(urllib.request.urlopen(f"http://{FOUR}/", timeout=SOON))


@way
def asyncio_() -> bool:
    async def reach() -> None:
        await asyncio.wait_for(asyncio.open_connection(FOUR, 443), SOON)

    asyncio.run(reach())
    return True


@way
def requests_() -> bool:
    import requests

    return bool(requests.get(f"http://{FOUR}/", timeout=SOON))


@way
def aiohttp_() -> bool:
    import aiohttp

    async def reach() -> None:
        async with aiohttp.ClientSession() as session:
            await session.get(f"http://{FOUR}/", timeout=aiohttp.ClientTimeout(SOON))

    asyncio.run(reach())
    return True


# --- native code -----------------------------------------------------------------------------------------------------


@way
def ctypes_connect() -> bool:
    sock = LIBC.socket(socket.AF_INET, DATAGRAM, 0)
    return bool(LIBC.connect(sock, SOCKADDR, 16) == 0 and LIBC.send(sock, b"x", 1, 0) == 1)


@way
def ctypes_sendto() -> bool:
    sock = LIBC.socket(socket.AF_INET, DATAGRAM, 0)
    return bool(LIBC.sendto(sock, b"x", 1, 0, SOCKADDR, 16) == 1)


@way
def ctypes_getaddrinfo() -> bool:
    return bool(LIBC.getaddrinfo(NAME.encode(), b"443", None, ctypes.byref(ctypes.c_void_p())) == 0)


@way
def ctypes_syscall() -> bool:
    numbers = {"x86_64": (41, 44), "aarch64": (198, 206)}[platform.machine()]
    sock = LIBC.syscall(numbers[0], socket.AF_INET, DATAGRAM, 0)
    return bool(LIBC.syscall(numbers[1], sock, b"x", ctypes.c_size_t(1), 0, SOCKADDR, 16) == 1)


@way
def x32_syscall() -> bool:
    return bool(LIBC.syscall(41 | X32, socket.AF_INET, DATAGRAM, 0) >= 0)


@way
def io_uring() -> bool:
    return bool(LIBC.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(256)) >= 0)


@way
def back_into_the_other_namespace() -> bool:
    """As root, which may enter the namespace of its parent."""
    if LIBC.setns(os.open(f"/proc/{os.getppid()}/ns/net", os.O_RDONLY), 0) != 0:
        return False
    return ctypes_sendto()


# --- other processes, and other interpreters -------------------------------------------------------------------------

CHILD = f"import socket; print(socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{FOUR}', 53)))"


def child(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


@way
def curl() -> bool:
    return child("curl", "-s", "-m", "1", f"http://{FOUR}/")


@way
def python() -> bool:
    return child(sys.executable, "-S", "-c", CHILD)


@way
def bash() -> bool:
    return child("bash", "-c", f"echo x > /dev/udp/{FOUR}/53")


@way
def os_system() -> bool:
    return os.system(f"getent ahosts {NAME} > /dev/null") == 0


@way
def multiprocessing_fork() -> bool:
    return through(multiprocessing.get_context("fork"))


@way
def multiprocessing_spawn() -> bool:
    return through(multiprocessing.get_context("spawn"))


def through(context: Any) -> bool:
    process = context.Process(target=udp, args=((FOUR, 53),))
    process.start()
    process.join()
    return process.exitcode == 0


@way
def subinterpreter() -> bool:
    interpreters: Any
    try:
        interpreters = importlib.import_module("_interpreters")  # since Python 3.13
    except ImportError:
        interpreters = importlib.import_module("_xxsubinterpreters")
    interpreters.run_string(interpreters.create(), CHILD)
    return True


# --- the guard itself, and what is left open -------------------------------------------------------------------------


@way
def patched_guard() -> bool:
    """Replace every function of the guard that a module names."""
    for module in (offline, hook, net):
        for name, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "").startswith("tourkit"):
                setattr(module, name, lambda *_, **__: True)
    return udp((FOUR, 53))


@way
def inherited_socket() -> bool:
    return bool(os.write(INHERITED, b"x"))


@way
def proxy_on_loopback() -> bool:
    """A server outside the guard on 127.0.0.1 could be a proxy or a resolver."""
    return tcp(("127.0.0.1", int(os.environ["PROXY"])))


@way
def unspecified_address() -> bool:
    return tcp(("0.0.0.0", int(os.environ["PROXY"])))


@way
def proxy_of_the_environment() -> bool:
    return bool(urllib.request.getproxies())


@way
def resolver_on_a_unix_socket() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/systemd/resolve/io.systemd.Resolve")
    return True


@way
def vsock() -> bool:
    with socket.socket(40, STREAM):
        return True


@way
def packet_socket() -> bool:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        return True


@way
def netlink() -> bool:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW):
        return True


# --- trying them -----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """`packets`: by target, at the dead end. `succeeded`: what the way returned. `refused`: how many the guard counted.

    `said`: its stderr.
    """

    packets: dict[str, int]
    succeeded: bool
    refused: int
    said: str


def tried(function: Way, name: str, end: dead_end.DeadEnd | None) -> Outcome:
    """Run a way under the guard in a fork. It ends when it returns, or when a packet of it was seen."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            os.dup2(errors.fileno(), 2)
            os.setpgid(0, 0)
            attempt(function, name, writer)
        os.close(writer)
        packets: Counter[str] = Counter()
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            packets += end.attempts() if end else Counter()
            if packets and name == HOOK:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, 9)
            time.sleep(0.002)
        packets += end.attempts() if end else Counter()
        with os.fdopen(reader) as pipe:
            told = json.loads(pipe.read() or '{"succeeded": true, "refused": 0}')
        errors.seek(0)
        return Outcome(dict(packets), told["succeeded"], told["refused"], errors.read().decode())


def attempt(function: Way, name: str, writer: int) -> None:
    """Enter the guard, run a way, report what it returned, and end this process."""
    refused = offline.refused  # before a way patches it
    try:
        assert offline.isolate(Needs(), name).name == name
        try:
            succeeded = bool(function())
        except Exception:  # noqa: BLE001 - a way may end in any error
            traceback.print_exc()
            succeeded = False
        os.write(writer, json.dumps({"succeeded": succeeded, "refused": refused()}).encode())
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    name = sys.argv[1]
    assert name in GUARDS
    os.environ["HTTP_PROXY"] = "http://127.0.0.1:3128"
    for library in ("aiohttp", "requests"):  # each fork has them then
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        end = None if "plain" in sys.argv else dead_end.isolate(Path(folder))
        with socket.create_server(("127.0.0.1", 0)) as proxy, socket.socket(type=DATAGRAM) as sock:
            os.environ["PROXY"] = str(proxy.getsockname()[1])
            if end is not None:
                sock.connect((FOUR, 9))
                os.dup2(sock.fileno(), INHERITED)
            found = {way: vars(tried(function, name, end)) for way, function in WAYS.items()}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

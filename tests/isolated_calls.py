"""Moves into a namespace with a dead end, makes some calls there, and prints what was counted for each as JSON.

`isolated_calls.py [without-interface]`: as on a system that gives no access to /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tourkit.isolation import dead_end, namespaces

NATIVE = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
sock = libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
libc.connect(sock, struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 9, bytes([203, 0, 113, 9])), 16)
libc.send(sock, b"x", 1, 0)
"""


def tcp() -> None:
    socket.create_connection(("203.0.113.7", 443), timeout=0.05).close()


def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("203.0.113.8", 514))


def udp6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("2001:db8:1::8", 514))


def name() -> None:
    socket.getaddrinfo("hub.example", 443)


def native_code_of_a_child() -> None:
    subprocess.run([sys.executable, "-c", NATIVE], check=True)


def loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")


def nothing() -> None:
    pass


def write_to_a_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "drive").mkdir()
        (folder / "there").mkdir()
        (folder / "drive" / "file").write_text("as it was")
        namespaces.bind(folder / "drive", folder / "there", read_only=True)
        try:
            with contextlib.suppress(OSError):
                (folder / "there" / "file").write_text("changed")
            assert (folder / "there" / "file").read_text() == "as it was"
        finally:
            namespaces.unmount(folder / "there")


CALLS: tuple[Callable[[], None], ...] = (
    *(nothing, loopback, write_to_a_read_only_folder),
    *(tcp, udp, udp6, name, native_code_of_a_child),
)


def main() -> None:
    if "without-interface" in sys.argv:
        dead_end._TUN = "/dev/null/none"
    with tempfile.TemporaryDirectory() as folder:
        end = dead_end.isolate(Path(folder))
        counted = {}
        for call in CALLS:
            with contextlib.suppress(OSError):  # as a template that catches the error
                call()
            counted[call.__name__] = dict(end.attempts())
        sys.stdout.write(json.dumps({"shows_packets": end.shows_packets, "names": end.names, "counted": counted}))


if __name__ == "__main__":
    main()

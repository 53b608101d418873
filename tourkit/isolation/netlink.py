"""Sets up network interfaces of this process's network namespace through a netlink socket (rtnetlink(7))."""

from __future__ import annotations

import os
import socket
import struct

from tourkit.errors import LocalError

_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_ERROR = 2  # the type of an answer
_IFF_UP = 0x1
_ADDRESS, _LOCAL = 1, 2  # attributes of an address
_OIF = 4  # the attribute of a route that names its interface
_NO_CHECK = 2  # IFA_F_NODAD: IPv6 may use the address at once
_MAIN_TABLE, _STATIC, _UNICAST, _LINK = 254, 4, 1, 253


def set_up(interface: str) -> None:
    """Switch an interface on. Raises LocalError."""
    index = socket.if_nametoindex(interface)
    _ask(_NEWLINK, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP), f"{interface} cannot be switched on")


def add_address(interface: str, family: socket.AddressFamily, address: str) -> None:
    """Give an interface an address of its own, without neighbours. Raises LocalError."""
    packed = socket.inet_pton(family, address)
    head = struct.pack("=BBBBI", family, len(packed) * 8, _NO_CHECK, 0, socket.if_nametoindex(interface))
    body = head + _attribute(_LOCAL, packed) + _attribute(_ADDRESS, packed)
    _ask(_NEWADDR, body, f"{interface} cannot have the address {address}", _CREATE)


def add_default_route(interface: str, family: socket.AddressFamily) -> None:
    """Send everything that has no other route to an interface. Raises LocalError."""
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN_TABLE, _STATIC, _LINK, _UNICAST, 0)
    route = _attribute(_OIF, struct.pack("=I", socket.if_nametoindex(interface)))
    _ask(_NEWROUTE, head + route, f"{interface} cannot be the default route", _CREATE)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(kind: int, body: bytes, otherwise: str, flags: int = 0) -> None:
    """Send one request and read the kernel's answer. Raises LocalError with `otherwise` and the reason."""
    request = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.sendall(request)
            answer = sock.recv(65536)
    except OSError as exc:
        raise LocalError(f"{otherwise} ({exc.strerror})") from exc
    if struct.unpack_from("=H", answer, 4)[0] == _ERROR:
        code = -struct.unpack_from("=i", answer, 16)[0]  # 0 is the acknowledgement
        if code:
            raise LocalError(f"{otherwise} ({os.strerror(code)})")

"""The audit hook that sees connections and look-ups of Python code. It sees no native code and no children.

The hook keeps all functions that it uses, so that replaced attributes of modules do not switch it off.
"""

from __future__ import annotations

import _socket
import socket
from collections.abc import Callable
from typing import Any

from tourkit.isolation import guard

# Services of the system that look names up for others: parts of the paths of their sockets.
_RESOLVERS = ("/systemd/resolve/", "/nscd/socket", "/avahi-daemon/socket", "/mDNSResponder")
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address in an IPv6 one begins with this

_INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))
_UNIX = getattr(socket, "AF_UNIX", -2)
# Sockets that stay on this machine, and -1: the family of a socket that exists already.
_BUT_INTERNET = (_UNIX, getattr(socket, "AF_NETLINK", -1), getattr(socket, "AF_ALG", -1), -1)
_USUAL = (*_INTERNET, *_BUT_INTERNET)

Hook = Callable[[str, tuple[object, ...]], None]
Refuse = Callable[[str], None]


def made(refuse: Refuse, allowed: frozenset[str], beside: str) -> Hook:
    """Return the hook. It calls `refuse`, which raises, with the target of each attempt to leave this machine.

    `allowed`: names and addresses that may be reached besides. `beside`: the guard that holds. If it is the hook alone,
    another interpreter in this process is refused, because that one has no hook. If it is the filter, IP sockets and
    look-ups of addresses are refused: the filter refuses the sockets in any case, and here the caller is seen.
    """
    has_sockets = beside != guard.SECCOMP
    connecting, looking_up = _connecting(refuse, allowed), _looking_up(refuse, allowed)
    making = _making(refuse, _USUAL if has_sockets else _BUT_INTERNET)
    checks: dict[str, Callable[[tuple[Any, ...]], None]] = {
        **dict.fromkeys(
            ("socket.connect", "socket.sendto", "socket.sendmsg"), lambda args: connecting(args[0], args[-1])
        ),
        **dict.fromkeys(
            ("socket.getaddrinfo", "socket.gethostbyname"),
            lambda args: looking_up(args[0], is_address_fine=has_sockets),
        ),
        **dict.fromkeys(
            ("socket.gethostbyaddr", "socket.getnameinfo"), lambda args: looking_up(args[0], is_address_fine=False)
        ),
        "socket.__new__": lambda args: making(args[1], args[2]),
    }
    if beside == guard.HOOK:
        checks["cpython.PyInterpreterState_New"] = lambda _: refuse("anything from an interpreter without the guard")
    check_of = checks.get

    def hook(event: str, args: tuple[object, ...]) -> None:
        check = check_of(event)
        if check is not None:
            check(args)

    return hook


def _connecting(refuse: Refuse, allowed: frozenset[str]) -> Callable[[object, Any], None]:
    """Return the check of the address that a socket connects or sends to."""
    family_of = _socket.socket.__dict__["family"].__get__  # the attribute of a subclass may be another one
    kind, is_a, item, host_of, here = _socket.socket, isinstance, tuple.__getitem__, _host(), _here(allowed)
    internet, unix, usual, resolvers = _INTERNET, _UNIX, _USUAL, _RESOLVERS

    def check(sock: object, address: Any) -> None:
        family = family_of(sock) if is_a(sock, kind) else None
        if family in internet and is_a(address, tuple):
            host = host_of(item(address, 0))
            if not here(host):
                refuse(f"{host}:{item(address, 1)}")
        elif family == unix and is_a(address, (str, bytes, bytearray)):
            path = host_of(address)
            if any(part in path for part in resolvers):
                refuse(path)
        elif family is not None and family not in usual and address is not None:
            refuse(f"an address of the family {family}")

    return check


def _looking_up(refuse: Refuse, allowed: frozenset[str]) -> Callable[..., None]:
    """Return the check of a name, an address, or a tuple that begins with one, which is looked up."""
    is_a, item, host_of, here, packed = isinstance, tuple.__getitem__, _host(), _here(allowed), _packing()

    def check(asked: Any, *, is_address_fine: bool) -> None:
        """`is_address_fine`: nobody is asked about an address."""
        host = host_of(item(asked, 0) if is_a(asked, tuple) else asked)
        if not here(host) and not (is_address_fine and packed(host)):
            refuse(host)

    return check


def _making(refuse: Refuse, usual: tuple[int, ...]) -> Callable[[object, Any], None]:
    """Return the check of the family and the type of a new socket. `usual`: the families that are allowed."""
    is_a, internet, raw = isinstance, _INTERNET, int(socket.SOCK_RAW)

    def check(family: object, type_: Any) -> None:
        if family not in usual:
            refuse(f"anything from a socket of the family {family}")
        elif family in internet and is_a(type_, int) and type_ & 0xF == raw:
            refuse("anything from a raw socket")

    return check


def _host() -> Callable[[Any], str]:
    """Return a function that gives a host, a name or a path as plain text, whatever methods a subclass has."""
    is_a, text = isinstance, str.__str__

    def host_of(given: Any) -> str:
        if is_a(given, (bytes, bytearray)):
            return bytes(given).decode("ascii", "replace")
        return text(given) if is_a(given, str) else ""

    return host_of


def _here(allowed: frozenset[str]) -> Callable[[str], bool]:
    """Return a function that says whether a host is this machine or is allowed. It looks no name up.

    This machine is localhost, a loopback address or the unspecified one.
    """
    packed_of, mapped, nowhere, itself = _packing(), _MAPPED, (bytes(4), bytes(16)), bytes(15) + b"\x01"

    def here(host: str) -> bool:
        if host in ("localhost", "") or host in allowed:
            return True
        packed = packed_of(host)
        if packed[:12] == mapped:
            packed = packed[12:]
        return packed in nowhere or packed == itself or (len(packed) == 4 and packed[0] == 127)

    return here


def _packing() -> Callable[[str], bytes]:
    """Return a function that gives the 4 or 16 bytes of an address; none for a name."""
    to_bytes, internet, errors = _socket.inet_pton, _INTERNET, (OSError, ValueError)

    def packed(host: str) -> bytes:
        for family in internet:
            try:
                return to_bytes(family, host.partition("%")[0])
            except errors:
                continue
        return b""

    return packed

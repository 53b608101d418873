"""Says where an IP packet wanted to go: the protocol, the address, the port, and the name a DNS query asks for."""

from __future__ import annotations

import ipaddress
import struct

_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58
_NAMES = {_TCP: "TCP", _UDP: "UDP", _ICMP: "ICMP", _ICMP6: "ICMP"}
_HOP_BY_HOP = 0  # a header of IPv6 that stands before another one
# The kernel sends these by itself when an IPv6 interface comes up: solicitations, and reports of multicast groups.
_FROM_KERNEL = (133, 134, 135, 136, 143)
_DNS = 53


def destination(packet: bytes) -> str | None:
    """Return where a packet wanted to go, such as "UDP 192.0.2.53:53 (the name hub.example)".

    None if the kernel sent it by itself, or if it is no IP packet.
    """
    try:
        return _of_ipv4(packet) if packet[0] >> 4 == 4 else _of_ipv6(packet) if packet[0] >> 4 == 6 else None
    except (IndexError, struct.error):
        return None


def _of_ipv4(packet: bytes) -> str:
    length = (packet[0] & 15) * 4
    return _described(packet[9], str(ipaddress.IPv4Address(packet[16:20])), packet[length:])


def _of_ipv6(packet: bytes) -> str | None:
    protocol, payload = packet[6], packet[40:]
    if protocol == _HOP_BY_HOP:
        protocol, payload = payload[0], payload[8 * (payload[1] + 1) :]
    if protocol == _ICMP6 and payload[0] in _FROM_KERNEL:
        return None
    return _described(protocol, f"[{ipaddress.IPv6Address(packet[24:40])}]", payload)


def _described(protocol: int, address: str, payload: bytes) -> str:
    name = _NAMES.get(protocol, f"protocol {protocol}")
    if protocol not in (_TCP, _UDP):
        return f"{name} {address.strip('[]')}"
    port: int = struct.unpack_from("!H", payload, 2)[0]
    asked = _name(payload[20:]) if (protocol, port) == (_UDP, _DNS) else ""
    return f"{name} {address}:{port}" + (f" (the name {asked})" if asked else "")


def _name(question: bytes) -> str:
    """Return the name in a DNS question: labels with their lengths before them, and a zero at the end.

    Anything may be sent to the port of DNS. The name of what is no question is "".
    """
    labels = []
    try:
        while length := question[0]:
            labels.append(question[1 : 1 + length].decode("ascii", errors="replace"))
            question = question[1 + length :]
    except IndexError:
        return ""
    return ".".join(labels)

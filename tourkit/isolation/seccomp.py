"""Filters system calls of this process and of everything that it starts (seccomp(2)). Linux on x86-64 and ARM64 only.

A filter sees the numbers of a call, and no memory: it can refuse a kind of socket, but not an address. It cannot be
removed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from collections.abc import Collection
from dataclasses import dataclass

from tourkit.errors import LocalError

_SET_NO_NEW_PRIVS = 38  # prctl(2): without it only root may set a filter
_SET_FILTER = 1
_ALL_THREADS, _SPEC_ALLOW = 1, 4  # the second: memory accesses stay as fast as without a filter
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of classic BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data; the last is little-endian
_EPERM, _EACCES = 1, 13


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of a processor's calls. `foreign`: from this number on they are of another ABI; 0 if there is none.

    `others`: calls that lead to sockets without socket(2), or back into another network namespace.
    """

    architecture: int
    seccomp: int
    socket: int
    others: tuple[int, ...]
    foreign: int = 0


# others: io_uring_setup, which makes and connects sockets itself; setns. The other ABI of x86-64 is x32.
_MACHINES = {
    "x86_64": _Machine(0xC000003E, seccomp=317, socket=41, others=(425, 308), foreign=0x40000000),
    "aarch64": _Machine(0xC00000B7, seccomp=277, socket=198, others=(425, 268)),
}

# Unix sockets alone. Nothing that leaves the machine, and no other service of the kernel.
LOCAL = (int(getattr(socket, "AF_UNIX", 1)),)
# What a network namespace separates. AF_VSOCK, which reaches the host of a virtual machine, is in no namespace.
SEPARATED = (*LOCAL, int(socket.AF_INET), int(socket.AF_INET6), int(getattr(socket, "AF_NETLINK", 16)))


def refusal() -> str:
    """Return why this system has no filters for us; "" if it has them."""
    if sys.platform != "linux":
        return f"filters of system calls are a feature of Linux, and this is {sys.platform}"
    if platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return f"there is no filter of system calls for {platform.machine()}"
    return ""


def allow(families: Collection[int]) -> None:
    """Let this process make sockets of these families alone, and no calls of foreign ABIs. It holds for all threads.

    Other sockets get EACCES, other refused calls EPERM. Raises LocalError if the system refuses the filter.
    """
    if why := refusal():
        raise LocalError(why)
    machine = _MACHINES[platform.machine()]
    code = _program(machine, families)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    number, flags = ctypes.c_long(machine.seccomp), ctypes.c_ulong(_ALL_THREADS | _SPEC_ALLOW)
    zero = ctypes.c_ulong(0)
    if (
        libc.prctl(_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0
        or libc.syscall(number, ctypes.c_ulong(_SET_FILTER), flags, ctypes.c_char_p(program)) != 0
    ):
        raise LocalError(f"this system allows no filter of system calls ({os.strerror(ctypes.get_errno())})")


def _program(machine: _Machine, families: Collection[int]) -> bytes:
    """Return the filter. A comparison jumps over the next instruction if it does not hold."""

    def refuse_if(comparison: int, value: int, errno: int) -> list[tuple[int, int, int, int]]:
        return [(comparison, 0, 1, value), (_RETURN, 0, 0, _ERRNO | errno)]

    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, machine.architecture), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if machine.foreign:
        code += refuse_if(_AT_LEAST, machine.foreign, _EPERM)
    for number in machine.others:
        code += refuse_if(_EQUAL, number, _EPERM)
    code += [(_EQUAL, 1, 0, machine.socket), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in families:
        code += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    code += [(_RETURN, 0, 0, _ERRNO | _EACCES)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

"""Run a command in its own network namespace, which has only loopback: `netless.py COMMAND…`.

Exits with 77 if this system does not allow it (no user namespaces).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

NOT_ALLOWED = 77
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        sys.stderr.write(f"no namespace: {os.strerror(ctypes.get_errno())}\n")
        sys.exit(NOT_ALLOWED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

"""Run a command beside a drive that is full and mounted with noexec: `full_disk.py FOLDER COMMAND…`.

The drive is a small tmpfs at FOLDER, which only the command sees. Exits with 77 if this system does not allow it (no
user namespaces).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

NOT_ALLOWED = 77
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOEXEC, _MS_REC, _MS_PRIVATE = 0x8, 0x4000, 0x40000
_SIZE = 256 * 1024  # bytes


def main() -> None:
    folder, *command = sys.argv[1:]
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        refuse("namespace")
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as exc:
        refuse(f"user ({exc})")
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        refuse("private mounts")
    if libc.mount(b"none", folder.encode(), b"tmpfs", _MS_NOEXEC, f"size={_SIZE}".encode()) != 0:
        refuse("tmpfs")
    with contextlib.suppress(OSError), (Path(folder) / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.execvp(command[0], command)


def refuse(what: str) -> None:
    sys.stderr.write(f"no {what}: {os.strerror(ctypes.get_errno())}\n")
    sys.exit(NOT_ALLOWED)


if __name__ == "__main__":
    main()

"""Moves this process into a user, a network and a mount namespace of its own, and mounts inside them. Linux only.

Everything that the process starts later is inside too. There is no way back. The process must have one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.isolation import netlink

_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000  # flags of unshare(2)
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 32, 4096, 16384, 1 << 18  # flags of mount(2)
_NO_PROGRAMS = 2 | 4 | 8  # nosuid, nodev, noexec
# Flags that a mount in a user namespace must keep: nosuid, nodev, noexec, noatime, nodiratime, and relatime, whose
# number in statvfs(2) is another one than in mount(2).
_KEPT = 2 | 4 | 8 | 1024 | 2048
_STATVFS_RELATIME, _RELATIME = 4096, 1 << 21


def enter() -> None:
    """Move this process into new namespaces. The network has only loopback, which is up. The user stays the same.

    Raises LocalError if the system does not allow it. The process may then be without a network or without rights, so
    try it with `trial.refusal` first.
    """
    _check_system()
    if not _enter_user(_NEWNET | _NEWNS) and (os.geteuid() != 0 or not _unshare(_NEWNET | _NEWNS)):
        raise _refused()  # the system's own root needs no user namespace
    _set_up(mounts=True)


def enter_network(*, mounts: bool = False) -> None:
    """Move this process into a new network namespace with only loopback. Its rights to files and devices stay the same.

    `mounts`: into a mount namespace too. It enters a user namespace only if it has no right to the others. There, root
    would lose its rights to files of other users. Raises LocalError as `enter` does.
    """
    _check_system()
    flags = _NEWNET | (_NEWNS if mounts else 0)
    if not _unshare(flags) and not _enter_user(flags):
        raise _refused()
    _set_up(mounts=mounts)


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show the file or folder `source` at `target`, which must exist and be of the same kind. Raises LocalError."""
    _mount(source, target, _BIND | _REC)
    if read_only:
        has = os.statvfs(target).f_flag
        kept = (has & _KEPT) | (_RELATIME if has & _STATVFS_RELATIME else 0)
        try:
            _mount(None, target, _BIND | _REMOUNT | _RDONLY | kept)
        except LocalError:
            unmount(target)
            raise


def hide(folder: Path) -> None:
    """Show an empty folder at a place. Raises LocalError."""
    if _libc().mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(_RDONLY | _NO_PROGRAMS), None) != 0:
        raise LocalError(f"{folder}: cannot be hidden ({os.strerror(ctypes.get_errno())})")


def unmount(target: Path) -> None:
    """Undo a bind. Raises LocalError."""
    if _libc().umount2(os.fsencode(target), 2) != 0:  # MNT_DETACH: also while a process still uses it
        raise LocalError(f"{target}: cannot be unmounted ({os.strerror(ctypes.get_errno())})")


def _check_system() -> None:
    if sys.platform != "linux":
        raise LocalError(f"namespaces are a feature of Linux, and this is {sys.platform}")


def _refused() -> LocalError:
    return LocalError(f"this system allows no namespaces ({os.strerror(ctypes.get_errno())})")


def _enter_user(flags: int) -> bool:
    """Enter a user namespace together with the others. Return False if the system refuses it; then nothing changed."""
    user, group = os.geteuid(), os.getegid()
    if not _unshare(_NEWUSER | flags):
        return False
    with contextlib.suppress(FileNotFoundError):  # kernels before 3.19 need no such file
        _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    return True


def _set_up(*, mounts: bool) -> None:
    if mounts:
        _mount(None, Path("/"), _REC | _PRIVATE)  # else mounts made here would be seen outside
    netlink.set_up("lo")


def _unshare(flags: int) -> bool:
    return int(_libc().unshare(flags)) == 0


def _mount(source: Path | None, target: Path, flags: int) -> None:
    from_ = None if source is None else os.fsencode(source)
    if _libc().mount(from_, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        raise LocalError(f"{target}: cannot be mounted ({os.strerror(ctypes.get_errno())})")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise LocalError(f"{path}: cannot be written ({exc.strerror})") from exc

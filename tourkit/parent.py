"""Ties a process to its parent: the system kills it when the parent ends, even if it is stopped or hangs."""

from __future__ import annotations

import ctypes
import signal
import sys

from tourkit.errors import LocalError

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Let Linux kill this process as soon as the thread that started it ends. Elsewhere this does nothing.

    Call it after the start of a program and after every change of user or of namespace: both forget the setting. The
    parent may have ended before the call, so check afterwards that it is there. Raises LocalError.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) != 0:
        raise LocalError(f"prctl: this process cannot be tied to its parent (errno {ctypes.get_errno()})")

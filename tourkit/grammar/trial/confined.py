"""What a process of the trial takes upon itself: limits, and an end with its parent. Linux alone has all of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from tourkit.grammar.own_memory import address_space
from tourkit.grammar.trial.jobs import Limits
from tourkit.parent import end_with_parent

_SET_DUMPABLE = 4  # of prctl(2)
_THREAD_STACK = 2 * 2**20  # bytes; glibc's for a thread if the main thread's stack has no limit
_FIRST_TO_END = b"900"  # of 1000: if the system runs out of memory, it ends these processes before the worker
_LOWEST = 19


def settle() -> None:
    """Prepare this process for its work: no core dump, no debugger, and the first to end when memory is short.

    Ctrl-C is for the worker. This process ends with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed in every container; it only changes who is ended first
            Path("/proc/self/oom_score_adj").write_bytes(_FIRST_TO_END)
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)  # a core pattern that starts a program ignores RLIMIT_CORE


def end_with(parent: int) -> None:
    """End this process as soon as its parent has ended. `parent`: its id."""
    end_with_parent()
    if sys.platform == "linux" and os.getppid() != parent:  # it ended before the call
        os._exit(1)


def confine(limits: Limits) -> None:
    """Put a child under the limits of memory and stack. The stack is half of that of a thread of the worker.

    A worker compiles grammars and computes masks in ordinary threads. Their stack has the size of the soft limit that
    the worker was started with, and this process was started with the same.
    """
    if sys.platform != "linux":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    thread = _THREAD_STACK if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_STACK, (thread // 2, hard))
    room = address_space() + limits.memory
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def limit_processor(limits: Limits) -> None:
    """End this process if it uses far more processor time than a job may: for when nobody watches it."""
    if sys.platform == "win32":
        return
    import resource

    seconds = int(time.process_time() + limits.seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def slow_down(pid: int) -> None:
    """Give a process the lowest priority. It keeps it to its end. An ended process is no error."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _LOWEST)

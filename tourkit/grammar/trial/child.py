"""A forked child of the trial process: it waits for jobs and does them under limits."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from tourkit.grammar.own_memory import resident
from tourkit.grammar.trial.confined import confine, end_with, limit_processor
from tourkit.grammar.trial.frames import LENGTH, Incoming, framed, message
from tourkit.grammar.trial.jobs import MIB, Jobs, Limits

if TYPE_CHECKING:
    from resource import struct_rusage

    from tourkit.grammar.trial.jobs import Job

_PROCESS_CLOCK = 2  # of Linux: with a process id it makes the id of that process's clock, as clock_getcpuclockid(3)
_MOST_GROWN = 16 * MIB  # a child that grew more is not used again


class Child:
    """One child, as the trial process sees it."""

    def __init__(self, jobs: Jobs, limits: Limits) -> None:
        self._socket, theirs = socket.socketpair()
        self._incoming = Incoming()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _live(theirs, jobs, limits, parent)
        theirs.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._socket.fileno() < 0

    def give(self, job: bytes) -> None:
        """Send a job to the child, which must have none."""
        self._socket.sendall(framed(job))

    def arrived(self) -> tuple[list[bytes], bool]:
        """Read what the child sent. Return the endings, as JSON text, and whether the child has ended."""
        try:
            read = self._socket.recv(1 << 20)
        except ConnectionError:
            read = b""
        return list(self._incoming.take(read)), not read

    def processor_seconds(self) -> float:
        """Return the seconds of processor time that the child has used."""
        return time.clock_gettime((~self.pid << 3) | _PROCESS_CLOCK)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int, struct_rusage]:
        """Kill the child if it still runs. Return its status (a negative signal, or its exit code) and what it used."""
        os.kill(self.pid, signal.SIGKILL)  # it is not reaped yet, so the id is still its own
        self._socket.close()
        _, status, used = os.wait4(self.pid, 0)
        return os.waitstatus_to_exitcode(status), used


def _live(sock: socket.socket, jobs: Jobs, limits: Limits, parent: int) -> None:
    """Do jobs in the child until the trial process ends; never return."""
    try:
        end_with(parent)
        nothing = os.open(os.devnull, os.O_RDWR)
        for inherited in (0, 1, 2):  # a library that aborts writes about it, at any length
            os.dup2(nothing, inherited)
        confine(limits)
        _do_jobs(sock, jobs, limits)
    finally:
        os._exit(1)


def _do_jobs(sock: socket.socket, jobs: Jobs, limits: Limits) -> None:
    jobs.warm_up()  # memory that is shared with the parent is copied when it is written: do it before a job waits
    size = resident()
    while True:
        head = _exactly(sock, LENGTH)
        job: Job = json.loads(_exactly(sock, int.from_bytes(head, "big")))
        limit_processor(limits)
        sock.sendall(message(jobs.do(job)))
        if resident() - size > _MOST_GROWN:
            os._exit(0)


def _exactly(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes. End the process if there are no more: nobody asks any longer."""
    content = bytearray()
    while len(content) < size:
        read = sock.recv(min(size - len(content), 1 << 20))
        if not read:
            os._exit(0)
        content += read
    return bytes(content)

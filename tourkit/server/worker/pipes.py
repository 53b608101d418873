"""A worker's ends of its two pipes: the specification comes on stdin, the greeting and the reports go to stdout.

Both are used from their file descriptors. If a thread held the lock of sys.stdin or sys.stdout at the end of the
process, the interpreter would abort.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tourkit.generation import Activity
from tourkit.server.contract import Greeting, Report, WorkerSpec

_BLOCK = 65536  # bytes


class Pipes:
    """The pipes of this process. From its creation on, all other output goes to stderr."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._writing = threading.Lock()

    def spec(self) -> WorkerSpec:
        """Read the first line. Ends this process if the gateway has ended before it wrote the line."""
        line = b""
        while not line.endswith(b"\n"):
            block = os.read(0, _BLOCK)
            if not block:
                sys.exit("tourkit: a worker is started by the gateway: use `tourkit serve`")
            line += block
        return WorkerSpec.of_json(line)

    def end_if_gateway_is_gone(self) -> None:
        """End this process if the gateway has ended, after `end_with_parent`: no signal comes for what was before."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(0, 0)
            if poll.poll(0):  # the only events without a mask are errors and the closing of the other end
                sys.exit(0)

    def wait_for_end(self) -> None:
        """Wait until the gateway closes its end of stdin, or has ended."""
        while os.read(0, _BLOCK):
            pass

    def greet(self, greeting: Greeting) -> None:
        self._write(greeting.to_json())

    def report(self, report: Report) -> None:
        self._write(report.to_json())

    @contextlib.contextmanager
    def in_trial(self, request: str) -> Iterator[None]:
        """Tell the gateway that the constraint of a request is tried within the block.

        If this process dies meanwhile, the request is not asked again. `request`: the number in REQUEST_HEADER.
        """
        self.report(Report(trial=request))
        try:
            yield
        finally:
            self.report(Report(trial=request, ends=True))

    def start_beats(
        self, period: float, activity: Callable[[], Activity], ask_loop: Callable[[Callable[[], None]], object]
    ) -> None:
        """Send a beat every `period` seconds from a thread of its own, until this process ends.

        `ask_loop` calls a function in the event loop (`call_soon_threadsafe`), so a loop that hangs is noticed too.
        """
        threading.Thread(target=self._beat, args=(period, activity, ask_loop), name="tourkit-beat", daemon=True).start()

    def _beat(
        self, period: float, activity: Callable[[], Activity], ask_loop: Callable[[Callable[[], None]], object]
    ) -> None:
        answered = threading.Event()
        answered.set()
        asked = 0.0
        while True:
            wait = 0.0 if answered.is_set() else time.monotonic() - asked
            self.report(Report(activity(), loop_wait=wait))
            if answered.is_set():
                answered.clear()
                asked = time.monotonic()
                try:
                    ask_loop(answered.set)
                except RuntimeError:  # the loop is closed: this process ends
                    return
            time.sleep(period)

    def _write(self, line: bytes) -> None:
        with self._writing, contextlib.suppress(BrokenPipeError):  # the gateway has ended, so this process ends too
            while line:
                line = line[os.write(self._out, line) :]

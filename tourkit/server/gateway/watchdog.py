"""The watch over a worker that has loaded: it reads the worker's reports and says when the worker must be ended.

A worker hangs if its beats stop (a stopped process, a thread that holds Python's lock for ever), if one call of its
model takes far too long, or if its event loop answers no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tourkit.server.contract import Report

_PARTS = 3  # of the time without a beat; a worker counts as hung after the first part, and is ended after the last
_MANY_TIMES = 10  # as long as the measured rate lets expect: then a call hangs


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """How long the gateway waits for a worker, in seconds.

    `beat`: between two beats. `silence`: without a beat. `call`: for a call of the model, at least. `first_call`: for a
    call before any was measured. `asked_again`: for a request whose worker died, until it is asked again; and for any
    request while a worker dies again and again; with `silence` it is less than 30 s. `alone`: how long a request that
    is asked again has the worker for itself. `pause` and `longest_pause`: before a worker that died twice in a row is
    started again; each pause is twice as long as the last.
    """

    beat: float = 1.0
    silence: float = 15.0
    call: float = 60.0
    first_call: float = 600.0
    asked_again: float = 14.0
    alone: float = 20.0
    pause: float = 1.0
    longest_pause: float = 60.0

    def before_start(self, deaths: int) -> float:
        """Return the pause after this many deaths in a row. There is none after the first."""
        return 0.0 if deaths < 2 else min(self.pause * 2.0 ** min(deaths - 2, 30), self.longest_pause)

    def hanging(self, report: Report) -> str:
        """Return what hangs, as a report shows it; empty if nothing does."""
        busy = report.activity
        expected = busy.tokens / busy.rate if busy.rate else 0.0
        limit = max(self.call, _MANY_TIMES * expected) if busy.rate or not busy.tokens else self.first_call
        if busy.seconds > limit:
            about = f" over {busy.tokens} tokens" if busy.tokens else ""
            usual = f"; at the measured {busy.rate:.0f} tokens/s it takes {expected:.1f} s" if expected else ""
            return f"its engine hangs: a call{about} takes {busy.seconds:.0f} s{usual}"
        if report.loop_wait > self.call:
            return f"its event loop hangs: it gave no sign for {report.loop_wait:.0f} s"
        return ""


TIMEOUTS = WorkerTimeouts()


class Watchdog:
    """Follows one process. `trials`: the numbers of the requests whose constraints it tries now.

    `on_silence` is called with True when beats are missing, and with False when they come again.
    """

    def __init__(
        self, lines: asyncio.StreamReader, timeouts: WorkerTimeouts, on_silence: Callable[[bool], Awaitable[None]]
    ) -> None:
        self.trials: set[str] = set()
        self._lines = lines
        self._timeouts = timeouts
        self._on_silence = on_silence

    async def watch(self) -> str:
        """Read reports. Return why the process must be ended, or an empty text when its stdout is closed."""
        silent_parts = 0
        while silent_parts < _PARTS:
            # The waiting is cut into parts, because this process may have been stopped itself (Ctrl-Z): then the first
            # part ends at once, although beats are waiting in the pipe. They are read in the next one.
            try:
                async with asyncio.timeout(self._timeouts.silence / _PARTS):
                    line = await self._lines.readline()
            except TimeoutError:
                silent_parts += 1
                if silent_parts == 1:
                    await self._on_silence(True)
                continue
            except ValueError:
                return "it wrote a line that is too long for a report"
            if not line:
                return ""
            if silent_parts:
                silent_parts = 0
                await self._on_silence(False)
            if why := self._judge(line):
                return why
        return f"it hangs: no beat for {self._timeouts.silence:.0f} s"

    async def drain(self) -> None:
        """Read what a process that has ended left in its pipe: it may have been in a trial."""
        try:
            while line := await self._lines.readline():
                self._judge(line)
        except ValueError:
            return  # no report has such a line

    def _judge(self, line: bytes) -> str:
        """Take in a report. Return why the process must be ended; empty if it may go on."""
        try:
            report = Report.of_json(line)
        except (ValueError, TypeError, KeyError):
            return "it wrote a line that is no report"
        if not report.trial:
            return self._timeouts.hanging(report)
        if report.ends:
            self.trials.discard(report.trial)
        else:
            self.trials.add(report.trial)
        return ""

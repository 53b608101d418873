"""Progress of long work on stderr: tqdm's bar on a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from tourkit.terminal import visible
from tourkit.units import size_text

_COLUMNS = 80  # of a terminal whose width is not known


class Progress:
    """Counts towards `total`; `unit` is "B" for bytes, shown as MiB and GiB, or a word such as "documents".

    Thread-safe. Use it as a context manager: the last line then always ends with a newline.
    """

    def __init__(self, label: str, total: int = 0, unit: str = "B", out: TextIO | None = None) -> None:
        self._label, self._unit = label, unit
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._earlier = 0
        self._tenths = 0
        self._bar: Any = None
        self.total = total
        self.done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()

    def begin(self, total: int, earlier: int = 0) -> None:
        """Set the total. `earlier`: what an earlier run did; it counts as done but not for the rate."""
        with self._lock:
            self.total = total
            self.done = self._earlier = earlier
            self._started = time.monotonic()
            self._show(0)

    def advance(self, n: int) -> None:
        """Count `n` more; a negative number takes back what has to be done again."""
        with self._lock:
            self.done += n
            self._show(n)

    def note(self, text: str) -> None:
        """Print a line of its own, such as the reason of a repeated attempt. Control characters are made visible."""
        text = visible(text)
        with self._lock:
            if self._bar is not None:
                self._bar.write(text, file=self._out)
            else:
                self._out.write(f"{text}\n")
            self._out.flush()

    def _show(self, n: int) -> None:
        """Draw the bar after a step of `n`, or print a line if another tenth is done."""
        if self._bar is not None:
            self._bar.update(n)
            return
        if self._terminal:
            self._bar = self._new_bar()
            return
        before, self._tenths = self._tenths, self.done * 10 // self.total if self.total else 0
        if self._tenths > before:
            elapsed = max(time.monotonic() - self._started, 1e-6)
            self._out.write(f"{self._head()}  {self._tail(elapsed, (self.done - self._earlier) / elapsed)}\n")
            self._out.flush()

    def _new_bar(self) -> Any:
        """Make a bar that is drawn at once. What is done before it is made does not count for the rate."""
        from tqdm import tqdm

        progress = self

        class Bar(tqdm):  # type: ignore[misc]  # has no types
            monitor_interval = 0  # no thread of its own: `miniters=0` looks at the clock in every step

            @property
            def format_dict(self) -> dict[str, Any]:
                """What is shown, in our units: tqdm's rate is in powers of 1000 beside sizes in powers of 1024."""
                shown: dict[str, Any] = super().format_dict
                elapsed = shown["elapsed"]
                rate = shown["rate"] or (self.n - self.initial) / max(elapsed, 1e-6)
                total = progress.total
                form = "{desc} |{bar}| {tail}" if total else "{desc} {tail}"
                own = {"n": min(self.n, total), "total": total, "ncols": _columns(progress._out), "bar_format": form}
                return shown | own | {"prefix": progress._head(), "tail": progress._tail(elapsed, rate)}

        Bar.set_lock(threading.RLock())  # tqdm's own is one between processes
        return Bar(initial=self.done, miniters=0, file=self._out, ncols=_COLUMNS, nrows=2)

    def _head(self) -> str:
        if not self.total:
            return self._label
        return f"{self._label} {self.done * 100 // self.total:3d} %"

    def _tail(self, elapsed: float, rate: float) -> str:
        """Counts, time and, once it is known, the rate; `elapsed` in seconds, `rate` in units a second."""
        show: Callable[[int], str] = size_text if self._unit == "B" else str
        parts = [show(self.done)]
        if self.total:
            left = max(self.total - self.done, 0) / rate if rate > 0 else 0
            parts = [f"{show(self.done)} of {show(self.total)}", f"{_clock(left)} left" if left else _clock(elapsed)]
        if self._unit == "B":
            parts.append(f"{size_text(int(max(rate, 0)))}/s")
        elif rate > 0:
            parts.append(_rate_text(rate, self._unit))
        return "  ".join(parts)


def _rate_text(rate: float, unit: str) -> str:
    """A rate in `unit` a second as people say it: 3.2 documents/s, 12 documents/min, 5 documents/h."""
    if rate >= 1:
        return f"{rate:.1f} {unit}/s"
    if rate * 60 >= 1:
        return f"{rate * 60:.0f} {unit}/min"
    hourly = rate * 3600
    return f"{hourly:.0f} {unit}/h" if hourly >= 1 else f"{hourly:.1f} {unit}/h"


def _columns(out: TextIO) -> int:
    """Columns of a line that leaves the last one free, so that the terminal does not wrap."""
    try:
        return (os.get_terminal_size(out.fileno()).columns or _COLUMNS) - 1
    except OSError:
        return _COLUMNS - 1


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

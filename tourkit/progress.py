"""Progress of long work on stderr: one line that is redrawn on a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from tourkit.units import size_text

_REDRAW_SECONDS = 0.1


class Progress:
    """Counts towards `total`; `unit` is "B" for bytes, shown as MiB and GiB, or a word such as "documents".

    Thread-safe. Use as a context manager, so that the last line is ended whatever happens.
    """

    def __init__(self, label: str, total: int = 0, unit: str = "B", out: TextIO | None = None) -> None:
        self._label, self._unit = label, unit
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._tenths = 0
        self._open = False
        self.total = total
        self.done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            if self._terminal and self._open:
                self._draw()
                self._out.write("\n")
                self._out.flush()

    def advance(self, n: int) -> None:
        with self._lock:
            self.done += n
            if self._terminal:
                now = time.monotonic()
                if now - self._drawn >= _REDRAW_SECONDS:
                    self._drawn = now
                    self._draw()
            elif self.total and self.done * 10 // self.total > self._tenths:
                self._tenths = self.done * 10 // self.total
                self._out.write(f"{self._line()}\n")
                self._out.flush()

    def note(self, text: str) -> None:
        """A line of its own, such as why something is tried again."""
        with self._lock:
            self._out.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
            self._out.flush()

    def _draw(self) -> None:
        self._open = True
        self._out.write(f"\r\x1b[K{self._line()}")
        self._out.flush()

    def _line(self) -> str:
        show: Callable[[int], str] = size_text if self._unit == "B" else str
        elapsed = max(time.monotonic() - self._started, 1e-6)
        rate = self.done / elapsed
        parts = [f"{self._label} {show(self.done)}"]
        if self.total:
            left = max(self.total - self.done, 0) / rate if rate > 0 else 0
            parts = [f"{self._label} {self.done * 100 // self.total:3d} %  {show(self.done)} of {show(self.total)}"]
            parts.append(f"{_clock(left)} left" if left else _clock(elapsed))
        parts.append(f"{size_text(int(rate))}/s" if self._unit == "B" else f"{rate:.1f} {self._unit}/s")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

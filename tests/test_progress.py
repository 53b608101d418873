"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TextIO

import pytest

from tourkit.progress import Progress

MIB = 1 << 20


class Terminal:
    """A real terminal of 100 columns. Write to `out`; `text` returns the output at the other end."""

    def __init__(self, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.out: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # on Linux, the end of a terminal is an OSError
            while data := os.read(self._master, 4096):
                self._read += data

    def close(self) -> None:
        self.out.close()
        self._reader.join()
        os.close(self._master)

    def text(self) -> str:
        """Close the terminal, and return everything that was written."""
        if not self.out.closed:
            self.close()
            self._text = self._read.decode().replace("\r\n", "\n")
        return self._text

    def screen(self) -> list[str]:
        """Return the lines as they stay on the screen: text after a carriage return overwrites the line."""
        lines = []
        for line in self.text().split("\n"):
            shown = ""
            for piece in line.split("\r"):
                shown = piece + shown[len(piece) :]
            lines.append(shown.rstrip())
        return lines


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.text()


# ---- without a terminal ------------------------------------------------------------------------------


def test_progress_elsewhere_than_a_terminal_is_a_plain_line_every_tenth() -> None:
    out = io.StringIO()
    with Progress("verify", 1000, out=out) as bar:
        for _ in range(100):
            bar.advance(10)

    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("verify 100 %")
    assert "\r" not in out.getvalue()


def test_a_plain_line_tells_label_percent_sizes_time_and_rate() -> None:
    out = io.StringIO()
    with Progress("prefetch", 10 * MIB, out=out) as bar:
        bar.advance(5 * MIB)
        bar.note("HTTP 503, again in 2 s")

    first, second = out.getvalue().splitlines()
    assert re.fullmatch(r"prefetch  50 %  5\.0 MiB of 10\.0 MiB  \d+:\d\d(?: left)?  \d+\.\d [KMG]iB/s", first)
    assert second == "HTTP 503, again in 2 s"


@pytest.mark.starts
def test_plain_lines_import_no_tqdm() -> None:
    code = "import io, sys\nfrom tourkit.progress import Progress\n"
    code += "with Progress('x', 10, out=io.StringIO()) as bar: bar.advance(10)\nprint('tqdm' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_what_has_to_be_done_again_is_taken_back_and_the_last_line_is_100_percent() -> None:
    out = io.StringIO()
    with Progress("prefetch", 10 * MIB, out=out) as bar:
        bar.advance(10 * MIB)
        bar.advance(-4 * MIB)
        for _ in range(4):
            bar.advance(MIB)

    percents = [re.findall(r"(\d+) %", line)[0] for line in out.getvalue().splitlines()]
    assert percents == ["100", "70", "80", "90", "100"]


def test_what_an_earlier_run_did_counts_as_done_and_not_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tourkit.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    out = io.StringIO()
    with Progress("run", unit="documents", out=out) as bar:
        bar.begin(2000, 1000)
        now[0] += 20
        bar.advance(200)

    first, second = out.getvalue().splitlines()
    assert first == "run  50 %  1000 of 2000  0:00"
    assert second == "run  60 %  1200 of 2000  1:20 left  10.0 documents/s"


@pytest.mark.parametrize(
    ("done", "seconds", "rate"),
    [
        (32, 10, "3.2 documents/s"),
        (10, 10, "1.0 documents/s"),
        (9, 10, "54 documents/min"),
        (1, 5, "12 documents/min"),
        (1, 60, "1 documents/min"),
        (1, 720, "5 documents/h"),
        (1, 7200, "0.5 documents/h"),
    ],
)
def test_a_slow_rate_is_per_minute_or_per_hour(
    monkeypatch: pytest.MonkeyPatch, done: int, seconds: int, rate: str
) -> None:
    now = [0.0]
    monkeypatch.setattr("tourkit.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    out = io.StringIO()
    with Progress("run", done, "documents", out=out) as bar:
        now[0] += seconds
        bar.advance(done)

    assert out.getvalue().rstrip().endswith(f"  {rate}")


# ---- on a terminal -----------------------------------------------------------------------------------


def test_progress_on_a_terminal_is_one_line_that_ends(terminal: Terminal) -> None:
    with Progress("run", 4, "documents", out=terminal.out) as bar:
        bar.advance(4)
        bar.note("HTTP 503, again in 2 s")

    assert terminal.text().endswith("\n")
    assert "HTTP 503, again in 2 s\n" in terminal.text()
    assert "4 of 4" in terminal.text()


def test_a_bar_fills_the_line_and_tells_label_percent_sizes_time_and_rate(terminal: Terminal) -> None:
    with Progress("prefetch", 400 * MIB, out=terminal.out) as bar:
        for _ in range(300):
            bar.advance(MIB)

    first = terminal.text().split("\r")[1]
    assert first.startswith("prefetch   0 % |")
    [line, end] = terminal.screen()
    assert end == ""
    assert len(line) == 99, "the last column stays free"
    assert re.fullmatch(
        r"prefetch  75 % \|█+. *\| 300\.0 MiB of 400\.0 MiB  \d+:\d\d(?: left)?  \d+\.\d [MG]iB/s", line
    )


def test_documents_are_counted_as_they_are(terminal: Terminal) -> None:
    with Progress("json_extraction", unit="documents", out=terminal.out) as bar:
        bar.total = 12
        for _ in range(12):
            bar.advance(1)

    [line, _] = terminal.screen()
    assert re.fullmatch(r"json_extraction 100 % \|█+\| 12 of 12  \d+:\d\d  \d+\.\d documents/s", line)


def test_a_note_stands_on_a_line_of_its_own_and_the_bar_goes_on_below(terminal: Terminal) -> None:
    with Progress("prefetch", 4 * MIB, out=terminal.out) as bar:
        bar.note("4.0 MiB in all, 4.0 MiB to fetch")
        bar.advance(MIB)
        bar.note("a.gguf: HTTP 503, again in 2 s")
        bar.advance(3 * MIB)

    first, second, line, end = terminal.screen()
    assert (first, second, end) == ("4.0 MiB in all, 4.0 MiB to fetch", "a.gguf: HTTP 503, again in 2 s", "")
    assert line.startswith("prefetch 100 % |")


def test_bytes_that_are_fetched_again_do_not_break_the_bar(terminal: Terminal) -> None:
    with Progress("prefetch", 2 * MIB, out=terminal.out) as bar:
        for _ in range(3):
            bar.advance(MIB)

    [line, _] = terminal.screen()
    assert re.match(r"prefetch 150 % \|█+\| 3\.0 MiB of 2\.0 MiB  ", line)


def test_a_bar_that_goes_back_ends_at_100_percent(terminal: Terminal) -> None:
    with Progress("prefetch", 2 * MIB, out=terminal.out) as bar:
        for step in (1, 1, -1, 1):
            bar.advance(step * MIB)

    [line, _] = terminal.screen()
    assert re.match(r"prefetch 100 % \|█+\| 2\.0 MiB of 2\.0 MiB  ", line)


def test_a_resumed_run_has_no_rate_before_its_first_document(terminal: Terminal) -> None:
    with Progress("run", unit="documents", out=terminal.out) as bar:
        bar.begin(12, 6)

    [line, _] = terminal.screen()
    assert re.fullmatch(r"run  50 % \|█+. *\| 6 of 12  0:00", line)


def test_without_a_total_there_is_a_count_and_no_bar(terminal: Terminal) -> None:
    with Progress("verify", out=terminal.out) as bar:
        bar.advance(3 * MIB)

    [line, _] = terminal.screen()
    assert re.fullmatch(r"verify 3\.0 MiB  \S+ \S+/s", line)


def test_work_that_never_began_leaves_the_terminal_alone(terminal: Terminal) -> None:
    with Progress("verify", out=terminal.out):
        pass

    assert terminal.text() == ""


@pytest.mark.parametrize(("columns", "length"), [(0, 79), (40, 39)])
def test_a_terminal_that_is_narrow_or_tells_no_width_has_one_line_too(columns: int, length: int) -> None:
    terminal = Terminal(columns)
    with Progress("prefetch", 400 * MIB, out=terminal.out) as bar:
        bar.advance(MIB)

    [line, _] = terminal.screen()
    assert len(line) <= length
    assert line.startswith("prefetch   0 % |")


def test_an_error_ends_the_line_first(terminal: Terminal) -> None:
    def work() -> None:
        with Progress("verify", 10, out=terminal.out) as bar:
            bar.advance(5)
            raise KeyError

    with pytest.raises(KeyError):
        work()

    assert terminal.text().endswith("\n")


def test_threads_may_advance_at_once(terminal: Terminal) -> None:
    with Progress("prefetch", 8 * 100, out=terminal.out) as bar:
        threads = [threading.Thread(target=lambda: [bar.advance(1) for _ in range(100)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert bar.done == 800
    [line, _] = terminal.screen()
    assert line.startswith("prefetch 100 % |")

"""A template in a process of its own, for runs with a deadline.

A template may compute for minutes without letting another thread run. A thread cannot be ended then, but a process can.
`python -m tourkit.pipelines.child` is that process. It gets one JSON line with its settings, then one for each
document, and answers with one JSON line for each. What the template prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tourkit import offline
from tourkit.client import Client
from tourkit.errors import UsageError
from tourkit.pipelines.lines import Line
from tourkit.pipelines.record import Record, failure, record_of
from tourkit.pipelines.templates import load_template

_ENDED = "TemplateEnded"
_MARGIN = 1.0  # seconds between the deadline that a template gets and the run's: a record must be back before that


class Child:
    """The process of a template. Many threads may call `record`. If the process ends, the next call starts another.

    `ends`: when to give up waiting for the template to load, in seconds of the monotonic clock.
    """

    def __init__(self, path: Path, client: Client, concurrency: int, ends: float) -> None:
        self._settings = {
            "path": str(path),
            "client": client.settings() | {"ends": ends - min(_MARGIN, 0.1 * max(0.0, ends - time.monotonic()))},
            "concurrency": concurrency,
            "offline": offline.handed_down(),
        }
        self._ends = ends
        self._gate = threading.Lock()
        self._life: _Life | None = None

    def load(self) -> None:
        """Start the process and load the template. Return at the deadline too. Raises UsageError."""
        greeting = self._alive().greeting(self._ends)
        if greeting is not None and "error" in greeting:
            raise UsageError(str(greeting["error"]))

    def record(self, line: Line) -> Record:
        """Return the record of a line. Waits for the process without an end: the caller has the deadline."""
        return self._alive().record(line)

    def close(self) -> None:
        """End the process and everything that it started."""
        with self._gate:
            if self._life is not None:
                self._life.end()

    def _alive(self) -> _Life:
        with self._gate:
            if self._life is not None and self._life.ended:
                self._life.end()  # what it started may still run
                self._life = None
            if self._life is None:
                self._life = _Life(self._settings)
            return self._life


class _Life:
    """One process, from its start to its end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._waiting: dict[int, queue.SimpleQueue[Record | None]] = {}
        self._gate = threading.Lock()
        self._greetings: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tourkit.pipelines.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # it makes a process group, so that the children of a template end with it
        )
        self._send(settings)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def greeting(self, ends: float) -> Record | None:
        """Return the first answer: {} or {"error": …}; None if the process ended or `ends` has passed before it."""
        with contextlib.suppress(queue.Empty):
            return self._greetings.get(timeout=max(0.0, ends - time.monotonic()))
        return None

    def record(self, line: Line) -> Record:
        answer: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        with self._gate:
            if not self.ended:
                self._waiting[line.number] = answer
        if not self.ended and self._send({"number": line.number, "raw": line.raw.decode(), "id": line.id}):
            record = answer.get()
            if record is not None:
                return record
        code = self._process.wait()
        return failure(line, f"the process of the template ended with {_named(code)} in the middle of its work", _ENDED)

    def end(self) -> None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what is still in the buffer has no reader any more
                self._process.stdin.close()

    def _send(self, message: dict[str, Any]) -> bool:
        """Write one line. Return False if nobody reads it any more."""
        assert self._process.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._gate:
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed
            return False
        return True

    def _read(self) -> None:
        """Give out the answers until the process ends. Then nobody waits any more."""
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for data in answers:
                message = json.loads(data)
                if "number" not in message:
                    self._greetings.put(message)
                    continue
                with self._gate:
                    answer = self._waiting.pop(message["number"])
                answer.put(message["record"])
        with self._gate:
            self.ended = True
            left = list(self._waiting.values())
            self._waiting.clear()
        self._greetings.put(None)
        for answer in left:
            answer.put(None)


def _named(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"


# ---- the process -------------------------------------------------------------------------------------


def main() -> None:
    given, answers = _take_pipes()
    settings = json.loads(given.readline())
    if settings["offline"] is not None:
        offline.engage(**settings["offline"])
    try:
        template = load_template(Path(settings["path"]))
    except UsageError as exc:
        _answer(answers, {"error": str(exc)})
        return
    client = Client(**settings["client"])
    client.model = client.model or template.role
    _answer(answers, {})
    todo: queue.SimpleQueue[Line] = queue.SimpleQueue()
    gate = threading.Lock()

    def work() -> None:
        while True:
            line = todo.get()
            record = record_of(template.run, line, client)
            with gate:
                _answer(answers, {"number": line.number, "record": record})

    for _ in range(settings["concurrency"]):
        threading.Thread(target=work, daemon=True).start()
    for line in _lines(given):
        todo.put(line)
    os._exit(0)  # the parent has gone or is done; a template's own threads must not keep this process


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes from and to the parent. The template gets an empty stdin, and stderr as its stdout."""
    given, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return os.fdopen(given, "rb"), os.fdopen(answers, "wb")


def _lines(given: IO[bytes]) -> Iterator[Line]:
    for data in given:
        message = json.loads(data)
        yield Line(message["number"], message["raw"].encode(), message["id"], None)


def _answer(answers: IO[bytes], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()

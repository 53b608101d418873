"""Batch: run a template over a file of documents and write a record for each, in the same order.

This module handles order, failures, deadline and resuming. The template decides what to ask a model.
"""

import contextlib
import json
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tourkit.client import Client
from tourkit.errors import LocalError, UsageError, one_line
from tourkit.files import write_atomic
from tourkit.pipelines.child import Child
from tourkit.pipelines.journal import Journal, encoded
from tourkit.pipelines.journal import path_of as journal_of
from tourkit.pipelines.lines import Line, check_ids, read_lines
from tourkit.pipelines.preflight import check_input
from tourkit.pipelines.record import Record, failure, record_of
from tourkit.pipelines.templates import Template, template_file
from tourkit.pipelines.templates import load_template as load_template
from tourkit.units import counted

CONCURRENCY = 8  # documents at once
_TICK = 1.0  # seconds: Windows delivers Ctrl-C only between two waits

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Summary:
    """How the lines ended: total = ok + failed. `late` of the failed ones were not finished by the deadline. `resumed`
    of the good ones are from an earlier run. `commonest`: an error of the most frequent kind, which `times` lines have.
    `ungrounded`: values that the templates did not find in the texts, in `loose` lines.
    """

    total: int
    ok: int
    failed: int
    late: int
    resumed: int
    commonest: str = ""
    times: int = 0
    ungrounded: int = 0
    loose: int = 0

    def __str__(self) -> str:
        text = f"{counted(self.total, 'line')}: {self.ok} ok"
        if self.resumed:
            text += f" ({self.resumed} of them from an earlier run)"
        if self.failed:
            text += f", {self.failed} failed"
        if self.late:
            text += f" ({self.late} of them not finished by the deadline)"
        if self.times:
            text += f"; most often ({self.times} of {self.failed}): {self.commonest}"
        if self.ungrounded:
            values = "1 value is" if self.ungrounded == 1 else f"{self.ungrounded} values are"
            text += f'; {values} not in the text (in {counted(self.loose, "line")}: "ungrounded" lists them)'
        return text + ("; --resume runs the failed ones again" if self.failed else "")


def run_batch(
    name: str | Path,
    input_path: Path,
    output_path: Path,
    *,
    client: Client,
    concurrency: int = CONCURRENCY,
    resume: bool = False,
    force: bool = False,
    deadline_s: float | None = None,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Run template `name` over a JSON Lines file. Each input line gives exactly one output line, in order.

    If `client` has no model, the template's own role is asked. `deadline_s`: seconds from now; documents that are not
    finished then get a failed record. `on_progress` gets the number of finished lines and of all lines; its first call
    comes before any work. `say` gets lines for people. A line that fails becomes the record {"id", "ok": false,
    "error", "type"}.

    Raises UsageError (the template, the input as a whole, an output that exists) and LocalError (the disk). After
    KeyboardInterrupt the journal stays, for `resume`.
    """
    ends = None if deadline_s is None else time.monotonic() + deadline_s
    if concurrency < 1:
        raise UsageError(f"concurrency {concurrency}: it must be at least 1")
    template = template_file(name) if ends is not None else load_template(name)
    lines = read_lines(input_path)
    check_input(input_path, lines)
    check_ids(input_path, lines)
    progress = on_progress or (lambda done, total: None)
    if _finished_earlier(input_path, lines, output_path, resume=resume, force=force):
        progress(len(lines), len(lines))
        done = Summary(len(lines), ok=len(lines), failed=0, late=0, resumed=len(lines))
        return _with_doubts(done, map(json.loads, output_path.read_bytes().splitlines()))
    try:
        with Journal(journal_of(output_path), lines, keep=resume) as journal:
            if journal.damaged:
                say(f"{journal_of(output_path)}: {counted(journal.damaged, 'line')} damaged: done again now")
            with _ways(template, client, concurrency, ends) as make_record:
                summary = _work(make_record, lines, journal, concurrency, ends, progress)
            summary = _with_doubts(summary, (journal.record(line.number) for line in lines if line.number in journal))
            write_atomic(output_path, _records(lines, journal))
        if not summary.failed:  # else it is kept, because --resume reads it
            journal_of(output_path).unlink()
    except OSError as error:
        where = error.filename or output_path
        raise LocalError(f"cannot write {where} ({error.strerror}): make room, or name another output") from error
    return summary


def _with_doubts(summary: Summary, records: Iterable[Record]) -> Summary:
    """Return the summary with the values that records list under `ungrounded`: those that are not in the text."""
    counts = [len(found) for record in records if isinstance(found := record.get("ungrounded"), list) and found]
    return replace(summary, ungrounded=sum(counts), loose=len(counts))


def _finished_earlier(input_path: Path, lines: list[Line], output: Path, *, resume: bool, force: bool) -> bool:
    """Return whether an earlier run did everything. Raises UsageError if this run would overwrite earlier results."""
    if output.exists() and output.samefile(input_path):
        raise UsageError(f"{output} is the input: name another output")
    journal = journal_of(output)
    if force:
        return False
    if resume:
        if journal.exists() or not output.exists():
            return False
        if _ids_of(output) != [line.id for line in lines]:
            raise UsageError(f"{output} is the result of other documents: name another output, or use --force")
        return True
    if journal.exists():
        raise UsageError(f"{journal} holds an unfinished run: go on with --resume, or start again with --force")
    if output.exists():
        fix = "name another output, overwrite it with --force, or keep what is done with --resume"
        raise UsageError(f"{output} exists already: {fix}")
    return False


def _ids_of(output: Path) -> list[Any] | None:
    """Return the ids in a result file; None if it is not a result file."""
    try:
        return [json.loads(line)["id"] for line in output.read_bytes().splitlines()]
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _ways(
    template: Template | Path, client: Client, concurrency: int, ends: float | None
) -> Iterator[Callable[[Line], Record]]:
    """Give what makes the record of a line. At the end of the block, running requests are ended.

    With a deadline, the template runs in a process of its own, because a thread cannot be ended.
    """
    if isinstance(template, Path):
        child = Child(template, client, concurrency, ends or 0.0)
        try:
            child.load()
            yield child.record
        finally:
            child.close()
    else:
        with client.clone(model=client.model or template.role) as own:  # its end wakes the threads that wait
            yield lambda line: record_of(template.run, line, own)


def _work(
    make_record: Callable[[Line], Record],
    lines: list[Line],
    journal: Journal,
    concurrency: int,
    ends: float | None,
    progress: OnProgress,
) -> Summary:
    """Run the template on every line that is not in the journal. Only this thread writes."""
    todo = deque(line for line in lines if line.number not in journal)
    resumed = ok = len(lines) - len(todo)
    done, late, failures = ok, 0, _Failures()
    progress(done, len(lines))
    results: queue.SimpleQueue[tuple[Line, dict[str, Any]]] = queue.SimpleQueue()
    stop = threading.Event()
    # Daemon threads, not a pool: a template that hangs must not stop the process from ending after the deadline.
    for _ in range(min(concurrency, len(todo))):
        threading.Thread(target=_worker, args=(make_record, todo, results, stop, ends), daemon=True).start()
    try:
        while done < len(lines):
            wait = _TICK if ends is None else min(_TICK, max(0.0, ends - time.monotonic()))
            try:
                line, record = results.get(timeout=wait)
            except queue.Empty:
                if ends is not None and time.monotonic() >= ends:
                    break
                continue
            journal.append(line, record)
            done, ok = done + 1, ok + (record["ok"] is True)
            if record["ok"] is not True:
                failures.add(record)
                late += record.get("type") == "deadline"  # a template that knows the deadline said so itself
            progress(done, len(lines))
    finally:
        stop.set()
    late += len(lines) - done
    commonest, times = failures.commonest()
    return Summary(len(lines), ok, len(lines) - ok, late, resumed, commonest, times)


@dataclass(slots=True)
class _Failures:
    """Failed records by kind: the type and the error without its numbers, such as those of lines and ports."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Count a failed record. One that a template wrote may lack `error` or `type`."""
        parts = [str(record[key]) for key in ("type", "error") if record.get(key)]
        error = one_line(": ".join(parts) or "no reason given")
        kind = re.sub(r"\d+", "#", error)
        self.counts[kind] += 1
        self.firsts.setdefault(kind, error)

    def commonest(self) -> tuple[str, int]:
        """The first error of the most frequent kind, and how many records are of this kind; "" and 0 if none failed."""
        if not self.counts:
            return "", 0
        [(kind, times)] = self.counts.most_common(1)
        return self.firsts[kind], times


def _worker(
    make_record: Callable[[Line], Record],
    todo: "deque[Line]",
    results: "queue.SimpleQueue[tuple[Line, dict[str, Any]]]",
    stop: threading.Event,
    ends: float | None,
) -> None:
    while not stop.is_set() and (ends is None or time.monotonic() < ends):
        try:
            line = todo.popleft()
        except IndexError:
            return
        results.put((line, failure(line, line.problem, "input") if line.problem else make_record(line)))


def _records(lines: list[Line], journal: Journal) -> Iterator[bytes]:
    for line in lines:
        if line.number in journal:
            yield encoded(journal.record(line.number))
        else:
            yield encoded(failure(line, "not finished by the deadline", "deadline"))

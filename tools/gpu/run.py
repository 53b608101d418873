"""Runs one step as a process, and keeps the JSON file of the run up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tools.gpu.findings import FAILED, OK, SKIPPED, of_json
from tools.gpu.place import Place
from tools.gpu.steps import Step
from tourkit.files import write_atomic

_GRACE = 15.0  # seconds in which an interrupted step ends its servers
_LAST_LINES = 15  # of the stderr of a step that failed


@dataclass
class Record:
    """The JSON file of a run. It is written again after every change."""

    path: Path
    about: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, name: str) -> dict[str, Any]:
        """Return the entry of a step that starts now."""
        print(f"\n== {name}", flush=True)
        self.steps.append({"name": name, "state": "running", "why": "", "seconds": 0.0, "findings": []})
        self.write()
        return self.steps[-1]

    def left_out(self, name: str, why: str) -> None:
        self.begin(name).update(state=SKIPPED, why=why)
        print(f"   skipped: {why}", flush=True)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.about | {"steps": self.steps}, indent=1).encode())

    @property
    def has_failed(self) -> bool:
        return any(step["state"] == FAILED for step in self.steps)

    def summary(self) -> str:
        """Return one line: how many steps have which state, and the names of those that failed."""
        states = [step["state"] for step in self.steps]
        counts = ", ".join(f"{states.count(state)} {state}" for state in (OK, FAILED, SKIPPED))
        failed = ", ".join(step["name"] for step in self.steps if step["state"] == FAILED)
        return f"steps: {counts}" + (f" ({failed})" if failed else "")


def run_step(step: Step, place: Place, environment: dict[str, str], limit: float, record: Record) -> None:
    """Run a step for `limit` seconds at most, and record its findings as they come."""
    entry = record.begin(step.name)
    started = time.monotonic()
    command = [sys.executable, "-m", "tools.gpu.step", step.name, place.to_json()]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )
        late = threading.Event()
        timer = threading.Timer(limit, _interrupt, (process, late))
        timer.start()
        try:
            for line in process.stdout or ():
                finding = of_json(line)
                entry["findings"].append(asdict(finding))
                print(f"   {finding.text()}", flush=True)
                record.write()
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
        entry["seconds"] = round(time.monotonic() - started, 1)
        states = {each["state"] for each in entry["findings"]}
        if late.is_set() or code:
            why = f"it did not end within {limit:.0f} seconds" if late.is_set() else f"exit code {code}"
            entry.update(state=FAILED, why=why, stderr=_last_lines(errors))
            print("\n".join([f"   failed: {why}", *(f"   | {line}" for line in entry["stderr"])]), flush=True)
        elif FAILED in states:
            entry.update(state=FAILED, why="a check failed", stderr=_last_lines(errors))
        else:
            entry["state"] = SKIPPED if states <= {SKIPPED} else OK
    record.write()


def _interrupt(process: subprocess.Popen[str], late: threading.Event) -> None:
    """End a step that takes too long. As after Ctrl-C it ends its own processes; if it does not, it is killed."""
    late.set()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill what is left of a step's processes. A process group may be gone already."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _last_lines(errors: IO[str]) -> list[str]:
    errors.seek(0)
    return errors.read().splitlines()[-_LAST_LINES:]

"""Runs one check in a process of its own, because it may crash, hang, or change the process it runs in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from tourkit.errors import one_line

_SECONDS = 120.0  # a library that hangs must not hang the command


def ask(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module` and return the JSON object on its last line of stdout.

    If there is none, return {"error": why} with the signal or exit code and the last line of stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_SECONDS:.0f} s"}
    except OSError as exc:
        return {"error": f"its process cannot start ({exc.strerror})"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": _ending(done.returncode, done.stderr)}
    return answer


def tell(answer: dict[str, Any]) -> None:
    """Print the answer of the child on a line of its own. Libraries may have printed before it."""
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _ending(code: int, errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    last = f" ({one_line(lines[-1])})" if lines else ""
    if code >= 0:
        return f"it ended with code {code}{last}"
    return f"it ended with signal {signal.Signals(-code).name}{last}"

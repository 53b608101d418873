"""Tries whether this system allows namespaces with a dead end, in a process of its own: there is no way back.

`python -m tourkit.isolation.trial` is that process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tourkit.errors import LocalError, one_line
from tourkit.isolation import dead_end, namespaces


def refusal() -> str:
    """Return why the system does not allow it; "" if it does."""
    command = [sys.executable, "-m", "tourkit.isolation.trial"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return one_line(done.stderr.strip().rpartition("\n")[2]) or f"the trial ended with code {done.returncode}"


def _try() -> None:
    with tempfile.TemporaryDirectory(prefix="tourkit-") as name:
        folder = Path(name)
        dead_end.isolate(folder)
        (folder / "bound").mkdir()
        namespaces.bind(folder / "bound", folder / "bound", read_only=True)
        namespaces.unmount(folder / "bound")


if __name__ == "__main__":
    try:
        _try()
    except (LocalError, OSError) as exc:
        sys.exit(str(exc))

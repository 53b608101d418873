"""What the demo's trips are made of: a titled step, a command of tourkit, and a server in the background."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tourkit.errors import EngineError

Say = Callable[[str], None]


@contextmanager
def step(say: Say, title: str) -> Iterator[None]:
    """Print the title of a step, and how long it took when it is done."""
    say(f"\n▸ {title}")
    started = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - started:.1f} s")


def command(
    say: Say, work: Path, title: str, arguments: Sequence[str], environment: dict[str, str] | None = None
) -> None:
    """Run a command of tourkit in the folder `work` and print it with its output. Raises EngineError if it fails."""
    with step(say, title):
        say(f"  $ tourkit {' '.join(arguments)}")
        done = subprocess.run(
            [sys.executable, "-m", "tourkit", *arguments],
            cwd=work,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        for line in done.stdout.splitlines():
            say(f"  {line}")
        if done.returncode != 0:
            raise EngineError(f"`tourkit {arguments[0]}` exited with {done.returncode}: {_last_line(done.stderr)}")


@contextmanager
def server(say: Say, work: Path, arguments: Sequence[str]) -> Iterator[str]:
    """Run a server command until the block ends. Yields the URL that the server prints."""
    say(f"\n▸ In the background: $ tourkit {' '.join(arguments)}")
    log = work / f"{arguments[0]}.log"
    with log.open("a", encoding="utf-8") as errors:
        line = [sys.executable, "-m", "tourkit", *arguments]
        process = subprocess.Popen(line, cwd=work, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _url(process, log)
        finally:
            process.terminate()
            process.communicate()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    for line in process.stdout or ():
        found = re.search(r"http://[^\s/)]+", line)
        if found:
            return found[0]
    raise EngineError(f"the server did not start: {_last_line(log.read_text(encoding='utf-8'))}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]

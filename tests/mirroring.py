"""`tourkit mirror` as a real process: a hub for tests that run the commands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.tiny import package

_TINY = Path(__file__).parent.parent / "weights" / "tiny"


@contextmanager
def mirrored(upstream: Path) -> Iterator[str]:
    """Serve a bundle as a hub on a free port, and yield its URL. The process is ended by id at the end of the block."""
    command = [sys.executable, "-m", "tourkit", "mirror", upstream.name, "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=upstream.parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def tiny_hub(folder: Path) -> Iterator[str]:
    """Yield the URL of a hub that has the tiny model, made from weights/tiny in `folder`."""
    package.upstream(_TINY, folder / "upstream")
    with mirrored(folder / "upstream") as url:
        yield url

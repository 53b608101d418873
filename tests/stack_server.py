"""Serves one model with one stack behind the gateway, as `tourkit serve` does once its plan is made.

`python stack_server.py STACK PATH` prints its URL; it ends with SIGTERM.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tourkit.launch import Launch
from tourkit.net import listen
from tourkit.planning.plan import Placement
from tourkit.server.gateway.app import GatewayOptions, serve

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class StackServer:
    stack: str
    url: str
    process: subprocess.Popen[str]


@contextmanager
def stack_server(stack: str, path: Path, log: Path, *, prefix: Sequence[str] = ()) -> Iterator[StackServer]:
    """A server of that model on a free port, ended by its own process id when the block ends."""
    command = [*prefix, sys.executable, __file__, stack, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line.startswith("http"), log.read_text()
        yield StackServer(stack, line.strip(), process)
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    stack, path = sys.argv[1:]
    launch = Launch(model="tiny", stack=stack, path=path, slots=4, context=2048, threads=1, quant="test")
    options = GatewayOptions(offline=True, say=lambda text: tell(text, sys.stderr))
    serve((Placement(("tool",), launch),), options, listen("127.0.0.1", 0), lambda url: tell(url, sys.stdout))


def tell(text: str, to: TextIO) -> None:
    to.write(f"{text}\n")
    to.flush()


if __name__ == "__main__":
    main()

"""Serve given placements, as `tourkit serve` does after its plan is made.

`python launch_server.py PLACEMENTS TIMEOUTS [WORKER]` prints its URL and ends with SIGTERM. The first two are JSON: a
list of placements, and the fields of WorkerTimeouts that are not the default. WORKER: a module to start as the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tourkit import offline
from tourkit.launch import Launch
from tourkit.net import listen
from tourkit.planning.plan import Placement
from tourkit.server.contract import launch_of
from tourkit.server.gateway import process
from tourkit.server.gateway.app import GatewayOptions, serve
from tourkit.server.gateway.watchdog import WorkerTimeouts

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LaunchServer:
    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def launch_server(
    *placements: Placement,
    log: Path,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeouts: Mapping[str, float] | None = None,
    worker: str = "",
) -> Iterator[LaunchServer]:
    """Run a gateway with these workers on a free port. Its process is ended by id at the end of the block.

    `worker`: a module of tests/ that stands in for the worker.
    """
    stand_ins = str(Path(__file__).parent) if worker else ""
    path = os.pathsep.join(filter(None, ((environment or {}).get("PYTHONPATH", ""), stand_ins, str(ROOT))))
    told = json.dumps([asdict(placement) for placement in placements]), json.dumps(timeouts or {})
    command = [*prefix, sys.executable, __file__, *told, *filter(None, [worker])]
    variables = os.environ | dict(environment or {}) | {"PYTHONPATH": path}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line.startswith("http"), log.read_text()
        yield LaunchServer(line.strip(), process, log)
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True)
class StackServer:
    stack: str
    url: str
    process: subprocess.Popen[str]


@contextmanager
def stack_server(
    stack: str, path: Path, log: Path, *, prefix: Sequence[str] = (), context: int = 2048, threads: int = 1
) -> Iterator[StackServer]:
    """Run a gateway with one worker, which loads the model with the stack."""
    launch = Launch(model="tiny", stack=stack, path=str(path), slots=4, context=context, threads=threads, quant="test")
    with launch_server(Placement(("tool",), launch), log=log, prefix=prefix) as server:
        yield StackServer(stack, server.url, server.process)


def placement_of(told: dict[str, Any]) -> Placement:
    launch, fallbacks = launch_of(told["launch"]), tuple(map(placement_of, told["fallbacks"]))
    return Placement(**told | {"launch": launch, "roles": tuple(told["roles"]), "fallbacks": fallbacks})


def main() -> None:
    placements = tuple(placement_of(told) for told in json.loads(sys.argv[1]))
    offline.engage()
    if sys.argv[3:]:
        process._OUR_ENGINE = process.Program(sys.argv[3])
    timeouts = WorkerTimeouts(**json.loads(sys.argv[2]))
    options = GatewayOptions(offline=True, say=lambda text: tell(text, sys.stderr), timeouts=timeouts)
    serve(placements, options, listen("127.0.0.1", 0), lambda urls: tell(urls.here, sys.stdout))


def tell(text: str, to: TextIO) -> None:
    to.write(f"{text}\n")
    to.flush()


if __name__ == "__main__":
    main()

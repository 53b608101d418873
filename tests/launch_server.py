"""Serves what it is told to launch, as `tourkit serve` does once its plan is made.

`python launch_server.py JSON` prints its URL; it ends with SIGTERM. JSON is a list of launches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tourkit import offline
from tourkit.backends.base import LoadSpec
from tourkit.server.gateway import GatewayOptions, bind, serve
from tourkit.server.process import Launch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class LaunchServer:
    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def launch_server(*launches: Launch, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[LaunchServer]:
    """A gateway with those workers on a free port, ended by its own process id when the block ends."""
    path = os.pathsep.join(filter(None, ((environment or {}).get("PYTHONPATH", ""), str(ROOT))))
    command = [sys.executable, __file__, json.dumps([asdict(launch) for launch in launches])]
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


def launch_of(told: dict[str, Any]) -> Launch:
    load = LoadSpec(**told["load"] | {"lora": tuple(told["load"]["lora"])})
    fallbacks = tuple(launch_of(each) for each in told["fallbacks"])
    return Launch(**told | {"load": load, "roles": tuple(told["roles"]), "fallbacks": fallbacks})


def main() -> None:
    launches = tuple(launch_of(told) for told in json.loads(sys.argv[1]))
    offline.engage()
    options = GatewayOptions(offline=True, say=lambda text: tell(text, sys.stderr))
    serve(launches, options, bind("127.0.0.1", 0), lambda url: tell(url, sys.stdout))


def tell(text: str, to: TextIO) -> None:
    to.write(f"{text}\n")
    to.flush()


if __name__ == "__main__":
    main()

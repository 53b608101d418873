"""The contract between gateway and workers: what a worker shall load, and its first answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from tourkit.launch import GpuLayers, Launch

SECRET_HEADER = "x-tourkit-secret"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker gets at its start.

    `roles`: the roles it is loaded for. `uds`: path of a Unix socket; empty for loopback. `secret`: sent with requests.
    `guard`: the guard that is forced if it is offline; empty for the strongest.
    """

    launch: Launch
    roles: tuple[str, ...]
    uds: str
    secret: str
    offline: bool
    guard: str = ""

    def to_json(self) -> str:
        """Return one line, for the command line of the worker."""
        return orjson.dumps(asdict(self)).decode()

    @staticmethod
    def of_json(text: str) -> WorkerSpec:
        """Read the line that `to_json` wrote."""
        fields = orjson.loads(text)
        return WorkerSpec(**fields | {"launch": launch_of(fields["launch"]), "roles": tuple(fields["roles"])})


def launch_of(fields: dict[str, Any]) -> Launch:
    """Make a launch from the dictionary that `dataclasses.asdict` made of it."""
    made = {
        "gpu_layers": GpuLayers(fields["gpu_layers"]["count"]),
        "lora": tuple(fields["lora"]),
        "capability": fields["capability"] and tuple(fields["capability"]),
        "environment": tuple((name, value) for name, value in fields["environment"]),
    }
    return Launch(**fields | made)


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first line on a worker's stdout: its `address`, or the `error` why it cannot load.

    An address is `unix:PATH` or `HOST:PORT`. `guard`: what keeps it offline, as in `isolation.guard`; empty for none.
    """

    address: str = ""
    error: str | None = None
    guard: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"

    @staticmethod
    def of_json(line: bytes) -> Greeting:
        """Read a line of `to_json`. An empty line gives neither: the worker ended while it was loading."""
        return Greeting(**orjson.loads(line)) if line else Greeting()

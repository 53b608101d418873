"""What gateway and workers agree on: how a worker is told what to load, and what it answers at first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from tourkit.launch import GpuLayers, Launch

SECRET_HEADER = "x-tourkit-secret"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told. `uds` empty for loopback, `secret` on every request, `roles` what it is loaded for."""

    launch: Launch
    roles: tuple[str, ...]
    uds: str
    secret: str
    offline: bool

    def to_json(self) -> str:
        """One line, for the command line of the worker."""
        return orjson.dumps(asdict(self)).decode()

    @staticmethod
    def of_json(text: str) -> WorkerSpec:
        """What `to_json` wrote."""
        told = orjson.loads(text)
        return WorkerSpec(**told | {"launch": launch_of(told["launch"]), "roles": tuple(told["roles"])})


def launch_of(told: dict[str, Any]) -> Launch:
    """A launch out of what `dataclasses.asdict` made of it."""
    layers = GpuLayers(told["gpu_layers"]["count"])
    return Launch(**told | {"gpu_layers": layers, "lora": tuple(told["lora"])})


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first line on a worker's stdout: the `address` where it answers, or the `error` why it never will.

    An address is `unix:PATH` or `HOST:PORT`.
    """

    address: str = ""
    error: str | None = None

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"

    @staticmethod
    def of_json(line: bytes) -> Greeting:
        """Of an empty line, neither: the worker ended while it was loading."""
        return Greeting(**orjson.loads(line)) if line else Greeting()

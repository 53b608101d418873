"""The contract between gateway and workers: what a worker shall load, and what it reports on its stdout."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from tourkit import __version__
from tourkit.defaults import RoleDefaults, Sampling
from tourkit.generation import Activity
from tourkit.launch import GpuLayers, Launch

SECRET_HEADER = "x-tourkit-secret"
REQUEST_HEADER = "x-tourkit-request"  # the number that the gateway gives a request, for Report.trial
CLIENT_HEADER = "x-tourkit-client"  # a digest of the client that a request comes from, for fair turns
STORED_HEADER = "x-tourkit-stored-items"  # how many items of a conversation the gateway put before a request's own


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker gets at its start.

    `roles`: the roles it is loaded for. `uds`: path of a Unix socket; empty for loopback. `secret`: sent with requests.
    `beat`: seconds between two beats. `guard`: the guard that is forced if it is offline; empty for the strongest.
    """

    launch: Launch
    roles: tuple[str, ...]
    uds: str
    secret: str
    offline: bool
    beat: float = 1.0
    guard: str = ""

    def to_json(self) -> bytes:
        """Return one line, for the worker's stdin. Its command line would show the secret to every user."""
        return orjson.dumps(asdict(self)) + b"\n"

    @staticmethod
    def of_json(line: bytes) -> WorkerSpec:
        """Read the line that `to_json` wrote."""
        fields = orjson.loads(line)
        return WorkerSpec(**fields | {"launch": launch_of(fields["launch"]), "roles": tuple(fields["roles"])})


def launch_of(fields: dict[str, Any]) -> Launch:
    """Make a launch from the dictionary that `dataclasses.asdict` made of it."""
    made = {
        "gpu_layers": GpuLayers(fields["gpu_layers"]["count"]),
        "lora": tuple(fields["lora"]),
        "capability": fields["capability"] and tuple(fields["capability"]),
        "environment": tuple((name, value) for name, value in fields["environment"]),
        "defaults": tuple(map(_defaults_of, fields["defaults"])),
    }
    return Launch(**fields | made)


def fingerprint_of(launch: Launch) -> str:
    """Return `system_fingerprint` of replies: it changes with the variant, the stack, its settings and the version."""
    settings = f"{__version__} {launch.title} {launch.context} {launch.cache_type} {launch.lora} {launch.deterministic}"
    return f"fp_{hashlib.blake2b(settings.encode(), digest_size=5).hexdigest()}"


def _defaults_of(fields: dict[str, Any]) -> RoleDefaults:
    made = {
        "sampling": Sampling(**fields["sampling"]),
        "sources": tuple((name, source) for name, source in fields["sources"]),
    }
    return RoleDefaults(**fields | made)


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first line on a worker's stdout: its `address`, or the `error` why it cannot load.

    An address is `unix:PATH` or `HOST:PORT`. `guard`: what keeps it offline, as in `isolation.guard`; empty for none.
    `prefix_sharing`: as in EngineInfo.
    """

    address: str = ""
    error: str | None = None
    guard: str = ""
    prefix_sharing: str = ""

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"

    @staticmethod
    def of_json(line: bytes) -> Greeting:
        """Read a line of `to_json`. An empty line gives neither: the worker ended while it was loading."""
        return Greeting(**orjson.loads(line)) if line else Greeting()


@dataclass(frozen=True, slots=True)
class Report:
    """A line on a worker's stdout after its greeting: a beat, or the begin or end of a trial.

    `activity`: of the engine. `loop_wait`: seconds since the event loop was asked for a sign that it has not given yet.
    `trial`: the number of a request whose constraint is tried from now on, or no longer if `ends`; empty for a beat.
    """

    activity: Activity = field(default_factory=Activity)
    loop_wait: float = 0.0
    trial: str = ""
    ends: bool = False

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self)) + b"\n"

    @staticmethod
    def of_json(line: bytes) -> Report:
        """Read a line of `to_json`. Raises ValueError or TypeError for another line."""
        fields = orjson.loads(line)
        return Report(**fields | {"activity": Activity(**fields["activity"])})

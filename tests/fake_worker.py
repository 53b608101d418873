"""A worker with a fake engine: a real process on a loopback port, started as the gateway does it.

Usage: `python fake_worker.py ENGINE SPEC`. ENGINE is the name of a class in this file; without it, the model's name.
"""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tourkit.errors import EngineDead, LocalError
from tourkit.generation import EngineInfo
from tourkit.launch import Launch
from tourkit.server.contract import Greeting, WorkerSpec

SECRET = "s"
LAUNCH = Launch(model="m", stack="llama_cpp", path="m.gguf", slots=1, context=64, threads=1)


@dataclass(frozen=True)
class FakeWorker:
    """A running fake worker. `address`: HOST:PORT."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def fake_worker(engine: str) -> Iterator[FakeWorker]:
    """Start a worker and wait until it is ready. At the end of the block its stdin is closed, and it ends."""
    spec = WorkerSpec(LAUNCH, ("tool",), uds="", secret=SECRET, offline=False)
    command = [sys.executable, __file__, engine, spec.to_json()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        yield FakeWorker(Greeting.of_json(process.stdout.readline()).address, process)


def accepted_connections() -> list[list[int]]:
    """Return protocol and TCP_NODELAY of every open TCP connection of this process."""
    sockets = [each for each in gc.get_objects() if isinstance(each, socket.socket) and each.fileno() >= 0]
    connected = [each for each in sockets if each.family == socket.AF_INET and is_connected(each)]
    return [[each.proto, each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)] for each in connected]


def is_connected(sock: socket.socket) -> bool:
    try:
        return bool(sock.getpeername())
    except OSError:  # a listening socket
        return False


class Dead:
    """An engine that is dead."""

    info = EngineInfo("llama_cpp", 64, 1, 300)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        raise EngineDead("the engine thread died: a test")

    def close(self) -> None:
        sys.stderr.write("closed")


class Looking:
    """An engine whose token ids describe the worker's connections."""

    info = EngineInfo("llama_cpp", 64, 1, 300)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return [number for connection in accepted_connections() for number in connection]

    def close(self) -> None: ...


class Full:
    """An engine on a device with memory for 1024 tokens. The message is that of llama.cpp on a GPU."""

    def __init__(self, launch: Launch) -> None:
        if launch.context > 1024:
            raise LocalError("m.gguf: llama.cpp cannot load it (cudaMalloc failed: out of memory)")
        self.info = EngineInfo("llama_cpp", launch.context, 1, 300)

    def close(self) -> None: ...


class Damaged:
    """An engine whose file cannot be read."""

    def __init__(self, launch: Launch) -> None:
        raise LocalError("m.gguf: not a GGUF file")


def main() -> int:
    from tourkit import backends
    from tourkit.server.worker import process

    named = sys.argv.pop(1) if len(sys.argv) > 2 else ""
    engines = {"Dead": lambda _: Dead(), "Looking": lambda _: Looking(), "Full": Full, "Damaged": Damaged}
    backends.load = lambda launch: engines[named or launch.model](launch)
    return process.main()


if __name__ == "__main__":
    sys.exit(main())

"""A worker with a fake engine: a real process on a loopback port, started as the gateway does it.

Usage: `python fake_worker.py [ENGINE]`. ENGINE is the name of a class in this file; without it, the model's name. The
specification comes on stdin.
"""

from __future__ import annotations

import ctypes
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tourkit.errors import EngineDead, LocalError
from tourkit.generation import Activity, EngineInfo
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
def fake_worker(engine: str, *, beat: float = 1.0) -> Iterator[FakeWorker]:
    """Start a worker and wait until it is ready. At the end of the block its stdin is closed, and it ends."""
    spec = WorkerSpec(LAUNCH, ("tool",), uds="", secret=SECRET, offline=False, beat=beat)
    command = [sys.executable, __file__, engine]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(spec.to_json())
        process.stdin.flush()
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


class Fake:
    """An engine that does nothing."""

    info = EngineInfo("llama_cpp", 64, 1, 300)

    def activity(self) -> Activity:
        return Activity()

    def close(self) -> None: ...


class Dead(Fake):
    """An engine that is dead."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        raise EngineDead("the engine thread died: a test")

    def close(self) -> None:
        sys.stderr.write("closed")


class Stuck(Fake):
    """An engine whose figures never come: the event loop waits for them for ever."""

    def stats(self) -> None:
        threading.Event().wait()


class Holding(Fake):
    """An engine that takes Python's lock for ever."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        ctypes.PyDLL(None).pause()
        return []


class Looking(Fake):
    """An engine whose token ids describe the worker's connections."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return [number for connection in accepted_connections() for number in connection]


class Full(Fake):
    """An engine on a device with memory for 1024 tokens. The message is that of llama.cpp on a GPU."""

    def __init__(self, launch: Launch) -> None:
        if launch.context > 1024:
            raise LocalError("m.gguf: llama.cpp cannot load it (cudaMalloc failed: out of memory)")
        self.info = EngineInfo("llama_cpp", launch.context, 1, 300)


class Damaged:
    """An engine whose file cannot be read."""

    def __init__(self, launch: Launch) -> None:
        raise LocalError("m.gguf: not a GGUF file")


def main() -> int:
    from tourkit import backends
    from tourkit.server.worker import process

    named = sys.argv[1] if len(sys.argv) > 1 else ""
    engines = {
        "Dead": lambda _: Dead(),
        "Looking": lambda _: Looking(),
        "Stuck": lambda _: Stuck(),
        "Holding": lambda _: Holding(),
        "Full": Full,
        "Damaged": Damaged,
    }
    backends.load = lambda launch: engines[named or launch.model](launch)
    return process.main()


if __name__ == "__main__":
    sys.exit(main())

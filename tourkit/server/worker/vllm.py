"""vLLM as a worker: `python -m tourkit.server.worker.vllm SPEC` runs `vllm serve` with our API.

As every worker, it writes one line to stdout for the gateway: that it is ready, or why it cannot load. It ends with all
its processes when its stdin closes. It is offline if the gateway is.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
import time

from tourkit import net, offline
from tourkit.backends.text_side import Texts
from tourkit.backends.vllm import library, weights
from tourkit.backends.vllm.arguments import environment, serve_arguments
from tourkit.errors import LocalError
from tourkit.isolation.guard import Needs
from tourkit.server.contract import Greeting, WorkerSpec
from tourkit.server.worker.vllm_front import Front, Served

_OFFLINE = "TOURKIT_OFFLINE"
_FRONT = f"{Front.__module__}.{Front.__qualname__}"  # vLLM imports the middleware by this name
_LOOPBACK = "127.0.0.1"
_LOOK_SECONDS = 0.05  # between two checks whether vLLM listens
_GRACE_SECONDS = 8.0  # for vLLM to end its engine; after that the whole process group is killed


def main() -> int:
    spec = WorkerSpec.of_json(sys.argv[1])
    gateway = _take_stdout()
    try:
        guard = _isolated(spec)
        threading.Thread(target=_end_with_gateway, daemon=True).start()
        cpu = library.is_cpu_build()
        os.environ.update(environment(spec.launch, cpu=cpu))
        folder = weights.folder_of(spec.launch)
        serve = library.command()
        address = f"unix:{spec.uds}" if spec.uds else f"{_LOOPBACK}:{net.free_port(_LOOPBACK)}"
        shape = weights.shape_of(folder)
        sys.argv = [
            "vllm",
            *serve_arguments(spec.launch, folder, shape, address, spec.roles, middleware=_FRONT, cpu=cpu),
        ]
        texts = weights.texts_of(folder, spec.launch, shape.vocab)
        Front.served = Served(spec.launch, texts, spec.secret)
        threading.Thread(target=_greet, args=(Greeting(address, guard=guard), gateway, texts), daemon=True).start()
        serve()
    except LocalError as exc:
        _tell(gateway, Greeting(error=str(exc)))
        return exc.exit_code
    return 0


def _isolated(spec: WorkerSpec) -> str:
    """Enter the guard of an offline worker, and return its name. Processes that vLLM starts are inside too."""
    if not spec.offline:
        return ""
    os.environ[_OFFLINE] = "1"
    return offline.isolate(Needs(loopback=True, reached_by_ip=not spec.uds), spec.guard).name


def _take_stdout() -> int:
    """Return a file descriptor of stdout for the gateway. From now on all other output goes to stderr."""
    gateway = os.dup(1)
    os.dup2(2, 1)
    return gateway


def _tell(gateway: int, greeting: Greeting) -> None:
    os.write(gateway, greeting.to_json())


def _end_with_gateway() -> None:
    """End vLLM and its engine process as soon as stdin closes: first SIGTERM, and SIGKILL after a while."""
    sys.stdin.buffer.read()
    for how, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 0.0)):
        if os.getpgrp() == os.getpid():  # true if the gateway has started this process
            os.killpg(os.getpid(), how)
        else:
            os.kill(os.getpid(), how)
        time.sleep(seconds)


def _greet(greeting: Greeting, gateway: int, texts: Texts) -> None:
    """Wait until vLLM answers, without a time limit, greet the gateway, and prepare for grammars."""
    while not _is_healthy(greeting.address):
        time.sleep(_LOOK_SECONDS)
    _tell(gateway, greeting)
    texts.prepare()


def _is_healthy(address: str) -> bool:
    connection = _Connection(address)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket or on loopback."""

    def __init__(self, address: str) -> None:
        super().__init__("worker" if address.startswith("unix:") else address)
        self._address = address

    def connect(self) -> None:
        if not self._address.startswith("unix:"):
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._address.removeprefix("unix:"))


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__" and os.environ.get(_OFFLINE):  # vLLM's engine process imports this module first
    offline.engage()

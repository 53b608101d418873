"""vLLM as a worker: `python -m tourkit.server.worker.vllm` runs `vllm serve` with our API.

As every worker, it reads its specification from stdin, and writes one line to stdout for the gateway: that it is ready,
or why it cannot load. After that it writes its beats. It ends with all its processes when its stdin closes, and Linux
kills them when the gateway ends. It is offline if the gateway is.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tourkit import net, offline
from tourkit.backends.text_side import Texts
from tourkit.backends.vllm import library, weights
from tourkit.backends.vllm.arguments import environment, serve_arguments
from tourkit.errors import LocalError
from tourkit.generation import Activity
from tourkit.isolation.guard import Needs
from tourkit.parent import end_with_parent
from tourkit.server.contract import Greeting, Report, WorkerSpec
from tourkit.server.worker.pipes import Pipes
from tourkit.server.worker.vllm_front import Front, Served

_OFFLINE = "TOURKIT_OFFLINE"
_FRONT = f"{Front.__module__}.{Front.__qualname__}"  # vLLM imports the middleware by this name
_LOOPBACK = "127.0.0.1"
_LOOK_SECONDS = 0.05  # between two checks whether vLLM listens
_HEALTH_SECONDS = 5.0  # for vLLM to answer /health
_GRACE_SECONDS = 8.0  # for vLLM to end its engine; after that the whole process group is killed
# If the gateway is killed, Linux kills this process too, and then it can end no child. So a small program waits beside
# it: when stdin is closed and the process of the first argument is gone, or 10 seconds later, it kills the group.
_LAST = """
trap '' TERM
read -r _
i=0
while [ $i -lt 100 ] && kill -0 "$1"; do sleep 0.1; i=$((i + 1)); done
kill -9 -"$1"
"""


def main() -> int:
    pipes = Pipes()
    spec = pipes.spec()
    try:
        guard = _isolated(spec)
        end_with_parent()  # after the guard, because entering a namespace may clear it
        pipes.end_if_gateway_is_gone()
        if _leads_group():
            subprocess.Popen(["sh", "-c", _LAST, "sh", str(os.getpid())], stderr=subprocess.DEVNULL)
        threading.Thread(target=_end_with_gateway, args=(pipes,), daemon=True).start()
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
        Front.served = Served(spec.launch, texts, spec.secret, pipes.in_trial)
        greeting = Greeting(address, guard=guard)
        threading.Thread(target=_greet, args=(greeting, pipes, texts, spec.beat), daemon=True).start()
        serve()
    except LocalError as exc:
        pipes.greet(Greeting(error=str(exc)))
        return exc.exit_code
    return 0


def _isolated(spec: WorkerSpec) -> str:
    """Enter the guard of an offline worker, and return its name. Processes that vLLM starts are inside too."""
    if not spec.offline:
        return ""
    os.environ[_OFFLINE] = "1"
    return offline.isolate(Needs(loopback=True, reached_by_ip=not spec.uds), spec.guard).name


def _end_with_gateway(pipes: Pipes) -> None:
    """End vLLM and its engine process as soon as stdin closes: first SIGTERM, and SIGKILL after a while."""
    pipes.wait_for_end()
    for how, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 0.0)):
        if _leads_group():
            os.killpg(os.getpid(), how)
        else:
            os.kill(os.getpid(), how)
        time.sleep(seconds)


def _leads_group() -> bool:
    """Whether this process leads a process group, as one does that the gateway has started."""
    return os.getpgrp() == os.getpid()


def _greet(greeting: Greeting, pipes: Pipes, texts: Texts, beat: float) -> None:
    """Wait until vLLM answers, without a time limit, greet the gateway, begin to beat, and prepare for grammars."""
    while not _is_healthy(greeting.address):
        time.sleep(_LOOK_SECONDS)
    address = greeting.address
    if address.startswith("unix:"):
        net.make_private(Path(address.removeprefix("unix:")))
    pipes.greet(greeting)
    threading.Thread(target=_beat, args=(address, pipes, beat), name="tourkit-beat", daemon=True).start()
    texts.prepare()


def _beat(address: str, pipes: Pipes, period: float) -> None:
    """Send a beat every `period` seconds while vLLM is healthy.

    vLLM's own check shows whether its event loop answers and its engine lives. It does not show an engine that hangs:
    the activity in the beat does, because it is measured from the engine's outputs.
    """
    while True:
        if _is_healthy(address):
            pipes.report(Report(Front.engine.activity() if Front.engine is not None else Activity()))
        time.sleep(period)


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
        super().__init__("worker" if address.startswith("unix:") else address, timeout=_HEALTH_SECONDS)
        self._address = address

    def connect(self) -> None:
        if not self._address.startswith("unix:"):
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_HEALTH_SECONDS)
        self.sock.connect(self._address.removeprefix("unix:"))


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # a process of vLLM, such as its engine: it imports this module first
    if os.environ.get(_OFFLINE):
        offline.engage()
    end_with_parent()

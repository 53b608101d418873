"""A worker process: one loaded model behind HTTP.

It is started as `python -m tourkit.server.worker.process SPEC`. It writes one line to stdout for the gateway: that it
is ready, or why it cannot load. It ends when its stdin closes, so no worker runs longer than its gateway.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from tourkit import backends, net, offline
from tourkit.errors import TourkitError
from tourkit.isolation.guard import Needs
from tourkit.server.contract import Greeting, WorkerSpec
from tourkit.server.http import EndingServer
from tourkit.server.worker.app import ModelServer


def _tell(greeting: Greeting) -> None:
    sys.stdout.buffer.write(greeting.to_json())
    sys.stdout.buffer.flush()


def _listen(spec: WorkerSpec) -> tuple[socket.socket, str]:
    """Return a listening socket and its address for the gateway: `unix:PATH` or `HOST:PORT`."""
    if spec.uds:
        return net.listen_unix(Path(spec.uds)), f"unix:{spec.uds}"
    sock = net.listen("127.0.0.1", 0)
    return sock, f"127.0.0.1:{sock.getsockname()[1]}"


def _end_with_gateway() -> None:
    """Stop this process as soon as stdin closes. The gateway holds the other end of stdin."""
    while os.read(0, 1024):  # not sys.stdin: if this thread held its lock, the interpreter would abort at its exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(spec: WorkerSpec, guard: str) -> None:
    """Load the model, greet the gateway, and serve until the process must stop. A stop while loading works at once.

    `guard`: what keeps this process offline.
    """
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    engine = await asyncio.to_thread(partial(backends.load, spec.launch))
    gc.collect()
    gc.freeze()  # loaded objects stay; a collection that checks them would delay a token by a tenth of a second
    sock, address = _listen(spec)

    def leave() -> None:
        server.should_exit = True

    app = ModelServer(engine, spec.secret, on_dead=leave).app()
    server = EndingServer(app, partial(asyncio.to_thread, engine.close))
    _tell(Greeting(address, guard=guard))
    try:
        await server.serve(sockets=[sock])
    finally:
        engine.close()


def main() -> int:
    spec = WorkerSpec.of_json(sys.argv[1])
    try:
        guard = offline.isolate(Needs(reached_by_ip=not spec.uds), spec.guard).name if spec.offline else ""
        asyncio.run(serve(spec, guard))
    except TourkitError as exc:
        _tell(Greeting(error=str(exc)))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

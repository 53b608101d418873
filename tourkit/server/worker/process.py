"""One loaded model behind HTTP, in a process of its own.

Started as `python -m tourkit.server.worker.process SPEC`; tells the gateway on stdout when it is ready or why it is
not, and ends when its stdin closes, so that no worker outlives its gateway.
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

from tourkit import backends, net
from tourkit.errors import TourkitError
from tourkit.server.contract import Greeting, WorkerSpec
from tourkit.server.http import EndingServer
from tourkit.server.worker.app import ModelServer


def _tell(greeting: Greeting) -> None:
    sys.stdout.buffer.write(greeting.to_json())
    sys.stdout.buffer.flush()


def _listen(spec: WorkerSpec) -> tuple[socket.socket, str]:
    """A listening socket and its address, as the gateway reads it: `unix:PATH` or `HOST:PORT`."""
    if spec.uds:
        return net.listen_unix(Path(spec.uds)), f"unix:{spec.uds}"
    sock = net.listen("127.0.0.1", 0)
    return sock, f"127.0.0.1:{sock.getsockname()[1]}"


def _end_with_gateway() -> None:
    """Ask this process to stop as soon as stdin closes: the gateway holds the other end."""
    while os.read(0, 1024):  # not through sys.stdin: its lock, held here, aborts an interpreter that ends by itself
        pass
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(spec: WorkerSpec) -> None:
    """Load, say so, and serve until told to stop; told while it loads, it ends at once."""
    threading.Thread(target=_end_with_gateway, daemon=True).start()
    engine = await asyncio.to_thread(partial(backends.load, spec.launch))
    gc.collect()
    gc.freeze()  # what is loaded stays: to look through it now and then would hold up a token for a tenth of a second
    sock, address = _listen(spec)

    def leave() -> None:
        server.should_exit = True

    app = ModelServer(engine, spec.secret, on_dead=leave).app()
    server = EndingServer(app, partial(asyncio.to_thread, engine.close))
    _tell(Greeting(address))
    try:
        await server.serve(sockets=[sock])
    finally:
        engine.close()


def main() -> int:
    spec = WorkerSpec.of_json(sys.argv[1])
    if spec.offline:
        from tourkit import offline

        offline.engage()
    try:
        asyncio.run(serve(spec))
    except TourkitError as exc:
        _tell(Greeting(error=str(exc)))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

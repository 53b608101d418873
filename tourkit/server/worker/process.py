"""A worker process: one loaded model behind HTTP.

It is started as `python -m tourkit.server.worker.process`, and its first line on stdin is its specification. It writes
one line to stdout for the gateway: that it is ready, or why it cannot load. After that it writes its beats. It ends
when its stdin closes, and Linux kills it when the gateway ends, so no worker runs longer than its gateway.
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
from tourkit.connections import ConnectionLimits
from tourkit.errors import TourkitError
from tourkit.isolation.guard import Needs
from tourkit.parent import end_with_parent
from tourkit.server.contract import Greeting, WorkerSpec, fingerprint_of
from tourkit.server.http import EndingServer
from tourkit.server.worker.app import ModelServer
from tourkit.server.worker.pipes import Pipes

# Only the gateway connects, and it keeps connections for two seconds. Closing one that it uses again would fail a
# request, so their number has no limit of its own: the gateway has one.
_LIMITS = ConnectionLimits(idle=5, most_idle=1_000_000, most=1_000_000)


def _listen(spec: WorkerSpec) -> tuple[socket.socket, str]:
    """Return a listening socket and its address for the gateway: `unix:PATH` or `HOST:PORT`."""
    if spec.uds:
        return net.listen_unix(Path(spec.uds)), f"unix:{spec.uds}"
    sock = net.listen("127.0.0.1", 0)
    return sock, f"127.0.0.1:{sock.getsockname()[1]}"


def _end_with_gateway(pipes: Pipes) -> None:
    """Stop this process as soon as stdin closes. The gateway holds the other end of stdin."""
    pipes.wait_for_end()
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(spec: WorkerSpec, pipes: Pipes, guard: str) -> None:
    """Load the model, greet the gateway, and serve until the process must stop. A stop while loading works at once.

    The beats begin after the greeting: while libraries are imported and weights are read, no thread can promise them.
    `guard`: what keeps this process offline.
    """
    threading.Thread(target=_end_with_gateway, args=(pipes,), daemon=True).start()
    engine = await asyncio.to_thread(partial(backends.load, spec.launch))
    gc.collect()
    gc.freeze()  # loaded objects stay; a collection that checks them would delay a token by a tenth of a second
    sock, address = _listen(spec)

    def leave() -> None:
        server.should_exit = True

    model = ModelServer(engine, spec.secret, leave, pipes.in_trial, spec.launch.defaults, fingerprint_of(spec.launch))
    server = EndingServer(model.app(), model.close, _LIMITS)
    pipes.greet(Greeting(address, guard=guard, prefix_sharing=engine.info.prefix_sharing))
    pipes.start_beats(spec.beat, engine.activity, asyncio.get_running_loop().call_soon_threadsafe)
    starting = asyncio.create_task(model.start_trial())
    try:
        await server.serve(sockets=[sock])
    finally:
        starting.cancel()
        engine.close()


def main() -> int:
    pipes = Pipes()
    spec = pipes.spec()
    try:
        guard = offline.isolate(Needs(reached_by_ip=not spec.uds), spec.guard).name if spec.offline else ""
        end_with_parent()  # after the guard, because entering a namespace may clear it
        pipes.end_if_gateway_is_gone()
        asyncio.run(serve(spec, pipes, guard))
    except TourkitError as exc:
        pipes.greet(Greeting(error=str(exc)))
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

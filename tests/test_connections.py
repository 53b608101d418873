"""Answers are sent at once: TCP connections of gateway and workers do not wait for acknowledgements.

asyncio turns Nagle's algorithm off only for a socket with an explicit protocol. Accepted sockets take the protocol and
the option from the listening socket (`tourkit.net.listen`).
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fake_worker import SECRET, fake_worker
from serving import make_bundle

from tourkit.net import listen

pytestmark = pytest.mark.starts

TCP_WITHOUT_DELAY = [socket.IPPROTO_TCP, 1]  # as accepted_connections() lists a connection

# `tourkit serve` with another /health: it lists the gateway's own connections.
GATEWAY = """
import sys
from pathlib import Path
from fake_worker import accepted_connections
from tourkit.server.api.replies import json_response
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.launch import ServeOptions, serve_bundle

async def health(self, request):
    return json_response(200, {"connections": accepted_connections()})

Gateway.health = health
options = ServeOptions(context=512)
serve_bundle(Path(sys.argv[1]), options, GatewayOptions(), lambda urls, plan: print(urls.here, flush=True))
"""


@pytest.fixture
def gateway(tiny_gguf: Path, tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of the gateway."""
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    command = [sys.executable, "-c", GATEWAY, str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        assert process.stdout is not None
        yield urlsplit(process.stdout.readline().strip()).netloc
        process.terminate()


def answer_of(address: str, method: str, path: str, body: str = "") -> dict[str, object]:
    connection = http.client.HTTPConnection(address)
    connection.request(method, path, body, {"x-tourkit-secret": SECRET})
    answer = connection.getresponse()
    status, data = answer.status, json.loads(answer.read())
    connection.close()
    assert status == 200, data
    return dict(data)


def test_a_connection_to_the_gateway_sends_without_delay(gateway: str) -> None:
    assert answer_of(gateway, "GET", "/health")["connections"] == [TCP_WITHOUT_DELAY]


def test_a_connection_to_a_worker_on_loopback_sends_without_delay() -> None:
    with fake_worker("Looking") as worker:
        answer = answer_of(worker.address, "POST", "/tokenize", '{"model": "m", "prompt": "a"}')

    assert answer["tokens"] == TCP_WITHOUT_DELAY


def test_an_accepted_connection_is_without_delay_before_any_server_touches_it() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            found = [accepted.proto, accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)]

    assert found == TCP_WITHOUT_DELAY

"""A gateway and a worker of a stand-in engine in this process, without sockets and without other processes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from asgi import Answer, ask
from starlette.types import Message, Send

from tourkit.backends.base import Engine
from tourkit.server.api.model import Model
from tourkit.server.contract import CLIENT_HEADER, SECRET_HEADER, STORED_HEADER
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.upstream import Asked
from tourkit.server.worker.app import ModelServer

SECRET = "s"


class NearRelay:
    """Asks the worker's ASGI application instead of a socket. `asked`: the requests that it got."""

    def __init__(self, worker: ModelServer) -> None:
        self._app = worker.app()
        self.asked: list[Asked] = []
        self.running = 0

    async def answer(self, worker: Any, asked: Asked, send: Send) -> None:
        self.asked.append(asked)
        headers = {SECRET_HEADER: SECRET, CLIENT_HEADER: asked.client}
        if asked.n_stored is not None:
            headers[STORED_HEADER] = str(asked.n_stored)
        await self._app(_scope(asked.path, headers), _receiving(asked.body), send)


class NearGateway:
    """`post` and `get` return whole answers. `relay`: see NearRelay. Clients differ by their `key`."""

    def __init__(self, engine: Engine, *models: str) -> None:
        worker = ModelServer(engine, SECRET)
        worker._model = Model(engine)  # without the process that tries constraints
        self.relay = NearRelay(worker)
        self.gateway = Gateway((), GatewayOptions())
        stand_in: Any = SimpleNamespace(answering=SimpleNamespace(launch=SimpleNamespace(title="stand-in")))
        self.gateway._workers |= dict.fromkeys(models or ("tool",), stand_in)
        self.gateway._relay = self.relay  # type: ignore[assignment]
        self.app = self.gateway.app()

    async def send(self, path: str, body: Any = None, *, method: str = "POST", key: str = "") -> Answer:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await ask(self.app, path, body, method=method, headers=headers)

    def post(self, path: str, body: Any, *, key: str = "") -> Answer:
        return asyncio.run(self.send(path, body, key=key))

    def get(self, path: str, *, key: str = "") -> Answer:
        return asyncio.run(self.send(path, method="GET", key=key))

    def delete(self, path: str, *, key: str = "") -> Answer:
        return asyncio.run(self.send(path, method="DELETE", key=key))


def _scope(path: str, headers: dict[str, str]) -> dict[str, Any]:
    names = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    return scope | {"headers": names, "client": ("127.0.0.1", 5)}


def _receiving(body: bytes) -> Any:
    content: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return content.pop() if content else await asyncio.Future()

    return receive

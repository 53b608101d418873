"""Our API in front of vLLM: an ASGI middleware inside vLLM's own server process, so there is no additional hop.

It answers as every worker does, with vLLM's engine. Only /health is answered by vLLM itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from starlette.types import ASGIApp, Receive, Scope, Send

from tourkit.backends.text_side import Texts
from tourkit.backends.vllm.engine import VllmEngine
from tourkit.launch import Launch
from tourkit.server.api.model import InTrial
from tourkit.server.contract import fingerprint_of
from tourkit.server.worker.app import ModelServer


@dataclass(frozen=True, slots=True)
class Served:
    """What the middleware needs: load options, text side, secret, and how to tell the gateway about trials."""

    launch: Launch
    texts: Texts
    secret: str
    in_trial: InTrial


class Front:
    """The middleware. vLLM imports it by name and creates it, so its data is an attribute of the class."""

    served: ClassVar[Served]
    engine: ClassVar[VllmEngine | None] = None  # None before the first request

    def __init__(self, app: ASGIApp) -> None:
        self._vllm = app
        self._ours: ASGIApp | None = None
        self._starting: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._vllm(scope, receive, send)
            return
        if self._ours is None:  # vLLM loads its engine after it creates the middleware, so this cannot be done before
            served, client = self.served, scope["app"].state.engine_client
            engine = VllmEngine(client, asyncio.get_running_loop(), served.launch, served.texts)
            Front.engine = engine
            model = ModelServer(
                engine,
                served.secret,
                in_trial=served.in_trial,
                defaults=served.launch.defaults,
                fingerprint=fingerprint_of(served.launch),
            )
            self._starting = asyncio.create_task(model.start_trial())
            self._ours = model.app()
        await self._ours(scope, receive, send)

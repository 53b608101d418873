"""A worker without free places: it answers 429 to each request that its parsers accept, and 400 to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from asgi import Answer, ask

from tourkit.errors import QueueFull
from tourkit.generation import EngineInfo
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer


class Full:
    """An engine of every kind that refuses all work."""

    info = EngineInfo("none", 4096, 1, 1_000)
    recompiles, size = False, 64

    def _full(self, *_: Any, **__: Any) -> Any:
        raise QueueFull("full")

    submit = tokenize = detokenize = embed = manner = apply_template = count_tokens = score = _full

    def with_calls(self, request: Any) -> Any:
        return request

    def token_table(self) -> Any:
        raise NotImplementedError


def answers(requests: Iterable[tuple[str, Any]]) -> list[Answer]:
    """Return the answers to requests, given as paths and bodies."""
    app = ModelServer(Full(), "s").app()  # type: ignore[arg-type]

    async def all_of() -> list[Answer]:
        return [await ask(app, path, body, headers={SECRET_HEADER: "s"}) for path, body in requests]

    return asyncio.run(all_of())

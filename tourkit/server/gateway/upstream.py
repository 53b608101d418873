"""Connections to workers, kept open from request to request."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson

from tourkit.server.contract import SECRET_HEADER
from tourkit.server.gateway.supervisor import Worker

_KEPT_SECONDS = 2.0  # of an idle connection: workers close theirs after 5, and a request must not meet with that


class Upstream:
    """An HTTP client for each worker. All methods belong to the gateway's event loop."""

    def __init__(self) -> None:
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    def post(self, worker: Worker, path: str, body: bytes) -> aiohttp.client._RequestContextManager:
        session, base = self._session(worker)
        headers = {SECRET_HEADER: worker.secret, "content-type": "application/json"}
        return session.post(f"{base}{path}", data=body, headers=headers)

    async def stats(self, worker: Worker) -> dict[str, Any]:
        """The figures of a worker that is up; none when it goes down meanwhile."""
        session, base = self._session(worker)
        try:
            async with session.get(f"{base}/stats") as answer:
                return dict(orjson.loads(await answer.read()))
        except aiohttp.ClientError:
            return {}

    async def close(self) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))

    def _session(self, worker: Worker) -> tuple[aiohttp.ClientSession, str]:
        """The client of a worker that is ready, and the base URL to use with it."""
        address = worker.address
        unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        session = self._sessions.get(id(worker))
        if session is None:
            kept: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEPT_SECONDS}
            connector = aiohttp.UnixConnector(unix, **kept) if unix else aiohttp.TCPConnector(**kept)
            timeout = aiohttp.ClientTimeout(total=None)  # a long generation is no fault; a dead worker closes
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
            self._sessions[id(worker)] = session
        return session, "http://worker" if unix else f"http://{address}"

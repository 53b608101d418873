"""Connections to workers. They stay open between requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from tourkit.server.contract import CLIENT_HEADER, REQUEST_HEADER, SECRET_HEADER, STORED_HEADER
from tourkit.server.gateway.supervisor import Worker

_STATS_SECONDS = 5.0  # for a worker to tell its figures; one that hangs never does
_KEPT_SECONDS = 2.0  # an idle connection stays open; workers close theirs after 5, and no request may run into that


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `client`: the digest of the client that it comes from; "" for the gateway itself.

    `n_stored`: how many items of a stored conversation are in the body; None if there is no conversation.
    """

    path: str
    body: bytes
    client: str = ""
    n_stored: int | None = None


class Upstream:
    """An HTTP client for each worker. All methods belong to the gateway's event loop."""

    def __init__(self) -> None:
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    def post(self, worker: Worker, asked: Asked, number: str = "") -> aiohttp.client._RequestContextManager:
        """Send a request to a worker. `number`: the worker names the request by it in its reports."""
        session, base = self._session(worker)
        headers = {
            SECRET_HEADER: worker.secret,
            REQUEST_HEADER: number,
            CLIENT_HEADER: asked.client,
            "content-type": "application/json",
        }
        if asked.n_stored is not None:
            headers[STORED_HEADER] = str(asked.n_stored)
        return session.post(f"{base}{asked.path}", data=asked.body, headers=headers)

    async def stats(self, worker: Worker, *, within: float = _STATS_SECONDS) -> dict[str, Any]:
        """Return the figures of a worker that is up; empty if it has just gone down, or hangs. `within`: seconds."""
        session, base = self._session(worker)
        try:
            async with session.get(f"{base}/stats", timeout=aiohttp.ClientTimeout(within)) as answer:
                return dict(orjson.loads(await answer.read()))
        except (aiohttp.ClientError, TimeoutError):
            return {}

    async def close(self) -> None:
        await asyncio.gather(*(session.close() for session in self._sessions.values()))

    def _session(self, worker: Worker) -> tuple[aiohttp.ClientSession, str]:
        """Return the HTTP client of a ready worker and the base URL to use with it."""
        address = worker.address
        unix = address.removeprefix("unix:") if address.startswith("unix:") else None
        session = self._sessions.get(id(worker))
        if session is None:
            kept: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEPT_SECONDS}
            connector = aiohttp.UnixConnector(unix, **kept) if unix else aiohttp.TCPConnector(**kept)
            timeout = aiohttp.ClientTimeout(total=None)  # long answers are allowed; a dead worker closes its connection
            session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
            self._sessions[id(worker)] = session
        return session, "http://worker" if unix else f"http://{address}"

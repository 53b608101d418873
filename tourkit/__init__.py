"""tourkit: pin, prefetch, verify and serve open LLMs for a competition without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tourkit.client import AsyncClient, Client

__version__ = "0.1.0"


def load(role: str, path: str | Path | None = None, **options: Any) -> Client:
    """Return a client of the model for a role, which is loaded into this process: see `server/inprocess.load`."""
    from tourkit.server import inprocess  # with the libraries of a server, which few programs need

    return inprocess.load(role, path, **options)


async def load_async(role: str, path: str | Path | None = None, **options: Any) -> AsyncClient:
    """Return what `load` returns, for asyncio."""
    from tourkit.server import inprocess

    return await inprocess.load_async(role, path, **options)

"""The way into one worker: many requests together, or one alone that is asked again after the worker has died.

Any request that was in a worker when it died may have ended it. So each of them is asked again alone: the one that ends
the worker a second time takes no other with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


class Lane:
    """Counts the requests in one worker. Belongs to the gateway's event loop."""

    def __init__(self) -> None:
        self._inside = 0  # together
        self._single = 0  # that wait to be alone, or are alone
        self._is_held = False  # by one that is alone
        self._changed = asyncio.Event()  # a new one after each change

    @contextlib.asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Within the block others may be inside too. All that want to be alone go first."""
        await self._until(lambda: not self._single)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._tell()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[Callable[[], None]]:
        """Within the block nobody else is inside, until the block calls `share`, the function that it gets."""
        self._single += 1
        is_shared = is_in = False

        def share() -> None:
            nonlocal is_shared
            if is_in and not is_shared:
                is_shared = True
                self._single -= 1
                self._is_held = False
                self._inside += 1
                self._tell()

        try:
            await self._until(lambda: not self._is_held and not self._inside)
            self._is_held = is_in = True
            yield share
        finally:
            if is_shared:
                self._inside -= 1
            else:
                self._single -= 1
                self._is_held = self._is_held and not is_in
            is_in = False
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

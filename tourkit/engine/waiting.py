"""Sequences that wait for a slot: clients get slots in turn, and the sequences of one client first come, first served.

Each waiting sequence has the number of a turn, and the lowest number is next. A client's sequences have different
numbers, from the present one on. So a client with one sequence waits for at most one sequence of each other client.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.engine.sequence import Sequence

_AT_ONCE = -1  # the turn of a preempted sequence: before all others


class Turns:
    """Numbers the turns of waiting requests. One thread or event loop may use it."""

    def __init__(self) -> None:
        self._now = 0  # the highest turn that was served
        self._waiting: dict[str, list[int]] = {}  # the turns of each client, lowest first

    def take(self, client: str) -> int:
        """Return the turn of a new request of a client."""
        turns = self._waiting.setdefault(client, [])
        turns.append(max(self._now, turns[-1] + 1 if turns else 0))
        return turns[-1]

    def leave(self, client: str, turn: int, *, served: bool) -> None:
        """Forget a request that no longer waits. `served`: it has begun; else it has ended without its turn."""
        turns = self._waiting[client]
        turns.remove(turn)
        if not turns:
            del self._waiting[client]
        if served:
            self._now = max(self._now, turn)


class WaitingLine:
    """The waiting sequences of an engine, the next one first. Only the engine thread may change it."""

    def __init__(self) -> None:
        self._line: list[Sequence] = []
        self._turns = Turns()

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over a copy: any thread may read it, and the engine may remove sequences meanwhile."""
        return iter(list(self._line))

    def add(self, seq: Sequence) -> None:
        seq.turn = self._turns.take(seq.client)
        insort(self._line, seq, key=lambda each: each.turn)

    def put_back(self, seq: Sequence) -> None:
        """Add a preempted sequence: it has had its turn, so it is the next one."""
        seq.turn = _AT_ONCE
        self._line.insert(0, seq)

    def remove(self, seq: Sequence, *, served: bool) -> None:
        """Remove a sequence. `served`: it has a slot now; else it has ended."""
        self._line.remove(seq)
        if seq.turn != _AT_ONCE:
            self._turns.leave(seq.client, seq.turn, served=served)


def may_wait(client: str, n: int, waiting: Counter[str], most: int) -> bool:
    """Whether `n` more sequences of a client may wait. `waiting`: how many sequences of each client wait.

    `most` sequences may wait together. Beyond that, up to twice as many, a client may still have its share waiting: as
    many as each other client. So the requests of one client do not shut out all others.
    """
    total = waiting.total() + n
    if total <= most:
        return True
    share = most // len({client, *waiting})
    return total <= 2 * most and waiting[client] + n <= share

"""Which cached prompts to drop first. Pure: no clock, no model.

Time is counted in tokens of prompts. A prompt that was asked for twice is expected again after the same interval. One
that was asked for once is expected within four times what the cache holds. Dropped first is what was expected by now
and did not come; then what is expected last.

The order survives loops over more prompts than fit. If twice as many are asked for in turn, "least recently used" drops
every prompt just before its turn. Here all prompts have the same interval, so the one that was just used is expected
last and is dropped. The others stay, and each pass finds half of the prompts.

What was used within the last eighth of the cache is dropped last: a prompt mostly comes again soon or in a later pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.engine.prompt_tree import Run

_RECENT = 1 / 8  # of what the cache holds
_FIRST_INTERVAL = 4.0  # times what the cache holds: when a prompt is expected that came only once
_LATE = 1.25  # times its interval: a prompt that has not come by then is not expected any more


def touch(run: Run, now: int, capacity: int) -> None:
    """Note that a run is asked for. `now`: tokens of prompts so far. `capacity`: tokens that the cache holds.

    Two uses shortly after each other, for example the votes on one question, count as one.
    """
    passed = now - run.last
    if passed > capacity * _RECENT:
        run.interval = passed
    run.last = now


def rank(run: Run, now: int, capacity: int) -> tuple[int, float]:
    """Return a number of a run: the run with the lowest one is dropped first."""
    idle = now - run.last
    if idle <= capacity * _RECENT:
        return 2, -idle
    expected = _FIRST_INTERVAL * capacity if run.interval is None else _LATE * run.interval
    return (0, expected - idle) if idle > expected else (1, idle - expected)


def drop_order(runs: Iterable[Run], may_go: Callable[[Run], bool], now: int, capacity: int) -> Iterator[Run]:
    """Yield the runs to drop, the first to drop first. The caller drops each before it takes the next one.

    `may_go`: whether a run can be dropped now. It is asked again for the parent of each run that was dropped.
    """
    heap = [(rank(run, now, capacity), run.name, run) for run in runs if may_go(run)]
    heapify(heap)
    while heap:
        run = heappop(heap)[2]
        yield run
        if run.parent is not None and may_go(run.parent):
            heappush(heap, (rank(run.parent, now, capacity), run.parent.name, run.parent))

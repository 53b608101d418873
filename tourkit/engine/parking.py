"""Parking: KV cells of ended sequences are moved to host RAM and back.

If all slots share one pool of KV cells, decoding attends to every used cell. So the cells of finished prompts slow down
running sequences. Only the latest of them stay in the pool, and none stay while no sequence runs. The others are parked
in host RAM. They come back in a few milliseconds and need not be computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tourkit.engine.placement import common_prefix, idle

if TYPE_CHECKING:
    from tourkit.engine.placement import Slot
    from tourkit.engine.runner import Runner

IDLE_CELLS = 128  # cells of ended sequences that may stay in the pool while others run
MOST_BYTES = 256 << 20  # of parked cells
_WORTH_PARKING = 256  # tokens: while a prompt waits, park cells only if this can save at least this much prefill
_WORTH_BRINGING_BACK = 64  # tokens: bring cells back only if this saves at least this much prefill


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """The parked content of a slot. `taken_over`: as in Slot. `data`: its KV cells as the runner wrote them."""

    tokens: list[int]
    taken_over: int
    data: bytearray


class Parking:
    """The parked prompts of one runner, least recently used first. Only the thread that owns the runner calls it."""

    def __init__(self, runner: Runner, *, idle_cells: int = IDLE_CELLS, most_bytes: int = MOST_BYTES) -> None:
        self._runner = runner
        self._idle_cells = idle_cells
        self._most_bytes = most_bytes
        self._parked: list[Parked] = []

    def rest(self, slots: list[Slot]) -> None:
        """Empty every idle slot while no request waits, so that the next prompt finds an empty pool.

        Moving cells delays no request now, so all cells that are worth bringing back are parked.
        """
        for slot in idle(slots):
            self.clear(slot, slots, worth=_WORTH_BRINGING_BACK)

    def is_due(self, slots: list[Slot]) -> bool:
        """Whether `rest` has anything to do."""
        return bool(idle(slots))

    def make_way(self, slots: list[Slot]) -> None:
        """Empty idle slots, least recently used first, until their cells are within the limit. A sequence begins.

        While other sequences run, only long prompts are parked, because moving cells takes time. If no other sequence
        runs, short prompts are parked too, if a good part of their cells is held nowhere else.
        """
        alone = sum(slot.owner is not None for slot in slots) <= 1
        resting = idle(slots)
        held = sum(len(slot.cells or ()) for slot in resting)
        for slot in resting:
            if held <= self._idle_cells:
                return
            size = len(slot.cells or ())
            held -= size
            good_part = max(_WORTH_BRINGING_BACK, size // 4)
            self.clear(slot, slots, worth=min(good_part, _WORTH_PARKING) if alone else _WORTH_PARKING)

    def clear(self, slot: Slot, slots: list[Slot], *, worth: int = _WORTH_PARKING) -> None:
        """Park the cells of one idle slot if that is worth it, and empty the slot."""
        self.keep(slot, slots, worth=worth)
        self._runner.truncate(slot.id, 0)
        slot.cells = None

    def keep(self, slot: Slot, slots: list[Slot], *, staying: int = 0, worth: int = _WORTH_PARKING) -> None:
        """Park the cells of an idle slot if at least `worth` of its tokens would be lost otherwise.

        Tokens that another slot or a parked prompt holds are not lost. The first `staying` tokens are not lost either:
        the prompt that takes the slot begins with them.
        """
        tokens = slot.cells or []
        elsewhere = (other.shares(tokens) for other in slots if other is not slot)
        known = (common_prefix(tokens, parked.tokens, len(tokens)) for parked in self._parked)
        if len(tokens) - max((staying, *elsewhere, *known)) >= worth:
            self._park(slot, tokens)

    def bring_back(self, slot: Slot, tokens: list[int], beyond: int) -> int:
        """Fill a free slot with the longest parked prefix of `tokens`.

        `beyond`: length of the prefix that a slot already holds; the parked one must be clearly longer.
        Return how many of the first `tokens` the slot holds now; 0 if nothing was done or the pool has no room.
        """
        limit = len(tokens) - 1  # the last token's logits are needed
        lengths = [common_prefix(tokens, parked.tokens, limit) for parked in self._parked]
        length = max(lengths, default=0)
        if length < beyond + _WORTH_BRINGING_BACK:
            return 0
        parked = self._parked[lengths.index(length)]
        self._runner.truncate(slot.id, 0)
        slot.cells = None
        if not self._runner.write_state(slot.id, parked.data):
            return 0
        self._use(parked)
        self._runner.truncate(slot.id, length)
        return length

    def unpark(self, slots: list[Slot]) -> None:
        """Fill empty slots with parked cells, most recently used first, so that they can be saved to disk."""
        empty = [slot for slot in slots if slot.owner is None and not slot.cells]
        for slot, parked in zip(empty, reversed(self._parked), strict=False):
            if self._runner.write_state(slot.id, parked.data):
                slot.cells, slot.taken_over = parked.tokens, parked.taken_over

    def _park(self, slot: Slot, tokens: list[int]) -> None:
        data = self._runner.read_state(slot.id)
        if not data or len(data) > self._most_bytes:
            return
        covered = [old for old in self._parked if common_prefix(old.tokens, tokens, len(old.tokens)) == len(old.tokens)]
        self._parked = [old for old in self._parked if old not in covered]
        self._parked.append(Parked(tokens, slot.taken_over, data))
        while sum(len(parked.data) for parked in self._parked) > self._most_bytes:
            self._parked.pop(0)

    def _use(self, parked: Parked) -> None:
        self._parked.remove(parked)
        self._parked.append(parked)

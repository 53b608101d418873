"""KV slots: allocation, prefix reuse, eviction.

placement.py chooses the slot for a prompt. parking.py moves KV cells to host RAM and back.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tourkit.engine.parking import MOST_BYTES, Parking
from tourkit.engine.placement import Slot, SlotChoice, idle, place, worth_keeping

if TYPE_CHECKING:
    from tourkit.engine.runner import PrefixStore, Runner
    from tourkit.engine.sequence import Sequence


class SlotTable:
    """The slots of one runner. Only the thread that owns the runner may call it.

    `sharing`: prompts may reuse the cells of other prompts. `prefixes`: the store that keeps shared prompts between
    runs. `prompt_cache`: bytes of host RAM for parked cells, None for the default.
    """

    def __init__(
        self, runner: Runner, *, sharing: bool, prefixes: PrefixStore | None, prompt_cache: int | None = None
    ) -> None:
        self._runner = runner
        self._sharing = sharing
        self._prefixes = prefixes if sharing else None
        most_bytes = MOST_BYTES if prompt_cache is None else prompt_cache
        self._parking = Parking(runner, most_bytes=most_bytes) if sharing and runner.one_pool else None
        self.slots = [Slot(i) for i in range(runner.n_slots)]
        self._clock = itertools.count(1)

    @property
    def all_taken(self) -> bool:
        return all(slot.owner is not None for slot in self.slots)

    def place(self, tokens: list[int]) -> SlotChoice | None:
        """Choose a free slot for a prompt. None if it should wait for a prefix that is being prefilled now.

        At least one slot must be free.
        """
        free = [slot for slot in self.slots if slot.owner is None]
        if not self._sharing:
            return SlotChoice(free[0], free[0], 0)
        return place(self.slots if self._runner.shares_kv else free, tokens)

    def take(self, choice: SlotChoice, seq: Sequence) -> None:
        """Give a slot to a sequence, and fill it with the existing cells for its prompt."""
        target, length = choice.target, self._fill(choice, seq.tokens)
        target.owner, target.cells, target.used, target.taken_over = seq, None, next(self._clock), length
        seq.slot, seq.n_kv = target.id, length
        if self._parking is not None:
            self._parking.make_way(self.slots)

    def _fill(self, choice: SlotChoice, tokens: list[int]) -> int:
        """Fill a free slot with the existing cells for a prompt. Return how many tokens they cover."""
        source, target, length = choice.source, choice.target, choice.length
        if self._parking is not None:
            self._parking.keep(target, self.slots, staying=length if source is target else 0)
            if back := self._parking.bring_back(target, tokens, length):
                return back
        if source is target and target.cells is not None:
            return length if self._runner.truncate(target.id, length) else 0
        self._runner.truncate(target.id, 0)
        if source is target:
            return 0
        self._runner.share(source.id, target.id, length)
        return length

    def give_back(self, seq: Sequence, *, keep: bool) -> None:
        """Take the slot from a sequence. `keep`: its cells stay as a prefix for later prompts."""
        if seq.slot is None:
            return
        slot = self.slots[seq.slot]
        slot.cells = seq.tokens[: seq.n_kv] if keep else None
        if not keep:
            self._runner.truncate(slot.id, 0)
        slot.owner, slot.used, seq.slot = None, next(self._clock), None

    def forget_oldest(self) -> bool:
        """Empty the idle slot that was used longest ago. Return False if there is none."""
        resting = idle(self.slots)
        if not resting:
            return False
        if self._parking is not None:
            self._parking.clear(resting[0], self.slots)
        else:
            self._runner.truncate(resting[0].id, 0)
            resting[0].cells = None
        return True

    @property
    def rest_is_due(self) -> bool:
        """Whether `rest` has anything to do."""
        return self._parking is not None and self._parking.is_due(self.slots)

    def rest(self) -> None:
        """Move idle cells out of the pool while no request waits."""
        if self._parking is not None:
            self._parking.rest(self.slots)

    def restore(self) -> None:
        """Load the prompts that the last run saved, as if they had just been answered."""
        if self._prefixes is None:
            return
        for slot_id, tokens in self._prefixes.restore([slot.id for slot in self.slots]).items():
            self.slots[slot_id].cells = tokens

    def save(self) -> None:
        """Save the prefixes that prompts had in common. No slot may be in use."""
        if self._prefixes is None:
            return
        if self._parking is not None:
            self._parking.unpark(self.slots)
        for slot, tokens in worth_keeping(self.slots):
            self._runner.truncate(slot.id, len(tokens))
            self._prefixes.save(slot.id, tokens)

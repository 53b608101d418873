"""Choose the slot for a prompt, and find the slot whose KV cells hold most of it. Pure: no model.

A slot keeps its cells after its sequence has ended, until another prompt needs the slot or the cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tourkit.engine.sequence import Sequence

_WORTH_WAITING = 32  # tokens: wait for the prefill of another prompt if it saves at least this many


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence id of the context. While `owner` is None, `cells` are the tokens whose KV cells it holds."""

    id: int
    owner: Sequence | None = None
    cells: list[int] | None = None
    used: int = 0

    def shares(self, tokens: list[int]) -> int:
        """Return how many of the first `tokens` this slot has KV cells for."""
        if self.owner is not None:
            return common_prefix(self.owner.tokens, tokens, self.owner.n_kv)
        return common_prefix(self.cells, tokens, len(self.cells)) if self.cells else 0

    def will_share(self, tokens: list[int]) -> int:
        """Return the same count for the time after this slot's prefill; 0 if it is not prefilling.

        The prefill covers the prompt and the tokens that a grammar forces after it.
        """
        seq = self.owner
        if seq is None or seq.n_kv >= seq.n_prompt:
            return 0
        return common_prefix(seq.tokens, tokens, len(seq.tokens))


def idle(slots: list[Slot]) -> list[Slot]:
    """Return the slots that hold cells but have no owner, least recently used first."""
    return sorted((slot for slot in slots if slot.owner is None and slot.cells), key=lambda slot: slot.used)


class Beginnings(Protocol):
    """Which beginnings of a slot's cells a model can use for another prompt, of at most `limit` tokens."""

    def there(self, slot: Slot, tokens: list[int], limit: int) -> int:
        """Return how many of the first `tokens` can be taken over from a slot now."""
        ...

    def coming(self, slot: Slot, tokens: list[int], limit: int) -> int:
        """Return the same count for a later time in the slot's prefill; 0 if it is not prefilling or has passed it."""
        ...


class AnyBeginning:
    """Any beginning: a model that has only KV cells."""

    def there(self, slot: Slot, tokens: list[int], limit: int) -> int:
        return min(slot.shares(tokens), limit)

    def coming(self, slot: Slot, tokens: list[int], limit: int) -> int:
        return min(slot.will_share(tokens), limit)


class WholeBeginning:
    """All cells of an idle slot or none: a model with a fixed state, of which there is no copy."""

    def there(self, slot: Slot, tokens: list[int], limit: int) -> int:
        length = slot.shares(tokens)
        return length if slot.owner is None and length <= limit and length == len(slot.cells or ()) else 0

    def coming(self, slot: Slot, tokens: list[int], limit: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class SlotChoice:
    """Use `target`. Its first `length` tokens come from `source`; if both are the same slot, they stay in place."""

    target: Slot
    source: Slot
    length: int


_ANY = AnyBeginning()


def place(slots: list[Slot], tokens: list[int], cached: int = 0, beginnings: Beginnings = _ANY) -> SlotChoice | None:
    """Return the best free slot for a prompt; None if no slot is free or if waiting for a shared prefix pays.

    `cached`: how many of the first tokens the prompt cache holds; for these it need not wait. At least the last token
    is left to decode, because its logits are needed.
    """
    free = [slot for slot in slots if slot.owner is None]
    if not free:
        return None
    limit = len(tokens) - 1
    lengths = {slot.id: beginnings.there(slot, tokens, limit) for slot in slots}
    source = max(slots, key=lambda slot: (lengths[slot.id], slot.owner is None))
    length = lengths[source.id]
    coming = max(beginnings.coming(slot, tokens, limit) for slot in slots)
    there = max(length, min(cached, limit))
    if coming >= there + _WORTH_WAITING or (coming == limit > there):
        return None
    if source.owner is None and length > 0:
        return SlotChoice(source, source, length)
    target = min(free, key=lambda slot: (bool(slot.cells), slot.used))
    return SlotChoice(target, source if length else target, length)


def common_prefix(a: list[int], b: list[int], end: int) -> int:
    """Return the length of the longest common prefix of `a[:end]` and `b`."""
    end = min(end, len(b))
    at = 0
    while at + 64 <= end and a[at : at + 64] == b[at : at + 64]:
        at += 64
    while at < end and a[at] == b[at]:
        at += 1
    return at

"""Choose the slot for a prompt, and find the slot whose KV cells hold most of it. Pure: no model.

A slot keeps its cells after its sequence has ended, until another prompt needs the slot or the cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.engine.sequence import Sequence

_WORTH_KEEPING = 64  # tokens: shorter prefixes are not kept on disk for the next start
_WORTH_WAITING = 32  # tokens: wait for the prefill of another prompt if it saves at least this many


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence id of the context. While `owner` is None, `cells` are the tokens whose KV cells it holds.

    `taken_over`: how many of these tokens its last sequence took from an earlier one.
    """

    id: int
    owner: Sequence | None = None
    cells: list[int] | None = None
    used: int = 0
    taken_over: int = 0

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


@dataclass(frozen=True, slots=True)
class SlotChoice:
    """Use `target`. Its first `length` tokens come from `source`; if both are the same slot, they stay in place."""

    target: Slot
    source: Slot
    length: int


def place(slots: list[Slot], tokens: list[int]) -> SlotChoice | None:
    """Return the best free slot for a prompt; None if no slot is free or if waiting for a shared prefix pays.

    At least the last token is left to decode, because its logits are needed.
    """
    free = [slot for slot in slots if slot.owner is None]
    if not free:
        return None
    limit = len(tokens) - 1
    lengths = {slot.id: min(slot.shares(tokens), limit) for slot in slots}
    source = max(slots, key=lambda slot: (lengths[slot.id], slot.owner is None))
    length = lengths[source.id]
    coming = min(max(slot.will_share(tokens) for slot in slots), limit)
    if coming >= length + _WORTH_WAITING or (coming == limit > length):
        return None
    if source.owner is None and length > 0:
        return SlotChoice(source, source, length)
    target = min(free, key=lambda slot: (bool(slot.cells), slot.used))
    return SlotChoice(target, source if length else target, length)


def worth_keeping(slots: list[Slot]) -> list[tuple[Slot, list[int]]]:
    """Return the prefixes to keep for the next start, longest first: what prompts had in common, each only once."""
    shared = [(slot, slot.cells[: slot.taken_over]) for slot in slots if slot.cells]
    kept: list[tuple[Slot, list[int]]] = []
    for slot, tokens in sorted(shared, key=lambda pair: -len(pair[1])):
        begins = any(other[: len(tokens)] == tokens for _, other in kept)
        if len(tokens) >= _WORTH_KEEPING and not begins:
            kept.append((slot, tokens))
    return kept


def common_prefix(a: list[int], b: list[int], end: int) -> int:
    """Return the length of the longest common prefix of `a[:end]` and `b`."""
    end = min(end, len(b))
    at = 0
    while at + 64 <= end and a[at : at + 64] == b[at : at + 64]:
        at += 64
    while at < end and a[at] == b[at]:
        at += 1
    return at

"""KV slots: allocation, prefix reuse, eviction.

placement.py chooses the slot for a prompt. parking.py moves KV cells to the prompt cache and back. checkpoints.py says
how prompts of hybrid models share.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tourkit.engine.checkpoints import FromCheckpoints, cut_for, positions, spacing
from tourkit.engine.costs import Costs
from tourkit.engine.parking import Parking
from tourkit.engine.placement import AnyBeginning, Beginnings, Slot, SlotChoice, WholeBeginning, idle, place
from tourkit.engine.prompt_cache import DEFAULT_BYTES, PromptCache
from tourkit.generation import PrefixSharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tourkit.engine.run_store import RunStore
    from tourkit.engine.runner import Runner
    from tourkit.engine.sequence import Sequence


class SlotTable:
    """The slots of one runner. Only the thread that owns the runner may call it.

    `prefill_rate`: returns the measured tokens a second. `sharing`: prompts may reuse the cells of other prompts.
    `prompt_cache`: bytes of host RAM for cells of ended prompts, None for the default. `store`: the disk for them.
    """

    def __init__(
        self,
        runner: Runner,
        prefill_rate: Callable[[], float],
        prompt_cache: int | None = None,
        store: RunStore | None = None,
        *,
        sharing: bool,
    ) -> None:
        self._runner = runner
        self._costs = costs = Costs(prefill_rate)
        longest = runner.longest_run if sharing else 0
        most_bytes = DEFAULT_BYTES if prompt_cache is None else prompt_cache
        self._cache = PromptCache(longest, costs, most_bytes=most_bytes, store=store)
        self.prefix_sharing = self._how_to_share() if sharing else PrefixSharing.OFF
        self._beginnings = self._usable_beginnings()
        moves_cells = self.prefix_sharing in (PrefixSharing.ANY, PrefixSharing.CHECKPOINTS)
        self._parking = Parking(runner, self._cache, costs) if moves_cells and runner.one_pool else None
        self.slots = [Slot(i) for i in range(runner.n_slots)]
        self._clock = itertools.count(1)

    def _how_to_share(self) -> PrefixSharing:
        if self._runner.partial_kv:
            return PrefixSharing.ANY
        has_copies = self._runner.checkpoints and self._runner.one_pool and self._cache.is_on
        return PrefixSharing.CHECKPOINTS if has_copies else PrefixSharing.WHOLE

    @property
    def sharing_text(self) -> str:
        """How prompts share, and the reason if they share less than this model could."""
        if self.prefix_sharing is PrefixSharing.OFF:
            return f"{PrefixSharing.OFF}: --deterministic"
        if self.prefix_sharing is not PrefixSharing.WHOLE:
            return str(self.prefix_sharing)
        has_no_room = self._runner.checkpoints and not self._cache.is_on
        why = "the prompt cache has no room for copies of it" if has_no_room else "it cannot be copied"
        return f"{PrefixSharing.WHOLE}: the model has a fixed state, and {why}"

    def _usable_beginnings(self) -> Beginnings:
        if self.prefix_sharing is PrefixSharing.CHECKPOINTS:
            return FromCheckpoints(self._cache.checkpoint, self._fits)
        return AnyBeginning() if self.prefix_sharing is PrefixSharing.ANY else WholeBeginning()

    def _fits(self) -> bool:
        """Whether the prompt cache has room for two checkpoints: a prompt's own must not drop the one it came from."""
        return 2 * self._costs.state_bytes <= self._cache.most_bytes

    @property
    def all_taken(self) -> bool:
        return all(slot.owner is not None for slot in self.slots)

    def place(self, seq: Sequence) -> SlotChoice | None:
        """Choose a free slot for a prompt. None if it should wait for a prefix that is being prefilled now.

        At least one slot must be free. A prompt whose tokens are scored is computed from its first token.
        """
        tokens = seq.tokens
        free = [slot for slot in self.slots if slot.owner is None]
        if seq.scores is not None:
            longest_idle = min(free, key=lambda slot: (bool(slot.cells), slot.used))
            return SlotChoice(longest_idle, longest_idle, 0)
        if self.prefix_sharing is PrefixSharing.OFF:
            return SlotChoice(free[0], free[0], 0)
        by_checkpoints = self.prefix_sharing is PrefixSharing.CHECKPOINTS
        slots = self.slots if self._runner.shares_kv or by_checkpoints else free
        found = place(slots, tokens, 0, self._beginnings)
        if found is None:
            found = place(slots, tokens, self._cached(tokens), self._beginnings)
        if found is None and by_checkpoints:
            cut_for(slots, tokens, self._beginnings)
        return found

    def _cached(self, tokens: list[int]) -> int:
        """Return how many of the first tokens of a prompt the prompt cache has all for."""
        length = min(self._cache.length_of(tokens), len(tokens) - 1)
        if self.prefix_sharing is not PrefixSharing.CHECKPOINTS:
            return length
        state = self._cache.checkpoint(tokens, length)
        return state.start if state is not None else 0

    def take(self, choice: SlotChoice, seq: Sequence) -> None:
        """Give a slot to a sequence, and fill it with the existing cells for its prompt."""
        target, length = choice.target, self._fill(choice, seq)
        target.owner, target.cells, target.used = seq, None, next(self._clock)
        seq.slot, seq.n_kv = target.id, length
        seq.cuts = self._checkpoints_for(seq)
        if self._parking is not None:
            self._parking.make_way(self.slots)

    def _fill(self, choice: SlotChoice, seq: Sequence) -> int:
        """Fill a free slot with the existing cells for a prompt. Return how many tokens they cover."""
        tokens = seq.tokens
        source, target, length = choice.source, choice.target, choice.length
        in_place = source is target
        if self._parking is not None:
            self._parking.keep(target, self.slots, staying=length if in_place else 0)
        kept = in_place and target.cells is not None
        is_whole = kept and length == len(target.cells or ())  # then the slot has the fixed state for exactly these
        goes_back = self.prefix_sharing is PrefixSharing.CHECKPOINTS and length > 0 and not is_whole
        if kept and goes_back:
            have = length
        else:
            have = length if self._runner.truncate(target.id, length if kept else 0) and kept else 0
        target.cells = None
        if not in_place and self._runner.share(source.id, target.id, length):
            have = length
        if self._parking is None or seq.scores is not None:
            return have
        if goes_back and have:
            have = self._parking.go_back(target, tokens, have)
        return self._parking.bring_back(target, tokens, have)

    def _checkpoints_for(self, seq: Sequence) -> list[int]:
        """Return where a sequence that begins makes checkpoints."""
        if self.prefix_sharing is not PrefixSharing.CHECKPOINTS or not self._fits():
            return []
        others = (slot.shares(seq.tokens) for slot in self.slots if slot.owner is not seq)
        branch = max(self._cache.common(seq.tokens), *others, 0)
        step = spacing(seq.n_prompt, self._costs.state_bytes, self._cache.most_bytes)
        at, cuts = seq.n_kv, []
        for position in positions(seq.n_kv, seq.n_prompt, branch, step):
            if self._costs.worth_checkpoint(position - at):
                cuts.append(position)
                at = position
        return cuts

    def computed(self, seq: Sequence, end: int) -> None:
        """Note that a sequence has cells up to `end` now, and make a checkpoint if one is due there."""
        seq.n_kv = end
        if not seq.cuts or seq.cuts[0] > end or seq.slot is None or self._parking is None:
            return
        del seq.cuts[0]
        is_first = not self._costs.state_bytes
        self._parking.make_checkpoint(self.slots[seq.slot], seq.tokens[:end])
        if is_first:  # the size of a checkpoint is known only now
            seq.cuts = self._checkpoints_for(seq)

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

    def cache_stats(self) -> dict[str, int]:
        """The figures of the prompt cache, by the fields of EngineStats. Any thread may call it."""
        cache, parking = self._cache, self._parking
        return {
            "prompt_cache_bytes": cache.n_bytes,
            "prompt_cache_limit_bytes": cache.most_bytes,
            "prompt_cache_disk_bytes": cache.disk_bytes,
            "prompt_cache_entries": cache.n_kept,
            "prompt_cache_hits_total": parking.hits if parking else 0,
            "prompt_cache_tokens_total": parking.tokens_found if parking else 0,
        }

    def close(self) -> None:
        """End the writing of cells to disk."""
        self._cache.close()

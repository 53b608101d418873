"""Parking: KV cells of ended sequences leave the model's memory, and come back when a prompt begins like theirs.

If all slots share one pool of KV cells, decoding attends to every used cell. So the cells of finished prompts slow down
running sequences. Only the latest of them stay in the pool, and none stay while no sequence runs. The others go to the
prompt cache (prompt_cache.py) if they come back sooner than they are computed again, as measured on this machine.

A hybrid model goes on from a checkpoint only (checkpoints.py). So the cells up to its last checkpoint are parked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tourkit.engine.placement import idle

if TYPE_CHECKING:
    from tourkit.engine.costs import Costs
    from tourkit.engine.placement import Slot
    from tourkit.engine.prompt_cache import PromptCache
    from tourkit.engine.prompt_tree import Run
    from tourkit.engine.runner import Runner

IDLE_CELLS = 128  # cells of ended sequences that may stay in the pool while others run


class Parking:
    """Moves cells between the slots of one runner and the prompt cache. Only the engine's thread calls it."""

    def __init__(self, runner: Runner, cache: PromptCache, costs: Costs, *, idle_cells: int = IDLE_CELLS) -> None:
        self._runner = runner
        self._cache = cache
        self._costs = costs
        self._idle_cells = idle_cells
        self.hits = self.tokens_found = 0  # prompts that cells came back for, and how many tokens these cells cover

    @property
    def n_bytes(self) -> int:
        """Bytes of the parked cells in RAM."""
        return self._cache.n_bytes

    def rest(self, slots: list[Slot]) -> None:
        """Empty every idle slot while no request waits, so that the next prompt finds an empty pool."""
        for slot in idle(slots):
            self.clear(slot, slots, waiting=False)

    def is_due(self, slots: list[Slot]) -> bool:
        """Whether `rest` has anything to do."""
        return bool(idle(slots))

    def make_way(self, slots: list[Slot]) -> None:
        """Empty idle slots, least recently used first, until their cells are within the limit. A sequence begins."""
        resting = idle(slots)
        held = sum(len(slot.cells or ()) for slot in resting)
        for slot in resting:
            if held <= self._idle_cells:
                return
            held -= len(slot.cells or ())
            self.clear(slot, slots)

    def clear(self, slot: Slot, slots: list[Slot], *, waiting: bool = True) -> None:
        """Park the cells of one idle slot if that is worth it, and empty the slot."""
        self.keep(slot, slots, waiting=waiting)
        self._runner.truncate(slot.id, 0)
        slot.cells = None

    def keep(self, slot: Slot, slots: list[Slot], *, staying: int = 0, waiting: bool = True) -> None:
        """Park the cells of an idle slot if that is worth it. `waiting`: a prompt waits meanwhile.

        Tokens that another slot or the cache holds are not lost. The first `staying` tokens are not lost either: the
        prompt that takes the slot begins with them.
        """
        tokens = slot.cells or []
        if self._runner.checkpoints:
            last = self._cache.checkpoint(tokens, len(tokens))
            tokens = tokens[: last.start] if last is not None else []
        if not tokens:
            return
        known = self._cache.length_of(tokens)
        lost = len(tokens) - max(known, staying, *(other.shares(tokens) for other in slots if other is not slot), 0)
        missing = self._cache.missing(tokens) if lost > 0 else []  # the tree remembers them in any case
        if self._costs.worth_parking(lost, len(tokens) - known, waiting=waiting):
            for run in missing:
                if not self._park(slot, run):
                    return
            self._cache.store_states(tokens)

    def _park(self, slot: Slot, run: Run) -> bool:
        began = time.perf_counter()
        cells = self._runner.read_cells(slot.id, run.start, run.end)
        self._costs.out.learn(len(cells), time.perf_counter() - began)
        return bool(cells) and self._cache.add(run, cells)

    def bring_back(self, slot: Slot, tokens: list[int], have: int) -> int:
        """Add cells from the cache to a slot that holds the first `have` tokens of a prompt.

        Nothing is added if computing the tokens is sooner done, or if the pool has no room. At least the last token is
        left to decode, because its logits are needed. Return how many of the first `tokens` the slot holds now.
        """
        limit, before = len(tokens) - 1, have
        if self._runner.checkpoints:
            have = self._bring_back_to_checkpoint(slot, tokens, have, limit)
            self._count(have - before)
            return have
        for run, end in self._worth_bringing_back(tokens, have, limit):
            cells = self._cache.load(run)
            if cells is None:
                break
            began = time.perf_counter()
            if not self._runner.write_cells(slot.id, cells, have, end):
                break
            self._costs.back.learn(len(cells), time.perf_counter() - began)
            have = end
        if have == before:
            return have
        if not self._runner.truncate(slot.id, have):
            return 0
        self._count(have - before)
        return have

    def _count(self, found: int) -> None:
        if found > 0:
            self.hits += 1
            self.tokens_found += found

    def _worth_bringing_back(self, tokens: list[int], have: int, limit: int) -> list[tuple[Run, int]]:
        """Return the runs to add, each with the position up to which it is used: those that save the most time."""
        runs: list[tuple[Run, int]] = []
        best, n_best, seconds = 0.0, 0, 0.0
        for step in self._cache.look_up(tokens):
            end = min(step.end, limit)
            if end <= have:
                continue
            runs.append((step.run, end))
            if step.run.cells is None:
                seconds += self._costs.disk.seconds(step.run.n_bytes)
            seconds += self._costs.back.seconds(step.run.n_bytes)
            saved = self._costs.prefill(end - have) - seconds
            if saved >= best:
                best, n_best = saved, len(runs)
        return runs[:n_best]

    # --- hybrid models --------------------------------------------------------------------------------------------

    def make_checkpoint(self, slot: Slot, tokens: list[int]) -> None:
        """Keep the fixed state of a slot that has just computed the last of these tokens."""
        began = time.perf_counter()
        state = self._runner.read_state(slot.id)
        self._costs.out.learn(len(state), time.perf_counter() - began)
        self._costs.states.offer(len(tokens))
        if state:
            self._cache.add_state(tokens, state)

    def go_back(self, slot: Slot, tokens: list[int], most: int) -> int:
        """Let a slot that holds the first `most` tokens of a prompt go on from the last checkpoint in them.

        Return how many tokens the slot holds then. It is empty if there is no checkpoint.
        """
        while (state := self._cache.checkpoint(tokens, most)) is not None:
            data = self._cache.load(state)
            if data is None:
                continue  # the disk has lost it
            began = time.perf_counter()
            if self._runner.write_state(slot.id, data) and self._runner.truncate(slot.id, state.start):
                self._costs.back.learn(len(data), time.perf_counter() - began)
                self._cache.use(state)
                return state.start
            break
        self._runner.truncate(slot.id, 0)
        return 0

    def _bring_back_to_checkpoint(self, slot: Slot, tokens: list[int], have: int, limit: int) -> int:
        """Add the cells up to the last checkpoint that the cache has cells for, if this is sooner done than computing.

        Return how many of the first `tokens` the slot holds now.
        """
        steps = self._cache.look_up(tokens)
        state = self._cache.checkpoint(tokens, min(steps[-1].end if steps else 0, limit))
        if state is None or state.start <= have:
            return have
        parts = [(step.run, min(step.end, state.start)) for step in steps if step.end > have]
        parts = [(run, end) for run, end in parts if run.start < end]
        moved = [run for run, _ in parts] + [state]
        seconds = sum(self._costs.back.seconds(run.n_bytes) for run in moved)
        seconds += sum(self._costs.disk.seconds(run.n_bytes) for run in moved if run.cells is None)
        if self._costs.prefill(state.start - have) < seconds:
            return have
        at = have
        for run, end in parts:
            cells = self._cache.load(run)
            if cells is None or not self._runner.write_cells(slot.id, cells, at, end):
                break
            at = end
        return have if at == have else self.go_back(slot, tokens, at)

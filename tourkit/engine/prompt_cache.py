"""The KV cells of earlier prompts outside the model's memory: in RAM, and on disk if there is a store.

prompt_tree.py finds what prompts have in common. retention.py says what to drop first, costs.py what is worth keeping.
A run is kept only together with all runs before it, because cells are of no use without the cells before them.
The checkpoints of hybrid models (checkpoints.py) are kept here too, and count towards the same limits.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from tourkit.engine.checkpoints import Checkpoints
from tourkit.engine.prompt_tree import Disk, PromptTree, Run, Step
from tourkit.engine.retention import drop_order, touch
from tourkit.engine.run_store import MOST_TOKENS, file_size

if TYPE_CHECKING:
    from tourkit.engine.costs import Costs
    from tourkit.engine.run_store import RunStore

DEFAULT_BYTES = 256 << 20  # of RAM
_SLACK = 32  # if RAM or disk is full, free this part of it more, so that choosing what to drop is rare
_MOST_REMEMBERED = 1 << 20  # tokens of runs that are not kept; they cost four bytes each
_MOST_FILES = 1 << 14  # on disk: each costs 2 KB of RAM, and the next start reads its header
_CELLS_PART = 1 / 4  # of the bytes: counted for cells, however much the checkpoints take now
_SWEEP_AFTER = 1 << 16  # new tokens after which forgotten runs are counted again


class PromptCache:
    """The cached runs of one engine. Only the engine's thread calls it.

    `longest`: most tokens in a run, 0 if this model's cells cannot be moved. `most_bytes`: of RAM. `store`: the disk.
    """

    def __init__(self, longest: int, costs: Costs, *, most_bytes: int, store: RunStore | None = None) -> None:
        self._costs = costs
        self._tree = PromptTree(max(1, longest))
        self._states = Checkpoints()
        self._store = store
        self.is_on = longest > 0 and most_bytes > 0
        self.most_bytes = most_bytes if self.is_on else 0
        self.n_bytes = self.disk_bytes = self._state_bytes = 0  # of checkpoints: in RAM
        self.n_kept = self._n_files = 0  # runs in RAM or on disk; on disk
        self._now = 0  # tokens of prompts so far
        self._sweep_at = _SWEEP_AFTER
        if store is not None:
            self._take_over(store)

    # --- finding --------------------------------------------------------------------------------------------------

    def length_of(self, tokens: list[int]) -> int:
        """Return how many of the first `tokens` are kept."""
        steps = self._kept(self._tree.find(tokens)) if self.is_on else []
        return steps[-1].end if steps else 0

    def look_up(self, tokens: list[int]) -> list[Step]:
        """Return the kept runs that hold a beginning of a prompt, and note that the prompt is asked for."""
        if not self.is_on:
            return []
        self._settle()
        self._now += len(tokens)
        steps = self._tree.find(tokens)
        capacity = self._capacity(self.most_bytes)
        for step in steps:
            touch(step.run, self._now, capacity)
            if step.run.disk is Disk.YES and self._store is not None:
                self._store.use(step.run.name)
        if steps:
            self._costs.cells.ask(steps[-1].end)
        return self._kept(steps)

    def load(self, run: Run) -> bytearray | None:
        """Return the cells of a kept run. None if the disk has lost them: then it is no longer kept."""
        if run.cells is not None:
            return run.cells
        began = time.perf_counter()
        cells = self._store.read(run) if self._store is not None and run.disk is Disk.YES else None
        if cells is None:
            self._lose(run)
            return None
        self._costs.disk.learn(len(cells), time.perf_counter() - began)
        self._set_cells(run, cells)
        self._shrink()
        return cells

    def common(self, tokens: list[int]) -> int:
        """Return how many of the first `tokens` an earlier prompt has too, whether their cells are kept or not."""
        steps = self._tree.find(tokens) if self.is_on else []
        return steps[-1].end if steps else 0

    def checkpoint(self, tokens: list[int], most: int) -> Run | None:
        """Return the kept checkpoint after the longest beginning of a prompt, of at most `most` tokens."""
        return self._states.longest(tokens, most) if self.is_on else None

    def use(self, state: Run) -> None:
        """Note that a prompt goes on from a checkpoint."""
        touch(state, self._now, self._capacity(self.most_bytes))
        self._costs.states.ask(state.start)
        if state.disk is Disk.YES and self._store is not None:
            self._store.use(state.name)

    # --- keeping --------------------------------------------------------------------------------------------------

    def missing(self, tokens: list[int]) -> list[Run]:
        """Return the runs of a prompt that are not kept, in order. A prompt longer than the cache is cut."""
        if not self.is_on:
            return []
        self._sweep(tokens)
        missing = [run for run in self._tree.insert(tokens, self._now) if not run.is_kept]
        self._costs.cells.offer(sum(len(run.tokens) for run in missing))
        return [run for run in missing if run.end * self._costs.cell_bytes <= self.most_bytes]

    def add(self, run: Run, cells: bytearray) -> bool:
        """Keep the cells of a run in RAM. Return False if it or what comes before it is not kept."""
        self._settle()
        if run.parent is not None and not run.parent.is_kept:
            return False
        self._set_cells(run, cells)
        self._shrink()
        self._queue(run)
        return run.is_kept

    def add_state(self, tokens: list[int], state: bytearray) -> None:
        """Keep the fixed state after these tokens in RAM."""
        self._settle()
        steps = self._tree.find(tokens)
        run = self._states.add(array("i", tokens))
        run.last, run.interval = self._now, steps[-1].run.interval if steps else None  # as the cells of these tokens
        self._costs.measure_state(len(state))
        self._set_cells(run, state)
        self._shrink()

    def store_states(self, tokens: list[int]) -> None:
        """Let the store write the checkpoints of a prompt. Call it after the cells of the prompt were added."""
        for run in self._states.along(tokens) if self._store is not None else ():
            self._queue(run)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    # --- RAM ------------------------------------------------------------------------------------------------------

    def _capacity(self, n_bytes: int) -> int:
        """Return how many tokens fit into so many bytes; 0 if the size of a cell is not known yet.

        Checkpoints take the part of the bytes that they take now, or three quarters if this is less.
        """
        part = max(_CELLS_PART, 1 - self._state_bytes / self.n_bytes) if self.n_bytes else 1.0
        return int(n_bytes * part / self._costs.cell_bytes) if self._costs.cell_bytes else 0

    @staticmethod
    def _kept(steps: Iterable[Step]) -> list[Step]:
        kept = []
        for step in steps:
            if not step.run.is_kept:
                break
            kept.append(step)
        return kept

    def _set_cells(self, run: Run, cells: bytearray | None) -> None:
        """Put the cells of a run into RAM or, if None, drop them from RAM."""
        before, more = run.is_kept, len(cells or ()) - len(run.cells or ())
        self.n_bytes += more
        self._state_bytes += more if run.is_state else 0
        run.cells = cells
        if cells is not None:
            run.n_bytes = len(cells)
            if not run.is_state:
                self._costs.measure(len(run.tokens), len(cells))
        self.n_kept += run.is_kept - before
        self._forget_if_gone(run)

    def _set_disk(self, run: Run, disk: Disk) -> None:
        before, size = run.is_kept, file_size(run.n_bytes, len(run.tokens))
        more = (disk is not Disk.NO) - (run.disk is not Disk.NO)
        self.disk_bytes += size * more
        self._n_files += more
        run.disk = disk
        self.n_kept += run.is_kept - before
        self._forget_if_gone(run)

    def _forget_if_gone(self, run: Run) -> None:
        """Forget a checkpoint that is neither in RAM nor on disk. The tree still remembers its prompt."""
        if run.is_state and run.cells is None and run.disk is Disk.NO:
            self._states.remove(run)

    def _all_runs(self) -> Iterator[Run]:
        return chain(self._tree, self._states)

    def _find(self, name: bytes) -> Run | None:
        return self._tree.get(name) or self._states.get(name)

    def _shrink(self) -> None:
        """Drop cells from RAM until they are within the limit: the ends of prompts first, in the order of retention."""
        if self.n_bytes <= self.most_bytes:
            return
        goal = self.most_bytes - self.most_bytes // _SLACK
        for run in drop_order(self._all_runs(), self._may_leave_ram, self._now, self._capacity(self.most_bytes)):
            self._set_cells(run, None)
            if self.n_bytes <= goal:
                return

    @staticmethod
    def _may_leave_ram(run: Run) -> bool:
        if run.cells is None:
            return False
        below = run.children.values()
        if run.disk is Disk.YES:
            return all(child.cells is None for child in below)
        return not any(child.is_kept for child in below)

    # --- disk -----------------------------------------------------------------------------------------------------

    def _queue(self, run: Run) -> None:
        """Let the store write a run if that is worth it and there is room."""
        if self._store is None or run.cells is None or run.disk is not Disk.NO:
            return
        if (run.parent is not None and run.parent.disk is Disk.NO) or len(run.tokens) > MOST_TOKENS:
            return
        size = file_size(run.n_bytes, len(run.tokens))
        if self._costs.worth_writing(len(run.tokens), run.n_bytes) and self._make_room(self._store, size):
            self._set_disk(run, Disk.QUEUED)
            self._store.write(run)

    def _make_room(self, store: RunStore, size: int) -> bool:
        """Remove files until one more of `size` bytes is within the limits. Return False if that is not possible."""
        if self.disk_bytes + size <= store.limit and self._n_files < _MOST_FILES:
            return True
        goal, most = store.limit - store.limit // _SLACK - size, _MOST_FILES - _MOST_FILES // _SLACK
        for run in drop_order(self._all_runs(), self._may_leave_disk, self._now, self._capacity(store.limit)):
            self._set_disk(run, Disk.NO)
            store.remove(run.name)
            if self.disk_bytes <= goal and self._n_files < most:
                return True
        return self.disk_bytes + size <= store.limit and self._n_files < _MOST_FILES

    @staticmethod
    def _may_leave_disk(run: Run) -> bool:
        below = run.children.values()
        if run.disk is not Disk.YES or any(child.disk is not Disk.NO for child in below):
            return False
        return run.cells is not None or not any(child.is_kept for child in below)

    def _settle(self) -> None:
        """Take in which writes have ended."""
        if self._store is None:
            return
        for written in self._store.settle():
            run = written.run
            if not written.done:
                self._set_disk(run, Disk.NO)
                continue
            self._costs.disk.learn(run.n_bytes, written.seconds)
            after_parent = run.parent is None or run.parent.disk is Disk.YES
            same = self._find(run.name)  # another run, if this one was forgotten and its prompt came again
            wanted = after_parent and same is run
            self._set_disk(run, Disk.YES if wanted else Disk.NO)
            if not wanted and same in (run, None):
                self._store.remove(run.name)

    def _lose(self, run: Run) -> None:
        """Drop a run whose file is damaged, and all runs below it, which are of no use without it."""
        below = [run]
        while below:
            each = below.pop()
            below += each.children.values()
            self._set_cells(each, None)
            if each.disk is Disk.YES and self._store is not None:
                self._set_disk(each, Disk.NO)
                self._store.remove(each.name)

    def _take_over(self, store: RunStore) -> None:
        """Read what earlier processes left on disk. What was used last counts as used last."""
        runs: list[tuple[int, Run]] = []
        for found in store.scan() if self.is_on else ():
            parent = self._tree.get(found.parent) if found.parent else None
            fits = parent is not None and parent.start < found.start <= parent.end
            is_state = not found.parent and found.start == len(found.tokens)
            if not fits and not is_state and (found.parent or found.start):
                store.remove(found.name)  # what comes before it is gone
                continue
            run = self._states.add(found.tokens) if is_state else self._tree.add(parent, found.start, found.tokens)
            run.n_bytes = found.n_bytes
            if is_state:
                self._costs.measure_state(found.n_bytes)
            else:
                self._costs.measure(len(found.tokens), found.n_bytes)
            self._set_disk(run, Disk.YES)
            runs.append((found.used, run))
        for _, run in sorted(runs, key=lambda pair: pair[0]):
            self._now += len(run.tokens)
            run.last = self._now

    # --- memory of prompts ----------------------------------------------------------------------------------------

    def _sweep(self, tokens: list[int]) -> None:
        """Forget the runs that are not kept and were used longest ago, if there are too many of them."""
        self._sweep_at -= len(tokens)
        if self._sweep_at > 0:
            return
        self._sweep_at = _SWEEP_AFTER
        left = _MOST_REMEMBERED
        for run in sorted((run for run in self._tree if not run.is_kept), key=lambda run: (-run.last, run.start)):
            left -= len(run.tokens)
            if left < 0 and self._tree.get(run.name) is run and run.disk is Disk.NO:
                self._tree.remove(run)

"""Checkpoints of hybrid models: copies of the fixed state of a sequence at chosen positions of its prompt. No model.

A hybrid model has layers with a recurrent or convolutional state beside those with KV cells. The cells of a prompt's
beginning can be used alone. The state cannot: it stands for all tokens so far, and no token can be taken out of it. So
a prompt can go on only where a copy of the state was made. Such a copy is made between two calls of the model:

- near the end of a prompt, so that the next turn of a chat and other votes on the same prompt go on from there;
- where the prompt leaves an earlier one, because a third prompt mostly leaves there too;
- where a waiting prompt leaves a prompt that is being computed;
- at every `spacing` tokens of a long prompt, because the second question about a document comes before any of these.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tourkit.engine.placement import WholeBeginning
from tourkit.engine.prompt_tree import Run, run_name

if TYPE_CHECKING:
    from tourkit.engine.placement import Beginnings, Slot

BEFORE_END = 8  # tokens before a prompt's end: the next turn of a chat often replaces the opening of the answer
WORTH = 32  # tokens: a checkpoint is not made if another one is at most so many tokens before it
_LEAST_SPACING = 512  # tokens
_PART = 1 / 4  # of the prompt cache: what the checkpoints of one prompt may take


def spacing(n_tokens: int, state_bytes: int, most_bytes: int) -> int:
    """Return how many tokens are between two checkpoints of a prompt of `n_tokens`: a power of two from 512 on.

    The states of the prompt take at most a quarter of `most_bytes`. All prompts have their checkpoints at multiples of
    these numbers, so prompts with the same beginning mostly have them at the same positions.
    """
    most = max(1, int(most_bytes * _PART) // max(1, state_bytes))
    step = _LEAST_SPACING
    while n_tokens > step * most:
        step *= 2
    return step


def positions(start: int, n_prompt: int, branch: int, step: int) -> list[int]:
    """Return the positions of the checkpoints of a prompt that is computed from `start` on, in order.

    `branch`: where it leaves an earlier prompt. `step`: the spacing. None is within 32 tokens after another.
    """
    end = n_prompt - BEFORE_END
    wished = {end, branch, *range((start // step + 1) * step, end - step // 2, step)}
    chosen: list[int] = []
    for position in sorted(wished):
        if start + WORTH < position <= end and position - (chosen[-1] if chosen else start) > WORTH:
            chosen.append(position)
    return chosen


def cut_for(slots: list[Slot], tokens: list[int], beginnings: Beginnings) -> None:
    """Let the prompt that a waiting one has most in common with make a checkpoint where the waiting one leaves it."""
    limit = len(tokens) - 1
    slot = max(slots, key=lambda each: beginnings.coming(each, tokens, limit))
    position = beginnings.coming(slot, tokens, limit)
    if slot.owner is not None and position and position not in slot.owner.cuts:
        insort(slot.owner.cuts, position)


class FromCheckpoints:
    """The beginnings that a hybrid model can use: up to a checkpoint, or all cells of an idle slot.

    `checkpoint`: returns the kept checkpoint after the longest beginning of tokens, of at most so many. `fits`: whether
    there is room for new ones.
    """

    def __init__(self, checkpoint: Callable[[list[int], int], Run | None], fits: Callable[[], bool]) -> None:
        self._checkpoint = checkpoint
        self._fits = fits
        self._whole = WholeBeginning()

    def there(self, slot: Slot, tokens: list[int], limit: int) -> int:
        whole = self._whole.there(slot, tokens, limit)
        length = 0 if whole else min(slot.shares(tokens), limit)
        state = self._checkpoint(tokens, length) if length else None
        return state.start if state is not None else whole

    def coming(self, slot: Slot, tokens: list[int], limit: int) -> int:
        """Return the position of the checkpoint to wait for: one that is planned, or a new one where `tokens` leave."""
        seq, length = slot.owner, min(slot.will_share(tokens), limit)
        if seq is None or length <= seq.n_kv or not self._fits():
            return 0
        new = length if length - seq.n_kv > WORTH else 0
        return next((cut for cut in reversed(seq.cuts) if length - WORTH <= cut <= length), new)


class Checkpoints:
    """The checkpoints that are known. Each is a run of its own, outside the tree of runs: see `Run.is_state`."""

    def __init__(self) -> None:
        self._at: dict[int, list[Run]] = {}  # by position

    def __iter__(self) -> Iterator[Run]:
        return (run for runs in self._at.values() for run in runs)

    def get(self, name: bytes) -> Run | None:
        return next((run for run in self if run.name == name), None)

    def add(self, tokens: array[int]) -> Run:
        """Return the checkpoint after these tokens, a new one if there is none."""
        position = len(tokens)
        runs = self._at.setdefault(position, [])
        for run in runs:
            if run.tokens == tokens:
                return run
        runs.append(Run(None, position, tokens, run_name(b"", position, tokens)))
        return runs[-1]

    def remove(self, run: Run) -> None:
        runs = self._at[run.start]
        runs.remove(run)
        if not runs:
            del self._at[run.start]

    def along(self, tokens: list[int]) -> list[Run]:
        """Return all checkpoints of a prompt, the shortest first."""
        all_tokens = array("i", tokens)
        beginnings = {at: all_tokens[:at] for at in sorted(self._at) if at <= len(tokens)}
        return [run for at, beginning in beginnings.items() for run in self._at[at] if run.tokens == beginning]

    def longest(self, tokens: list[int], most: int) -> Run | None:
        """Return the kept checkpoint after the longest beginning of `tokens`, of at most `most` tokens."""
        if not self._at or most <= 0:
            return None
        for position in sorted((at for at in self._at if at <= most), reverse=True):
            for run in self._at[position]:
                # The last token first: mostly it differs, and copying a long prompt takes a tenth of a millisecond.
                may_be_it = run.is_kept and run.tokens[-1] == tokens[position - 1]
                if may_be_it and run.tokens == array("i", tokens[:position]):
                    return run
        return None

"""Choose the tokens of the next decode call. Pure: no thread, no clock, no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.engine.sequence import Sequence


_SHORT = 32  # tokens: a sequence with at most this many pending counts as generating (one sampled token, some forced)
_FEW = 64  # tokens: smaller batches are never split
_SCORED = 64  # tokens of a prompt in a call if each of them needs logits, which take 4 bytes for each token there is


@dataclass(frozen=True, slots=True)
class Chunk:
    """tokens[start:end) of a sequence.

    `sample`: the chunk ends at the sequence's last token, so logits are wanted.
    `draft`: guessed tokens that follow the chunk; each needs logits, to be checked.
    """

    sequence: Sequence
    start: int
    end: int
    sample: bool
    draft: tuple[int, ...] = ()

    def needs_logits(self, pos: int) -> bool:
        """Whether the token at a position needs logits: to sample, to check a guess, or for the prompt's scores."""
        scores = self.sequence.scores
        return (self.sample and pos >= self.end - 1) or (scores is not None and scores.wants(pos))


def next_batches(running: Iterable[Sequence], budget: int, *, apart: bool) -> list[list[Chunk]]:
    """Return the chunks of the next decode calls. `apart`: one call for generating sequences and one for prompts.

    llama.cpp's attention on CPUs handles 64 tokens of a batch together. It computes a cell for all 64 if one of them
    may attend to it. So a few tokens of running sequences among the tokens of a prompt make it attend to all the cache.
    """
    chunks = next_batch(running, budget)
    if not apart or sum(chunk.end - chunk.start + len(chunk.draft) for chunk in chunks) < _FEW:
        return [chunks]
    halves = [[chunk for chunk in chunks if _generates(chunk.sequence) is short] for short in (True, False)]
    return [half for half in halves if half]


def next_batch(running: Iterable[Sequence], budget: int) -> list[Chunk]:
    """Pack at most `budget` pending tokens: generating sequences first, then prompts, oldest first.

    A long prompt is cut into chunks, so it never stalls the streams that already run. It is cut at its checkpoints too.
    Guesses get the rest of the budget.
    """
    ordered = sorted(running, key=lambda seq: (not _generates(seq), seq.submission, seq.index))
    chunks = []
    for seq in ordered:
        take = min(seq.n_pending, budget, seq.cuts[0] - seq.n_kv if seq.cuts else budget)
        take = take if seq.scores is None else min(take, _SCORED)
        if take == 0:
            continue
        budget -= take
        end = seq.n_kv + take
        chunks.append(Chunk(seq, seq.n_kv, end, sample=end == len(seq.tokens)))
    return _with_drafts(chunks, budget)


def _generates(seq: Sequence) -> bool:
    """Whether a sequence is generating; False while its prompt is being prefilled."""
    return seq.n_pending <= _SHORT


def _with_drafts(chunks: list[Chunk], budget: int) -> list[Chunk]:
    drafted = []
    for chunk in chunks:
        draft = tuple(chunk.sequence.draft[:budget]) if chunk.sample else ()
        budget -= len(draft)
        drafted.append(replace(chunk, draft=draft) if draft else chunk)
    return drafted


def victim(running: Iterable[Sequence]) -> Sequence | None:
    """Return the sequence to preempt if the KV cache is full: the youngest. None if only one is left."""
    ordered = sorted(running, key=lambda seq: (seq.submission, seq.index))
    return ordered[-1] if len(ordered) > 1 else None

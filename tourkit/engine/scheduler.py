"""Which tokens the next decode call carries. Pure: no thread, no clock, no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tourkit.engine.sequence import Sequence


_SHORT = 32  # pending tokens up to which a sequence counts as generating: one sampled and some forced
_FEW = 64  # tokens: batches of fewer are never split


@dataclass(frozen=True, slots=True)
class Chunk:
    """tokens[start:end) of a sequence; `sample` when they end at its last token, so that logits are wanted.

    `draft` are guessed tokens to check behind them, each with logits of its own.
    """

    sequence: Sequence
    start: int
    end: int
    sample: bool
    draft: tuple[int, ...] = ()


def next_batches(running: Iterable[Sequence], budget: int, *, apart: bool) -> list[list[Chunk]]:
    """What the next decode calls carry: all in one; or, `apart`, what generates in one and prompts in another.

    llama.cpp's attention on CPUs takes 64 tokens of a batch together and computes whatever one of them may look at for
    all of them: a few tokens of each running sequence among those of a prompt make it attend to all of the cache.
    """
    chunks = next_batch(running, budget)
    if not apart or sum(chunk.end - chunk.start + len(chunk.draft) for chunk in chunks) < _FEW:
        return [chunks]
    halves = [[chunk for chunk in chunks if _generates(chunk.sequence) is short] for short in (True, False)]
    return [half for half in halves if half]


def next_batch(running: Iterable[Sequence], budget: int) -> list[Chunk]:
    """Pack at most `budget` pending tokens: those that generate first, then prompts, oldest first.

    A long prompt is cut into chunks, so it never stalls the streams that are already running. Guesses get what is
    left of the budget.
    """
    ordered = sorted(running, key=lambda seq: (not _generates(seq), seq.submission, seq.index))
    chunks = []
    for seq in ordered:
        take = min(seq.n_pending, budget)
        if take == 0:
            continue
        budget -= take
        end = seq.n_kv + take
        chunks.append(Chunk(seq, seq.n_kv, end, sample=end == len(seq.tokens)))
    return _with_drafts(chunks, budget)


def _generates(seq: Sequence) -> bool:
    """Whether a sequence is generating, and not a prompt that is being computed."""
    return seq.n_pending <= _SHORT


def _with_drafts(chunks: list[Chunk], budget: int) -> list[Chunk]:
    drafted = []
    for chunk in chunks:
        draft = tuple(chunk.sequence.draft[:budget]) if chunk.sample else ()
        budget -= len(draft)
        drafted.append(replace(chunk, draft=draft) if draft else chunk)
    return drafted


def victim(running: Iterable[Sequence]) -> Sequence | None:
    """The sequence to preempt when the KV cache is full: the youngest, and never the last one left."""
    ordered = sorted(running, key=lambda seq: (seq.submission, seq.index))
    return ordered[-1] if len(ordered) > 1 else None

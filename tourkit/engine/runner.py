"""What our engine needs of a loaded model: the protocols that backends fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tourkit.generation import SamplingParams


class Sampler(Protocol):
    """Draws tokens for one sequence; its random state belongs to that sequence alone."""

    def sample(self, row: int) -> int:
        """Draw a token and take note of it."""
        ...

    def propose(self, row: int) -> int | None:
        """Draw a token, of which note is taken only if it is accepted; None where that would not be exact.

        Exact means: to draw again from masked logits, when the mask refuses the token, gives every token the
        probability it has under the mask. That holds unless sampling cuts the candidates first.
        """
        ...

    def accept(self, token: int) -> None:
        """Take note of a token that `sample` did not give, such as one the grammar forced; penalties count it."""
        ...

    def close(self) -> None: ...


class PrefixStore(Protocol):
    """KV cells of prompts, kept on disk between runs. Called from the thread that owns the runner."""

    def restore(self, slots: Sequence[int]) -> dict[int, list[int]]:
        """Fill empty slots, most recently used prompts first; the tokens each of them holds now."""
        ...

    def save(self, slot: int, tokens: Sequence[int]) -> None:
        """Keep the cells of a slot, which are those of `tokens` and no others. A full disk is no error."""
        ...


class Runner(Protocol):
    """One loaded model and its context, as our engine drives it from one thread."""

    n_slots: int
    n_ctx: int  # KV cells, shared by all slots
    n_batch: int  # tokens a decode call at most
    n_vocab: int
    eog: frozenset[int]  # every end-of-generation token
    partial_kv: bool  # whether a part of a slot's cells can be kept or shared: not so for recurrent models
    shares_kv: bool  # whether a slot can take over cells of another one
    one_pool: bool  # whether slots take their cells from one pool, all of which every decode passes over
    prompts_apart: bool  # whether prompts are best decoded in calls of their own

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        """Put a token into the batch; the row its logits will have, when asked for."""
        ...

    def decode(self) -> bool:
        """Run the batch and empty it; False if the KV cache had no room (state unchanged)."""
        ...

    def logits(self, row: int) -> np.ndarray:
        """Float32 view of shape (n_vocab,) of a row of the last decode; writing to it changes sampling."""
        ...

    def sampler(self, params: SamplingParams, seed: int) -> Sampler: ...

    def share(self, source: int, target: int, length: int) -> None:
        """Make KV cells [0, length) of slot `source` those of slot `target` too (target must be empty)."""
        ...

    def truncate(self, slot: int, length: int) -> bool:
        """Keep KV cells [0, length) of a slot; False if this model cannot keep a part (then all are gone)."""
        ...

    def read_state(self, slot: int) -> bytearray:
        """The cells of a slot, to be written back later; empty when they cannot be had. Only of slots with one pool."""
        ...

    def write_state(self, slot: int, data: bytearray) -> bool:
        """Fill an empty slot with cells that were read; False (and still empty) when the pool has no room."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token as text; empty for control tokens."""
        ...

    def close(self) -> None: ...

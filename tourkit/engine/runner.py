"""What our engine needs from a loaded model: the protocols that backends implement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tourkit.generation import SamplingParams


class Sampler(Protocol):
    """Draws tokens for one sequence; its random state belongs to that sequence alone."""

    def sample(self, row: int) -> int:
        """Draw a token and record it."""
        ...

    def propose(self, row: int, allows: Callable[[int], bool]) -> int | None:
        """Draw a token that a grammar allows, without its mask: call `accept` if it is used.

        None if the mask is needed: apply it and call `sample`. Then every token has the probability that it has if the
        mask always comes first. `allows`: whether the grammar allows a token.
        """
        ...

    def accept(self, token: int) -> None:
        """Record a token that `sample` did not draw, for example one that the grammar forced. Penalties count it."""
        ...

    def close(self) -> None: ...


class Runner(Protocol):
    """One loaded model and its context, as our engine drives it from one thread."""

    n_slots: int
    n_ctx: int  # KV cells, shared by all slots
    n_batch: int  # most tokens in a decode call
    n_vocab: int
    eog: frozenset[int]  # every end-of-generation token
    partial_kv: bool  # whether any beginning of a slot's cells can be kept or shared; recurrent models cannot do this
    checkpoints: bool  # whether `read_state` and `write_state` work, so that a slot can go back to a checkpoint
    shares_kv: bool  # whether a slot can take over cells of another slot
    one_pool: bool  # whether all slots take their cells from one pool; then each decode attends to all used cells
    longest_run: int  # most tokens that `read_cells` reads at once; 0 if this model's cells cannot be moved
    prompts_apart: bool  # whether prompts are best decoded in separate calls

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        """Put a token into the batch. Return the row that its logits will have; None if `logits` is False."""
        ...

    def decode(self) -> bool:
        """Run the batch and empty it. Return False if the KV cache had no room; then the state is unchanged."""
        ...

    def logits(self, row: int) -> np.ndarray:
        """A row of logits of the last decode: a float32 view, shape (n_vocab,). Writing to it changes sampling."""
        ...

    def sampler(self, params: SamplingParams, seed: int, *, constrained: bool = False) -> Sampler:
        """Return the sampler of one sequence. `constrained`: a grammar masks logits."""
        ...

    def share(self, source: int, target: int, length: int) -> bool:
        """Let slot `target` use the KV cells [0, length) of slot `source` too. `target` must be empty.

        Return False if the source has no longer all cells that the next token attends to; then `target` stays empty.
        With `checkpoints`: call `write_state` and `truncate` for `target` next, because only they give it a state.
        """
        ...

    def truncate(self, slot: int, length: int) -> bool:
        """Keep KV cells [0, length) of a slot. Return False if this model cannot keep a part; then all are gone."""
        ...

    def read_cells(self, slot: int, start: int, end: int) -> bytearray:
        """Return the cells [start, end) of a slot for `write_cells`; empty if they cannot be read."""
        ...

    def write_cells(self, slot: int, data: bytearray, start: int, end: int) -> bool:
        """Add the cells [start, end) to a slot that holds [0, start). `data` has them, and perhaps more on both sides.

        With `checkpoints`: the slot has no state then; call `write_state` and `truncate` next.
        Return False if there is no room; the slot then holds what it held.
        """
        ...

    def read_state(self, slot: int) -> bytearray:
        """Return the fixed state of a slot after its last token, for `write_state`; empty if it cannot be read."""
        ...

    def write_state(self, slot: int, data: bytearray) -> bool:
        """Replace the fixed state of a slot by one that was read after `length` tokens.

        Then call `truncate(slot, length)`: it drops the cells of later tokens. Return False if there is no room.
        """
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of a token as text; empty for control tokens."""
        ...

    def close(self) -> None: ...

"""The common part of the transformers and ONNX runners: cells held by each slot, batches, rows of logits.

The runner of a stack adds the forward pass and the way in which cells are shared and dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tourkit.engine.sampling import NumpySampler
from tourkit.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tourkit.backends.vocabulary import Vocabulary
    from tourkit.generation import SamplingParams


@dataclass(slots=True)
class Part:
    """The tokens of one slot in a batch. The slot already holds `past` cells. `wanted`: offsets that need logits."""

    slot: int
    past: int
    tokens: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)


class SlotRunner(ABC):
    """A TextRunner over a forward pass. Not thread-safe: one thread decodes. `context`: tokens a sequence."""

    def __init__(
        self, vocabulary: Vocabulary, *, slots: int, context: int, n_batch: int, partial_kv: bool, shares_kv: bool
    ) -> None:
        self._vocabulary = vocabulary
        self.n_slots = slots
        self.context = context
        self.n_ctx = context * slots
        self.n_batch = n_batch
        self.n_vocab = vocabulary.n_vocab
        self.eog = vocabulary.eog
        self.partial_kv = partial_kv
        self.shares_kv = shares_kv
        self.one_pool = self.prompts_apart = self.checkpoints = False
        self.longest_run = 0
        self.special_tokens = vocabulary.special_tokens
        self.control_tokens = vocabulary.control_tokens
        self._held: list[int] = [0] * slots  # how many cells each slot holds
        self._batch: dict[int, Part] = {}
        self._n_rows = self._n_tokens = 0
        self._rows: np.ndarray | None = None

    # --- what a stack implements ----------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, parts: list[Part]) -> np.ndarray | None:
        """Run the model. Return float32 logits, shape (wanted rows, n_vocab), in the order of the parts.

        None if memory ran out.
        """

    @abstractmethod
    def copy_cells(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cells of slot `source` to the empty slot `target`."""

    @abstractmethod
    def drop_cells(self, slot: int, length: int) -> None:
        """Keep the first `length` cells of a slot, which holds more. 0 always works."""

    @abstractmethod
    def close(self) -> None: ...

    # --- text -----------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        return self._vocabulary.chat_template

    @property
    def adds_bos(self) -> bool:
        return self._vocabulary.adds_bos

    @property
    def starts_with_space(self) -> bool:
        return self._vocabulary.starts_with_space

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def tokenize_parts(self, parts: Sequence[str | int], *, add_special: bool) -> list[int]:
        return self._vocabulary.tokenize_parts(parts, add_special=add_special)

    @property
    def longest_piece(self) -> int:
        return self._vocabulary.longest_piece

    def piece(self, token: int) -> bytes:
        return self._vocabulary.piece(token)

    def grammar_tokenizer(self) -> Any:
        return self._vocabulary.grammar_tokenizer()

    # --- batch and cells ------------------------------------------------------------------------------------------

    def add(self, token: int, pos: int, slot: int, *, logits: bool) -> int | None:
        if self._n_tokens >= self.n_batch:
            raise EngineError(f"the batch holds {self.n_batch} tokens, but the scheduler added more")
        if not 0 <= slot < self.n_slots or not 0 <= token < self.n_vocab:
            raise EngineError(f"slot {slot} or token {token} is out of range")
        part = self._batch.setdefault(slot, Part(slot, self._held[slot]))
        if pos != part.past + len(part.tokens) or pos >= self.context:
            raise EngineError(
                f"slot {slot}: position {pos} does not follow its {part.past} cells or is outside the context"
            )
        if slot != next(reversed(self._batch)):  # rows are numbered in the order of the parts
            raise EngineError(f"slot {slot} comes twice in a batch")
        part.tokens.append(token)
        self._n_tokens += 1
        if not logits:
            return None
        part.wanted.append(len(part.tokens) - 1)
        self._n_rows += 1
        return self._n_rows - 1

    def decode(self) -> bool:
        parts, self._batch = list(self._batch.values()), {}
        self._n_rows = self._n_tokens = 0
        rows = self.forward(parts)
        if rows is None:
            return False
        rows[:, self._vocabulary.n_known :] = float("-inf")  # padding of the weights: these ids are no tokens
        self._rows = rows
        for part in parts:
            self._held[part.slot] = part.past + len(part.tokens)
        return True

    def logits(self, row: int) -> np.ndarray:
        if self._rows is None or not 0 <= row < len(self._rows):
            raise EngineError(f"row {row} has no logits")
        found: np.ndarray = self._rows[row]
        return found

    def sampler(self, params: SamplingParams, seed: int, *, constrained: bool = False) -> NumpySampler:
        return NumpySampler(self.logits, params, seed)

    def share(self, source: int, target: int, length: int) -> bool:
        self.copy_cells(source, target, length)
        self._held[target] = length
        return True

    def read_cells(self, slot: int, start: int, end: int) -> bytearray:
        raise EngineError(f"slot {slot}: this stack cannot move KV cells out of a slot")

    def write_cells(self, slot: int, data: bytearray, start: int, end: int) -> bool:
        raise EngineError(f"slot {slot}: this stack cannot move KV cells into a slot")

    def read_state(self, slot: int) -> bytearray:
        raise EngineError(f"slot {slot}: this stack cannot copy a fixed state")

    def write_state(self, slot: int, data: bytearray) -> bool:
        raise EngineError(f"slot {slot}: this stack cannot copy a fixed state")

    def truncate(self, slot: int, length: int) -> bool:
        if length >= self._held[slot]:
            return True
        whole = length == 0 or self.partial_kv
        length = length if whole else 0
        self.drop_cells(slot, length)
        self._held[slot] = length
        return whole

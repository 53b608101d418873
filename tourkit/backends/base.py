"""The two small protocols between the layers: what the server needs of a backend, what our engine needs of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from tourkit.engine.types import Emit, EngineInfo, EngineStats, Request, SamplingParams, Submission


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a backend is to load. `path`: the (first) weight file or the folder; `max_len` in tokens a sequence.

    `gpu_layers`: layers on the GPU, all for -1, the backend's own choice for None. `flash_attention` None: where the
    device can. `lora`: adapter files to apply. `deterministic`: the same text for the same request, whatever else
    runs. `prefix_cache`: folder in which prompts that were shared are kept until the next start, "" for none.
    `chat_template`: Jinja source for weights that carry none, "" for none.
    """

    model: str
    stack: str
    path: str
    slots: int
    max_len: int
    threads: int
    gpu_layers: int | None = None
    cache_type: str = "f16"  # of the KV cache: f16 or q8_0
    flash_attention: bool | None = None
    lora: tuple[str, ...] = ()
    deterministic: bool = False
    prefix_cache: str = ""
    chat_template: str = ""


class Engine(Protocol):
    """What every backend gives the server. Thread-safe; `emit` is called from the engine's own thread."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, request: Request, emit: Emit) -> Submission:
        """Queue a request. Raises RequestError for what cannot be served, QueueFull, EngineDead."""
        ...

    def abort(self, submission_id: int) -> None:
        """End the request's sequences with Finish.ABORT; unknown and ended ids are no error."""
        ...

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of plain text; `add_special` puts before it what the model starts every prompt with."""
        ...

    def detokenize(self, tokens: list[int]) -> str:
        """The text of token ids. Raises RequestError for an id the model does not have."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """End every sequence and free the model. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`vectors`: float32, (texts, size), each of length 1. `n_tokens` of all the texts together."""

    vectors: np.ndarray
    n_tokens: int


@runtime_checkable
class Embedder(Protocol):
    """What an engine gives besides, whose model makes embeddings. Thread-safe."""

    @property
    def size(self) -> int:
        """Numbers of an embedding."""
        ...

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Future[Embeddings]:
        """Embeddings of texts or of token ids as they are. Cancelling the future takes the texts out of the queue.

        Raises RequestError for what cannot be served, QueueFull, EngineDead.
        """
        ...


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

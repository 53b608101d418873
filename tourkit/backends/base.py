"""What every backend gives the server: an Engine, and of models that make embeddings an Embedder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from tourkit.generation import Emit, EngineInfo, EngineStats, Request, Submission


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

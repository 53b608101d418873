"""What every backend gives the server: an Engine. Of embedding models it is also an Embedder, of rerankers a Scorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from tourkit.generation import Activity, Emit, EngineInfo, EngineStats, Request, Submission
    from tourkit.grammar.prepared import Manner, Prepared
    from tourkit.grammar.trial.token_table import TokenTable


class Engine(Protocol):
    """One loaded model that serves requests. Thread-safe. It calls `emit` from its own thread."""

    @property
    def info(self) -> EngineInfo: ...

    def submit(self, request: Request, emit: Emit, prepared: Prepared | None = None) -> Submission:
        """Queue a request. Raises RequestError for a request that cannot be served, QueueFull, EngineDead.

        `prepared`: the request's constraint, prepared by a trial process (`grammar/trial`). Without it the engine
        prepares the constraint itself: a hostile one can then end or hang this process.
        """
        ...

    def abort(self, submission_id: int) -> None:
        """End the request's sequences with Finish.ABORT. Unknown and ended ids are no error."""
        ...

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return the token ids of plain text. `add_special`: add the special tokens that every prompt begins with."""
        ...

    def detokenize(self, tokens: list[int]) -> str:
        """Return the text of token ids. Raises RequestError for an id that the model does not have."""
        ...

    def stats(self) -> EngineStats: ...

    def activity(self) -> Activity:
        """Return what it does now. Waits for nothing, so it also answers while a call of the model hangs."""
        ...

    def close(self) -> None:
        """End every sequence and free the model. Idempotent."""
        ...


@runtime_checkable
class Constrained(Protocol):
    """What the engine of a model that writes text offers besides Engine, for the trial of constraints. Thread-safe."""

    @property
    def recompiles(self) -> bool:
        """Whether the stack's library compiles each grammar again, under its own limits."""
        ...

    def with_calls(self, request: Request) -> Request:
        """Return a request with the constraint for the calls of tools that it offers; unchanged if it offers none."""
        ...

    def manner(self, request: Request) -> Manner:
        """Return how the constraint of a request is prepared. It may ask the model once, so it may take seconds.

        Raises QueueFull, EngineError.
        """
        ...

    def token_table(self) -> TokenTable:
        """Return the vocabulary for a trial process. It takes up to a second."""
        ...


@runtime_checkable
class Templated(Protocol):
    """What the engine of a model with a chat template offers besides Engine. Thread-safe."""

    def apply_template(self, request: Request) -> str:
        """Return the prompt that the chat template makes of the request's messages. Raises RequestError."""
        ...

    def count_tokens(self, request: Request) -> int:
        """Return how many tokens the prompt of a request has. Raises RequestError."""
        ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of some texts. `vectors`: float32, shape (texts, size), each of length 1.

    `n_tokens`: tokens of all texts together.
    """

    vectors: np.ndarray
    n_tokens: int


@runtime_checkable
class Embedder(Protocol):
    """What the engine of an embedding model offers besides Engine. Thread-safe."""

    @property
    def size(self) -> int:
        """How many numbers an embedding has."""
        ...

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Future[Embeddings]:
        """Queue texts, or lists of token ids that are used unchanged. Cancelling the future removes them.

        Raises RequestError for a text that cannot be served, QueueFull, EngineDead.
        """
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """How well documents fit a query. `values`: one for each document, from 0 to 1, higher is better.

    `n_tokens`: tokens of all texts that the model read.
    """

    values: tuple[float, ...]
    n_tokens: int


@runtime_checkable
class Scorer(Protocol):
    """What the engine of a reranker offers besides Engine. Thread-safe."""

    def score(self, query: str, documents: Sequence[str]) -> Future[Scores]:
        """Queue the documents with a query. Cancelling the future removes them.

        Raises RequestError for a document that is too long, QueueFull, EngineDead.
        """
        ...

"""The engine of rerankers: models with a head that gives a score for a query and a document."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tourkit.backends.base import Scores
from tourkit.backends.reader import MAX_WAITING, Reader, ReadingRunner

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document as the tokens of one text. `types`: of each token 0 for the query, 1 for the document.

    `types` is empty if the model does not tell them apart.
    """

    tokens: Sequence[int]
    types: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.tokens)


class ScoringRunner(ReadingRunner, Protocol):
    """One loaded reranker. `gives_logits`: its scores are logits; if not, they are probabilities."""

    gives_logits: bool

    def pair(self, query: str, document: str) -> Pair:
        """Return a query and a document as the model reads them, with its special tokens around both."""
        ...

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores: float32, shape (len(pairs), 1). Raises EngineError.

        A pair that is alone in the call may have up to `context` tokens.
        """
        ...


class BatchScorer(Reader[Pair, Scores]):
    """The Engine and Scorer of rerankers. `deterministic`: one pair a call."""

    def __init__(
        self, runner: ScoringRunner, stack: str, *, deterministic: bool = False, max_waiting: int = MAX_WAITING
    ) -> None:
        self._pair = runner.pair
        super().__init__(
            runner,
            stack,
            runner.score,
            _probabilities if runner.gives_logits else _scores,
            1,
            use="scores documents for a query and writes no text: use /v1/rerank or another role",
            deterministic=deterministic,
            max_waiting=max_waiting,
        )

    def score(self, query: str, documents: Sequence[str]) -> Future[Scores]:
        pairs = [self._pair(query, document) for document in documents]
        for i, pair in enumerate(pairs):
            self.check_length(pair, f"documents[{i}] with the query")
        return self.queue(pairs)


def _scores(rows: np.ndarray, n_tokens: int) -> Scores:
    return Scores(tuple(map(float, rows[:, 0])), n_tokens)


def _probabilities(rows: np.ndarray, n_tokens: int) -> Scores:
    """Return logits as probabilities. In 32 bits, high ones would all be 1."""
    import numpy as np

    return Scores(tuple(map(float, 1 / (1 + np.exp(-rows[:, 0].astype(np.float64))))), n_tokens)

"""The engine of embedding models."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from tourkit.backends.base import Embeddings
from tourkit.backends.reader import MAX_WAITING, Reader, ReadingRunner
from tourkit.errors import RequestError

if TYPE_CHECKING:
    import numpy as np


class EmbeddingRunner(ReadingRunner, Protocol):
    """One loaded embedding model."""

    @property
    def n_embd(self) -> int:
        """How many numbers an embedding has."""
        ...

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the embeddings: float32, shape (len(texts), n_embd), each of length 1. Raises EngineError.

        A text that is alone in the call may have up to `context` tokens.
        """
        ...


class BatchEmbedder(Reader[list[int], Embeddings]):
    """The Engine and Embedder of embedding models. `deterministic`: one text a call."""

    def __init__(
        self, runner: EmbeddingRunner, stack: str, *, deterministic: bool = False, max_waiting: int = MAX_WAITING
    ) -> None:
        use = "makes embeddings and writes no text: use /v1/embeddings or another role"
        self._size = runner.n_embd
        super().__init__(
            runner,
            stack,
            runner.embed,
            Embeddings,
            self._size,
            use=use,
            deterministic=deterministic,
            max_waiting=max_waiting,
        )

    @property
    def size(self) -> int:
        return self._size

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Future[Embeddings]:
        return self.queue([self._tokens(text, i) for i, text in enumerate(texts)])

    def _tokens(self, text: str | Sequence[int], index: int) -> list[int]:
        """Return the token ids of a text with the model's special tokens around it. Check given ids; keep them."""
        where = f"input[{index}]"
        if isinstance(text, str):
            tokens = self._runner.tokenize(text, add_special=True, parse_special=False)
        else:
            tokens = list(text)
            self.check_ids(tokens, where)
        if not tokens:
            raise RequestError(f"{where} has no tokens: give a non-empty text", param="input")
        self.check_length(tokens, where)
        return tokens

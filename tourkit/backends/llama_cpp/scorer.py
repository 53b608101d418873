"""A reranker in GGUF: how it reads a query and a document, and the score that its head gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tourkit.backends.scorer import Pair
from tourkit.errors import LocalError

if TYPE_CHECKING:
    import numpy as np

    from tourkit.backends.llama_cpp.runner import LlamaRunner

_SOFTMAX = ("qwen3", "qwen3vl")  # architectures for which llama.cpp gives the probabilities of all labels
_YES = "yes"  # the label of documents that fit
_QUERY, _DOCUMENT = "{query}", "{document}"  # places in a prompt
_PLACE = re.compile(re.escape(_QUERY) + "|" + re.escape(_DOCUMENT))


class LlamaScorer:
    """The ScoringRunner over a context with rank pooling. Raises LocalError if the head does not give one score."""

    def __init__(self, runner: LlamaRunner) -> None:
        self._runner = runner
        self.n_slots, self.n_batch = runner.n_slots, runner.n_batch
        self.n_vocab, self.context = runner.n_vocab, runner.context
        self.tokenize, self.piece, self.close = runner.tokenize, runner.piece, runner.close
        labels = runner.labels
        self.gives_logits = runner.metadata("general.architecture") not in _SOFTMAX
        self._width = len(labels)
        self._column = labels.index(_YES) if _YES in labels else 0
        self._template = runner.rerank_template
        self._around = runner.around_pair
        why = ""
        if not self.gives_logits and _YES not in labels:
            why = f"its head has no label {_YES!r}"
        elif self.gives_logits and len(labels) != 1:
            why = f"its head gives {len(labels)} scores"
        elif self._template and not (_QUERY in self._template and _DOCUMENT in self._template):
            why = "its prompt for reranking does not name the query and the document"
        elif not self._template and not self._around[1]:
            why = "it has no prompt for reranking, and no token to put between query and document"
        if why:
            runner.close()
            raise LocalError(f"{runner.path}: not a reranker that can be served ({why}): choose another model")

    def pair(self, query: str, document: str) -> Pair:
        """Return a query and a document as the model reads them. Control tokens that they spell are text."""
        runner = self._runner
        if not self._template:
            before, between, after = self._around
            first, second = (
                runner.tokenize(text, add_special=False, parse_special=False) for text in (query, document)
            )
            return Pair([*before, *first, *between, *second, *after])
        [texts], mark = runner.control_tokens.marked([{_QUERY: query, _DOCUMENT: document}])
        text = _PLACE.sub(lambda found: texts[found[0]], self._template)
        return Pair(runner.tokenize_parts(runner.control_tokens.parts(text, mark), add_special=False))

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores: float32, shape (len(pairs), 1). Raises EngineError."""
        found = self._runner.pooled([pair.tokens for pair in pairs], self._width)
        return found[:, self._column : self._column + 1]

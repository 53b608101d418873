"""Rerankers in safetensors through transformers: encoders with a head that gives one score for two texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.scorer import Pair
from tourkit.backends.transformers import loading
from tourkit.backends.transformers.encoder import Encoder, alike
from tourkit.launch import ALL_LAYERS, GpuLayers

if TYPE_CHECKING:
    import numpy as np


class CrossEncoderRunner(Encoder):
    """An encoder with a head. The folder's tokenizer puts its special tokens around both texts. Raises LocalError."""

    gives_logits = True

    def __init__(
        self, folder: Path, *, context: int, threads: int | None = None, gpu_layers: GpuLayers = ALL_LAYERS
    ) -> None:
        super().__init__(folder, loading.cross_encoder, context=context, threads=threads, gpu_layers=gpu_layers)

    def pair(self, query: str, document: str) -> Pair:
        """Return a query and a document as the model reads them. Control tokens that they spell are text."""
        self.tokenizer.encode_special_tokens = True
        found = self.tokenizer.encode(query, document)
        return Pair(found.ids, found.type_ids if any(found.type_ids) else ())

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores: float32, shape (len(pairs), 1). Raises EngineError."""
        import numpy as np

        scores = np.empty((len(pairs), 1), dtype=np.float32)
        for group in alike(pairs):
            chosen = [pairs[i] for i in group]
            types = [pair.types or (0,) * len(pair) for pair in chosen]
            more: dict[str, Any] = {}
            if any(map(any, types)):
                more["token_type_ids"] = self.padded(types, 0)
            scores[group] = self.run(
                [pair.tokens for pair in chosen], lambda output, mask, torch: output.logits, **more
            )
        return scores

"""A stand-in for a model that writes text: it judges a document by the chance that the document states.

Its tokens are bytes. For a document with "fits: 0.8" the answer begins with y or n, y 4 times as likely. Most of the
probability is on a token that is no answer, and on the end of the text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from thinking_runner import Script, ThinkingRunner

from tourkit.engine.sampling import NumpySampler
from tourkit.generation import SamplingParams


class JudgeRunner(ThinkingRunner):
    """A TextRunner. `prompts`: those about documents so far, as text. The parameters are those of ThinkingRunner."""

    def __init__(self, family: str = "none", **more: Any) -> None:
        super().__init__(family, Script("", "", "\n"), **more)
        self.prompts: list[str] = []

    def decode(self) -> bool:
        done = super().decode()
        for row, (_, _, slot, wants_logits) in enumerate(self.batches[-1] if done else []):
            if wants_logits:
                self._rows[row] = self._judged(self.spell(self.tokens(slot)).decode())
        return done

    def _judged(self, prompt: str) -> np.ndarray:
        if "<Document>" in prompt:  # the engine asks how the model spaces JSON, too
            self.prompts.append(prompt)
        found = np.full(self.n_vocab, -50.0, dtype=np.float32)
        stated = re.findall(r"fits: ([\d.]+)", prompt)
        chance = float(stated[-1]) if stated else 0.5
        shares = {"?": 0.5, "y": 0.2 * chance, "n": 0.2 * (1 - chance)}
        for text, share in shares.items():
            found[ord(text)] = math.log(share)
        return found

    def sampler(self, params: SamplingParams, seed: int, *, constrained: bool = False) -> Any:
        return NumpySampler(self.logits, params, seed)

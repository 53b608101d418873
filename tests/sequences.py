"""Sequences for the tests of scheduler, placement and parking."""

from __future__ import annotations

from tourkit.engine.sequence import Sequence
from tourkit.engine.stop_strings import TextStream


def sequence(submission: int, n_tokens: int, n_kv: int, *, n_prompt: int | None = None, fill: int = 7) -> Sequence:
    return Sequence(
        submission=submission,
        index=0,
        tokens=[fill] * n_tokens,
        n_prompt=n_tokens if n_prompt is None else n_prompt,
        max_tokens=100,
        emit=lambda delta: None,
        sampler=None,  # type: ignore[arg-type]  # these tests never sample
        text=TextStream(),
        n_kv=n_kv,
    )

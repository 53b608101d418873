"""Fill in the middle: the prompt of models that were trained to write the text of a gap.

Such a model has control tokens for the text before the gap, for the text after it, and for the gap itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Family:
    """The control tokens of one family. `middle`: "" if the answer follows the text before the gap at once."""

    before: str
    after: str
    middle: str = ""


# The first family that has all its control tokens in the vocabulary is taken.
_FAMILIES = (
    _Family("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    _Family("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _Family("[PREFIX]", "[SUFFIX]"),  # Codestral, which gets the text after the gap first
)


def infill_parts(control: Mapping[str, int], before: str, after: str) -> list[str | int] | None:
    """Return the prompt for a gap as texts and ids of control tokens; None if the model does not know gaps.

    `control`: the id of each control token by its text. `before`, `after`: the texts around the gap.
    """
    for family in _FAMILIES:
        found = [control.get(text) for text in (family.before, family.after, family.middle) if text]
        ids = [id_ for id_ in found if id_ is not None]
        if len(ids) < len(found):
            continue
        parts: list[str | int] = [ids[0], before, ids[1], after, *ids[2:]]
        if not family.middle:
            parts = [ids[1], after, ids[0], before]
        return [part for part in parts if part != ""]
    return None

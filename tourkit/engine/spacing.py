"""Spaces in generated JSON: one after commas and colons, as most text has it; none where the prompt's JSON has none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tourkit.engine.types import Request

_SPACED = {"item_separator": ", ", "key_separator": ": "}
_COMPACT = {"item_separator": ",", "key_separator": ":"}
_KEY = '":'
_SPACED_KEY = re.compile(_KEY + r"\s")


def compact(request: Request) -> bool:
    """Whether the prompt has JSON, and all of it without a space after its colons.

    A model writes as its examples are written. Made to leave out the spaces it expects, a small one ends its arrays at
    once (docs/structured.md), so spaces are left out only where the prompt leaves them out.
    """
    texts = [request.prompt or ""] if request.messages is None else [each["content"] for each in request.messages]
    return any(_KEY in text for text in texts) and not any(_SPACED_KEY.search(text) for text in texts)


def separators(*, compact: bool) -> dict[str, Any]:
    """llguidance's options for JSON with no whitespace but this: there is none to wander in."""
    return {"whitespace_flexible": False} | (_COMPACT if compact else _SPACED)

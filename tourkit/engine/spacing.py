"""Spaces in generated JSON: one after commas and colons, as most text has it; none where earlier answers have none."""

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
    """Whether the assistant's answers so far have JSON, and all of it without a space after its colons.

    A model writes as its examples are written. Made to leave out the spaces it expects, a small one ends its arrays at
    once (docs/structured.md). A plain prompt may hold answers anywhere, so all of it counts.
    """
    messages = request.messages or ({"role": "assistant", "content": request.prompt or ""},)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    return any(_KEY in text for text in texts) and not any(_SPACED_KEY.search(text) for text in texts)


def separators(*, compact: bool) -> dict[str, Any]:
    """llguidance's options for JSON with no whitespace but this: there is none to wander in."""
    return {"whitespace_flexible": False} | (_COMPACT if compact else _SPACED)

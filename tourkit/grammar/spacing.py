"""Spaces in generated JSON: none after commas and colons, unless the answers so far have them or the model writes them.

A small model that must leave out the spaces it expects ends its arrays at once (docs/structured.md). Other models save
a fifth of the tokens.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tourkit.generation import Delta, Emit, Request

QUESTION = "Ann Lee is 31 years old and lives in Oslo. Write this as JSON."
BEGUN = '{"name"'
ENOUGH = 8  # tokens: enough for the separator and the start of the value

_SPACED = {"item_separator": ", ", "key_separator": ": "}
_COMPACT = {"item_separator": ",", "key_separator": ":"}
_KEY = '":'
_SPACED_KEY = re.compile(_KEY + r"\s")


class Spacing:
    """The spacing of one model's answers. Thread-safe.

    `write_on` lets the model continue BEGUN, its answer to QUESTION, greedily for ENOUGH tokens, all in one delta.
    It is called once, for the first answer whose request shows no spacing.
    """

    def __init__(self, write_on: Callable[[Emit], object]) -> None:
        self._write_on = write_on
        self._habit: bool | None = None
        self._lock = threading.Lock()

    def compact(self, request: Request) -> bool:
        """Return whether an answer has no space after commas and colons. Raises EngineError as `write_on` does."""
        if request.constraint is None or not request.constraint.is_json:
            return False
        shown = _shown(request)
        return self.habit() if shown is None else shown

    def habit(self) -> bool:
        """Return the same for a request that shows no spacing. The model is asked once. Raises as `compact` does."""
        with self._lock:
            if self._habit is None:
                self._habit = not _SPACED_KEY.search(BEGUN + self._written())
            return self._habit

    def _written(self) -> str:
        ended: Future[str] = Future()

        def take(delta: Delta) -> None:
            if delta.failure:
                ended.set_exception(delta.failure)
            else:
                ended.set_result(delta.text)

        self._write_on(take)
        return ended.result()


def _shown(request: Request) -> bool | None:
    """Return whether the assistant's JSON so far has no space after any colon; None if there is no JSON.

    A plain prompt may hold answers anywhere, so all of it counts.
    """
    prompt = request.prompt if isinstance(request.prompt, str) else ""
    messages = request.messages or ({"role": "assistant", "content": prompt},)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    if not any(_KEY in text for text in texts):
        return None
    return not any(_SPACED_KEY.search(text) for text in texts)


def separators(*, compact: bool) -> dict[str, Any]:
    """Return llguidance's options for JSON with no other whitespace, so that a model cannot write it without end."""
    return {"whitespace_flexible": False} | (_COMPACT if compact else _SPACED)

"""Spaces in generated JSON: none after commas and colons, unless the answers so far have them or the model writes them.

A model that is made to leave out the spaces it expects ends its arrays at once, if it is a small one
(docs/structured.md). One that does not mind is spared a fifth of the tokens.
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
ENOUGH = 8  # tokens: the separator and some of the value

_SPACED = {"item_separator": ", ", "key_separator": ": "}
_COMPACT = {"item_separator": ",", "key_separator": ":"}
_KEY = '":'
_SPACED_KEY = re.compile(_KEY + r"\s")


class Spacing:
    """How one model's answers are spaced. Thread-safe.

    `write_on` has the model go on greedily after BEGUN, its answer to QUESTION, for ENOUGH tokens: all in one delta.
    It is called once, for the first answer whose request does not show how.
    """

    def __init__(self, write_on: Callable[[Emit], object]) -> None:
        self._write_on = write_on
        self._habit: bool | None = None
        self._lock = threading.Lock()

    def compact(self, request: Request) -> bool:
        """Whether an answer has no space after commas and colons. Raises what `write_on` does, EngineError."""
        if request.constraint is None or not request.constraint.is_json:
            return False
        shown = _shown(request)
        return self.habit() if shown is None else shown

    def habit(self) -> bool:
        """The same where nothing shows how: the model is asked, once. Raises as `compact` does."""
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
    """Whether the assistant's JSON so far is all without a space after its colons; None where there is none.

    A plain prompt may hold answers anywhere, so all of it counts.
    """
    messages = request.messages or ({"role": "assistant", "content": request.prompt or ""},)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    if not any(_KEY in text for text in texts):
        return None
    return not any(_SPACED_KEY.search(text) for text in texts)


def separators(*, compact: bool) -> dict[str, Any]:
    """llguidance's options for JSON with no whitespace but this: there is none to wander in."""
    return {"whitespace_flexible": False} | (_COMPACT if compact else _SPACED)

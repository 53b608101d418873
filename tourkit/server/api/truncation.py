"""Leaves out the oldest turns of a conversation that the context cannot hold, for `truncation: "auto"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tourkit.backends.base import Engine, Templated
from tourkit.generation import Request

_LONGEST_TOKEN = 64  # characters; a prompt with more of them for each token of the context is not even tokenized


def truncated(engine: Engine, request: Request) -> Request:
    """Return a chat request without the fewest oldest turns that make it fit; unchanged if no turn can go.

    A turn is a message of the user and what follows it. System messages and the last turn stay. It takes as long as
    some tokenizations of the prompt. Raises RequestError.
    """
    messages = request.messages or ()
    starts = _starts(messages)
    if not isinstance(engine, Templated) or len(starts) < 2 or _fits(engine, request):
        return request

    def without(count: int) -> Request:
        old = range(starts[0], starts[count])
        kept = (message for i, message in enumerate(messages) if i not in old or message["role"] == "system")
        return replace(request, messages=tuple(kept))

    return without(_first(len(starts) - 1, lambda count: _fits(engine, without(count))))


def _starts(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Return the index of each message that begins a turn. The first one is not of the system."""
    spoken = [i for i, message in enumerate(messages) if message["role"] != "system"]
    return [i for i in spoken if i == spoken[0] or messages[i]["role"] == "user"]


def _first(most: int, fits: Callable[[int], bool]) -> int:
    """Return the smallest number from 1 to `most` that fits; `most` if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _fits(engine: Engine, request: Request) -> bool:
    assert isinstance(engine, Templated)
    text = engine.apply_template(request)
    room = engine.info.context - (request.params.max_tokens or 1)
    if len(text) > engine.info.context * _LONGEST_TOKEN:
        return False
    return len(engine.tokenize(text, add_special=True)) <= room

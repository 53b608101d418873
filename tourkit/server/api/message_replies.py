"""The answers of POST /v1/messages in Anthropic's format: one message, or the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tourkit.calling.tools import Call
from tourkit.errors import TourkitError
from tourkit.generation import Delta, Finish
from tourkit.server.api.dialects import MESSAGES, event
from tourkit.server.api.replies import Choice, Usage, error_body

# Clients send it back with the thinking. There is nothing to verify, but some drop thinking without a signature.
_SIGNATURE = "tourkit"


class MessageReply:
    """The answer to one request. It keeps which block of the stream is open.

    `most`: the request's max_tokens, None if it has none. `reasoning`: show the thinking.
    """

    def __init__(self, id_: str, model: str, most: int | None = None, *, reasoning: bool = True) -> None:
        self._id, self._model, self._most, self._reasoning = id_, model, most, reasoning
        self._has_begun = False
        self._open = ""  # the type of the open block; empty if none is open
        self._n_blocks = 0

    def completion(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        content: list[dict[str, Any]] = []
        if choice.reasoning and self._reasoning:
            content.append({"type": "thinking", "thinking": choice.reasoning, "signature": _SIGNATURE})
        calls = [_shown_call(call, arguments) for call in choice.calls if (arguments := _whole(call)) is not None]
        if choice.text or not calls:  # clients expect a block of text in an answer without calls
            content.append({"type": "text", "text": choice.text})
        return self._message([*content, *calls], usage) | self._ending(choice, usage)

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        about = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}
        return about | {"stop_reason": None, "stop_sequence": None, "usage": _shown_usage(usage)}

    def _ending(self, choice: Choice, usage: Usage) -> dict[str, Any]:
        stop = choice.stop if choice.finish is Finish.STOP else ""
        return {"stop_reason": self._reason(choice, usage), "stop_sequence": stop or None}

    def _reason(self, choice: Choice, usage: Usage) -> str:
        if choice.finish is Finish.TOOL_CALLS:
            return "tool_use"
        if choice.finish is Finish.LENGTH:
            # max_tokens was lowered to what the context had left.
            is_full = self._most is None or usage.n_completion < self._most
            return "model_context_window_exceeded" if is_full else "max_tokens"
        return "stop_sequence" if choice.stop else "end_turn"

    def opening(self, n: int) -> bytes:
        return b""  # the first event has the tokens of the prompt, so it comes with the first chunk

    def chunk(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        found = self._begun(usage)
        if delta.reasoning and self._reasoning:
            found += self._piece("thinking", {"thinking": "", "signature": ""}, "thinking", delta.reasoning)
        if delta.text:
            found += self._piece("text", {"text": ""}, "text", delta.text)
        for piece in delta.calls:
            if piece.name:
                found += self._closed()
                found += self._opened({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            if piece.arguments:
                found += self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
        return found

    def failure(self, exc: TourkitError) -> bytes:
        return MESSAGES.failure(*error_body(exc))

    def closing(self, choices: Sequence[Choice], usage: Usage, remark: dict[str, Any] | None) -> bytes:
        [choice] = choices
        found = self._begun(lambda: usage)
        if not self._n_blocks:
            found += self._opened({"type": "text", "text": ""})
        found += self._closed()
        delta = {"type": "message_delta", "delta": self._ending(choice, usage), "usage": _shown_usage(usage)}
        found += _event(delta | ({"tourkit": remark} if remark is not None else {}))
        return found + _event({"type": "message_stop"})

    # --- blocks of a stream -------------------------------------------------------------------------------------------

    def _begun(self, usage: Callable[[], Usage]) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        found = usage()
        known = Usage(found.n_prompt, 0, 0)  # how many tokens come from the cache is known at the end
        return _event({"type": "message_start", "message": self._message([], known)})

    def _piece(self, kind: str, empty: dict[str, str], key: str, text: str) -> bytes:
        """Return the events for new text in a block of this type. `empty`: the other fields of a new block."""
        begin = b"" if self._open == kind else self._closed() + self._opened({"type": kind} | empty)
        return begin + self._delta({"type": f"{key}_delta", key: text})

    def _opened(self, block: dict[str, Any]) -> bytes:
        self._open = block["type"]
        self._n_blocks += 1
        return _event({"type": "content_block_start", "index": self._n_blocks - 1, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta})

    def _closed(self) -> bytes:
        """Return the end of the open block; empty if there is none."""
        if not self._open:
            return b""
        signed = self._delta({"type": "signature_delta", "signature": _SIGNATURE}) if self._open == "thinking" else b""
        self._open = ""
        return signed + _event({"type": "content_block_stop", "index": self._n_blocks - 1})


def _event(body: dict[str, Any]) -> bytes:
    return event(body, body["type"])


def _whole(call: Call) -> dict[str, Any] | None:
    """Return the arguments of a call; None if max_tokens has cut them off."""
    try:
        found = json.loads(call.arguments)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _shown_call(call: Call, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _shown_usage(usage: Usage) -> dict[str, Any]:
    """Return the tokens of a request. Anthropic's `input_tokens` are those that were not found in the cache."""
    thinking = {"output_tokens_details": {"thinking_tokens": usage.n_reasoning}} if usage.n_reasoning else {}
    return {
        "input_tokens": usage.n_prompt - usage.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached,
        "output_tokens": usage.n_completion,
    } | thinking

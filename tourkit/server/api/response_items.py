"""The input of the Responses API as the messages of a chat request.

The input is a list of items. One answer of a model can be several items: thinking, a message, calls. A chat request has
one message for all of them.
"""

from __future__ import annotations

from typing import Any

from tourkit.errors import RequestError, quoted
from tourkit.server.api import limits

KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
OF_REPLIES = ("type", "id", "status", "phase")  # fields of messages that replies have, without effect in the input
TEXT_PARTS = ("output_text", "summary_text", "reasoning_text", "text")


class Conversation:
    """The messages that items make. `messages`: of the chat request. `names`: as in Generate.

    `n_stored`: how many of the items come from an earlier response; errors name their index in the input without them.
    """

    def __init__(self, instructions: str | None, n_stored: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}
        self._n_stored = n_stored
        self._takes_calls = False  # the last message is of the assistant, and calls can be added
        self._thought: tuple[str, str] | None = None  # thinking without its message so far, and its field
        if instructions:
            self._add({"role": "system", "content": instructions}, "instructions", content="instructions")

    def take(self, value: Any) -> None:
        """Add the items of the field `input`. Raises RequestError."""
        if isinstance(value, str):
            self._add({"role": "user", "content": value}, "input", content="input")
            return
        if not isinstance(value, list) or len(value) <= self._n_stored:
            raise RequestError("input must be a string or a list of at least one item", param="input")
        limits.ITEMS.check(len(value))
        for i, item in enumerate(value):
            self._item(item, f"input[{i - self._n_stored}]" if i >= self._n_stored else "previous_response_id")
        if not self.messages:
            raise RequestError("input must have a message: thinking alone is none", param="input")

    def _item(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise RequestError(f"{where} must be an object", param=where)
        kind = kind_of(item)
        if kind == "reasoning":
            self._takes_calls = False
            self._thought = (_thought_in(item, where), where)
        elif kind == "function_call":
            self._call(item, where)
        elif kind == "function_call_output":
            message = {"role": "tool", "content": _text_parts(item.get("output")), "tool_call_id": item.get("call_id")}
            self._add(message, where, content=f"{where}.output", tool_call_id=f"{where}.call_id")
        elif kind == "message":
            self._message(item, where)
        elif kind == "item_reference":
            raise RequestError(
                f"{where} refers to an item that is not stored here: send the item itself",
                param=where,
                code="item_not_found",
                status=404,
            )
        else:
            given = quoted(kind) if isinstance(kind, str) else "missing"
            raise RequestError(
                f"{where}.type is {given}: use one of {', '.join(KINDS)}",
                param=f"{where}.type",
                code="unsupported_content",
            )

    def _message(self, item: dict[str, Any], where: str) -> None:
        message = {key: value for key, value in item.items() if key not in OF_REPLIES}
        if item.get("role") == "assistant":
            if message.get("content") is None and not (message.get("tool_calls") or message.get("function_call")):
                at = f"{where}.content"
                raise RequestError(f"{at} must be a string or a list of text parts", param=at)
            message["content"] = _text_parts(message.get("content"))
            message, thought = self._with_thought(message)
            self._add(message, where, **thought)
            self._takes_calls = True
        else:
            self._add(message, where)

    def _call(self, item: dict[str, Any], where: str) -> None:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not self._takes_calls:
            message, thought = self._with_thought({"role": "assistant", "content": None})
            self._add(message, where, **thought)
            self._takes_calls = True
        found = self.messages[-1].get("tool_calls") or []  # a message can have calls in the form of chat
        calls = found if isinstance(found, list) else [found]
        self.names[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"] = where
        self.messages[-1]["tool_calls"] = [*calls, call]

    def _with_thought(self, message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return a message of the assistant with the thinking before it, and the name of that field."""
        if self._thought is None:
            return message, {}
        text, where = self._thought
        return message | {"reasoning_content": text}, {"reasoning_content": where}

    def _add(self, message: dict[str, Any], where: str, **names: str) -> None:
        """Add a message. `where`: the field that it was made of. `names`: those that its own fields were made of."""
        at = f"messages[{len(self.messages)}]"
        self.names |= {at: where} | {f"{at}.{ours}": sent for ours, sent in names.items()}
        self.messages.append(message)
        self._takes_calls, self._thought = False, None


def kind_of(item: dict[str, Any]) -> Any:
    """Return the type of an item. Messages and references may leave it out."""
    kind = item.get("type")
    if kind is not None:
        return kind
    return "message" if "role" in item else "item_reference" if "id" in item else None


def _text_parts(content: Any) -> Any:
    """Return content with the parts of replies as text parts. Everything else stays: the chat parser checks it."""
    return [_text_part(part) for part in content] if isinstance(content, list) else content


def _text_part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "output_text":
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _thought_in(item: dict[str, Any], where: str) -> str:
    """Return the text of a reasoning item; "" if it has none, because only another server can read it."""
    found = []
    for field in ("content", "summary"):
        parts = item.get(field) or []
        if not isinstance(parts, list) or not all(_is_text(part) for part in parts):
            raise RequestError(f"{where}.{field} must be a list of text parts", param=f"{where}.{field}")
        found.append("\n".join(part["text"] for part in parts))
    return found[0] or found[1]


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)

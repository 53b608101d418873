"""The messages of Anthropic's API: turns of blocks. They become messages of chat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tourkit.errors import RequestError, excerpt, quoted
from tourkit.server.api.requests import MEDIA

_ROLES = ("user", "assistant", "system")
IN_ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use")
IN_USER = ("text", "document", "tool_result")
IN_TEXT = ("text", "document")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a message. `where`: its field in the body."""

    where: str
    type: str
    body: dict[str, Any]

    def text(self, key: str) -> str:
        """Return a field that must be a string. Raises RequestError."""
        value = self.body.get(key)
        if not isinstance(value, str):
            raise RequestError(f"{self.where}.{key} must be a string", param=f"{self.where}.{key}")
        return value

    @property
    def shown(self) -> str:
        """The text that the model reads of a block of text, or of a document that is plain text."""
        if self.type == "text":
            return self.text("text")
        source = self.body.get("source")
        if not isinstance(source, dict) or source.get("type") != "text" or not isinstance(source.get("data"), str):
            raise _media(self.where, "document")
        title = self.body.get("title")
        return f"{title}\n{source['data']}" if isinstance(title, str) and title else str(source["data"])


@dataclass(slots=True)
class Turn:
    """Messages of one role that follow each other."""

    role: str
    blocks: list[Block] = field(default_factory=list)

    def messages(self, first: int, names: dict[str, str]) -> list[dict[str, Any]]:
        """Return the messages of chat. `first`: the index of the first one. `names`: gets the names of their fields."""
        if self.role == "assistant":
            return [self._of_assistant(f"messages[{first}]", names)]
        if self.role == "system":
            return [{"role": "system", "content": _joined(self.blocks)}]
        made: list[dict[str, Any]] = []
        texts: list[Block] = []
        for block in self.blocks:
            if block.type != "tool_result":
                texts.append(block)
                continue
            if texts:
                made.append({"role": "user", "content": _joined(texts)})
                texts = []
            names[f"messages[{first + len(made)}].tool_call_id"] = f"{block.where}.tool_use_id"
            made.append(_result(block))
        if texts or not made:
            made.append({"role": "user", "content": _joined(texts)})
        return made

    def _of_assistant(self, at: str, names: dict[str, str]) -> dict[str, Any]:
        texts = [block.text("text") for block in self.blocks if block.type == "text"]
        thoughts = [block.text("thinking") for block in self.blocks if block.type == "thinking"]
        calls: list[dict[str, Any]] = []
        for block in self.blocks:
            if block.type == "tool_use":
                names[f"{at}.tool_calls[{len(calls)}]"] = block.where
                about = {"name": block.body.get("name"), "arguments": block.body.get("input")}
                calls.append({"id": block.body.get("id"), "type": "function", "function": about})
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
        message |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
        return message | ({"tool_calls": calls} if calls else {})


def turns_of(messages: list[Any]) -> list[Turn]:
    """Return the messages of a body; those of one role that follow each other are one turn. Raises RequestError."""
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        role, blocks = _message(message, f"messages[{i}]")
        if not turns or turns[-1].role != role:
            turns.append(Turn(role))
        turns[-1].blocks += blocks
    return turns


def texts_of(value: Any, where: str) -> str:
    """Return a string, or the text of blocks of text. Raises RequestError."""
    return _joined(_blocks(value, where, IN_TEXT))


def _message(message: Any, where: str) -> tuple[str, Iterator[Block]]:
    if not isinstance(message, dict):
        raise RequestError(f"{where} must be an object with role and content", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        given = f"{quoted(role)} is not supported" if isinstance(role, str) else "must be a string"
        raise RequestError(f"{where}.role {given}: use one of {', '.join(_ROLES)}", param=f"{where}.role")
    for key, value in message.items():
        if key not in ("role", "content") and value is not None:
            at = excerpt(f"{where}.{key}")
            raise RequestError(f"{at} is not supported: leave it out", param=at, code="unsupported_parameter")
    kinds = {"assistant": IN_ASSISTANT, "user": IN_USER, "system": IN_TEXT}[role]
    return role, _blocks(message.get("content"), f"{where}.content", kinds)


def _blocks(value: Any, where: str, kinds: tuple[str, ...]) -> Iterator[Block]:
    """Yield the blocks of a content. `kinds`: those that may be there. A string is one block of text."""
    if isinstance(value, str):
        yield Block(where, "text", {"text": value})
        return
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a string or a list of blocks", param=where)
    for i, block in enumerate(value):
        at = f"{where}[{i}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind in kinds:
            yield Block(at, kind, block)
        elif isinstance(kind, str) and kind in MEDIA:
            raise _media(at, kind)
        else:
            raise RequestError(
                f"{at}.type must be one of {', '.join(kinds)}", param=f"{at}.type", code="unsupported_content"
            )


def _media(where: str, kind: str) -> RequestError:
    message = f"{where} is {MEDIA[kind]}: this model is text-only, so send text blocks only"
    return RequestError(message, param=where, code="unsupported_content")


def _result(block: Block) -> dict[str, Any]:
    """Return the message of chat with the result of a call. The model reads that the call failed if it did."""
    content = block.body.get("content")
    text = "" if content is None else texts_of(content, f"{block.where}.content")
    failed = block.body.get("is_error")
    if not isinstance(failed, bool | None):
        raise RequestError(f"{block.where}.is_error must be true or false", param=f"{block.where}.is_error")
    return {
        "role": "tool",
        "content": f"Error: {text}" if failed else text,
        "tool_call_id": block.body.get("tool_use_id"),
    }


def _joined(blocks: Iterable[Block]) -> str:
    return "\n".join(block.shown for block in blocks)

"""Conversations of the Responses API. They are kept in memory, so that a request can go on where an earlier one ended.

A worker knows nothing of them: the gateway puts the stored items before the input of a request. So a conversation
outlives its worker, and may go on with another model.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from tourkit.errors import RequestError, quoted
from tourkit.server.api.limits import BODY
from tourkit.server.api.off_loop import LARGE_BODY, parsed
from tourkit.server.api.response_fields import not_stored
from tourkit.server.api.response_items import kind_of

LIMIT = 64 << 20  # bytes of JSON
_OVERHEAD = 500  # bytes that an item takes beside its JSON
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_KEPT = ("completed", "incomplete")  # the status of responses that are stored


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a conversation. `json`: its whole text."""

    id: str
    json: bytes


@dataclass(slots=True)
class Turn:
    """One response and its own input. `parent`: the turn before it; None for the first one.

    `head`: the response as JSON, without its output. `users`: 1 if the response can be asked for, and 1 for each later
    turn and each running request that goes on from it.
    """

    client: str
    id: str
    parent: Turn | None
    input: tuple[Item, ...]
    output: tuple[Item, ...]
    head: bytes
    users: int = 1

    @property
    def size(self) -> int:
        """Bytes."""
        items = (*self.input, *self.output)
        return len(self.head) + sum(len(item.json) + _OVERHEAD for item in items) + _OVERHEAD

    def asked(self) -> list[Item]:
        """Return the items that the model got for this response: the conversation before it, and its own input."""
        return [*(self.parent.said() if self.parent is not None else ()), *self.input]

    def said(self) -> list[Item]:
        """Return the items of the conversation up to the end of this response."""
        turns, turn = [self], self.parent
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return [item for each in reversed(turns) for item in (*each.input, *each.output)]

    def response(self) -> bytes:
        """Return the response as JSON."""
        output = [orjson.Fragment(item.json) for item in self.output]
        return orjson.dumps(orjson.loads(self.head) | {"output": output})


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose answer may be stored. `body`: for the worker. `n_stored`: as in Asked. `stores`: keep the answer.

    `parent`, `input`: as in Turn.
    """

    body: bytes
    n_stored: int | None
    stores: bool
    parent: Turn | None
    input: tuple[Item, ...]


class Conversations:
    """The stored responses of all clients; each client finds its own only. `most`: bytes of all of them together.

    If there are more, the responses that were not used for the longest time go. Belongs to the gateway's event loop.
    """

    def __init__(self, most: int = LIMIT) -> None:
        self._most = most
        self._turns: OrderedDict[tuple[str, str], Turn] = OrderedDict()
        self._items: dict[tuple[str, str], Item] = {}
        self.size = 0  # bytes

    @contextlib.asynccontextmanager
    async def begin(self, body: bytes, client: str) -> AsyncIterator[Begun]:
        """Give a request with the stored items that it refers to. They stay until the end of the block.

        Raises RequestError with status 404 for a response or an item that is not stored for this client.
        """
        asked = await parsed(body, lambda value: value)
        previous, given = asked.get("previous_response_id"), asked.get("input")
        parent = self._use(previous, client) if isinstance(previous, str) else None
        try:
            if not isinstance(given, str | list):  # the worker refuses it
                yield Begun(body, None if parent is None else 0, False, parent, ())
                return
            items = _as_list(given)
            found = [self._referred(item, i, client) for i, item in enumerate(items)]
            make = partial(_begun, body, asked, parent, items, found)
            yield await asyncio.to_thread(make) if len(body) > LARGE_BODY else make()
        finally:
            self._drop(parent)

    def _use(self, id_: str, client: str) -> Turn:
        """Return a stored response, which stays until it is dropped. Raises RequestError."""
        turn = self._turns.get((client, id_))
        if turn is None:
            raise not_stored(id_)
        self._turns.move_to_end((client, id_))
        turn.users += 1
        return turn

    def _referred(self, item: Any, index: int, client: str) -> Item | None:
        """Return the stored item that an item refers to; None if it is an item itself."""
        if not isinstance(item, dict) or kind_of(item) != "item_reference":
            return None
        id_ = item.get("id")
        found = self._items.get((client, id_)) if isinstance(id_, str) else None
        if found is None:
            where = f"input[{index}]"
            raise RequestError(
                f"{where}: item {quoted(str(id_))} is not stored here: send the item itself",
                param=where,
                code="item_not_found",
                status=404,
            )
        return found

    def end(self, begun: Begun, response: dict[str, Any], client: str) -> None:
        """Store the response to a request, if it is whole."""
        if not begun.stores or response.get("status") not in _KEPT:
            return
        output = tuple(Item(item["id"], orjson.dumps(item)) for item in response["output"])
        head = orjson.dumps({name: value for name, value in response.items() if name != "output"})
        turn = Turn(client, response["id"], begun.parent, begun.input, output, head)
        if turn.parent is not None:
            turn.parent.users += 1
        self._turns[client, turn.id] = turn
        self._items |= {(client, item.id): item for item in _items(turn)}
        self.size += turn.size
        while self.size > self._most and self._turns:
            self._forget(next(iter(self._turns)))

    def find(self, id_: str, client: str) -> Turn:
        """Return a stored response. Raises RequestError with status 404."""
        turn = self._turns.get((client, id_))
        if turn is None:
            message = f"response {quoted(id_)} is not stored here"
            raise RequestError(message, param="response_id", code="response_not_found", status=404)
        self._turns.move_to_end((client, id_))
        return turn

    def delete(self, id_: str, client: str) -> None:
        """Forget a stored response. Responses that go on from it keep its items. Raises RequestError."""
        self.find(id_, client)
        self._forget((client, id_))

    def _forget(self, key: tuple[str, str]) -> None:
        self._drop(self._turns.pop(key))

    def _drop(self, turn: Turn | None) -> None:
        """Take one user from a turn. If it has no other, its items go, and its parent loses a user too."""
        while turn is not None:
            turn.users -= 1
            if turn.users:
                return
            self.size -= turn.size
            for item in _items(turn):
                if self._items.get((turn.client, item.id)) is item:
                    del self._items[turn.client, item.id]
            turn = turn.parent


def _begun(
    body: bytes, asked: dict[str, Any], parent: Turn | None, items: list[Any], found: list[Item | None]
) -> Begun:
    """Return a request with stored items. `found`: for each item of its input, the stored item that it refers to."""
    stored = [] if parent is None else parent.said()
    if stored or any(found):
        pairs = zip(items, found, strict=True)
        new = [item if other is None else orjson.Fragment(other.json) for item, other in pairs]
        body = orjson.dumps(asked | {"input": [orjson.Fragment(item.json) for item in stored] + new})
        if len(body) > BODY.most:
            raise _too_long()
    own = tuple(other or _stored(item) for item, other in zip(items, found, strict=True))
    return Begun(body, None if parent is None else len(stored), asked.get("store") is not False, parent, own)


def _items(turn: Turn) -> Iterator[Item]:
    yield from turn.input
    yield from turn.output


def _as_list(given: str | list[Any]) -> list[Any]:
    """Return the items of an input. A string is a message of the user."""
    return given if isinstance(given, list) else [{"role": "user", "content": given}]


def _stored(item: Any) -> Item:
    """Return an item of a request as it is stored: with its type, an id, a status, and content as a list."""
    if not isinstance(item, dict):
        return Item("", b"null")  # the worker refuses it
    kind = kind_of(item)
    id_ = item.get("id")
    if not isinstance(id_, str) or not id_:
        id_ = f"{_PREFIXES.get(kind, 'item') if isinstance(kind, str) else 'item'}_{uuid.uuid4().hex}"
    shown = item | {"type": kind, "id": id_}
    if kind != "reasoning":
        shown |= {"status": item.get("status") or "completed"}
    if kind == "message" and isinstance(item.get("content"), str):
        shown |= {"content": [_text_part(item)]}
    return Item(id_, orjson.dumps(shown))


def _text_part(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") == "assistant":
        return {"type": "output_text", "text": message["content"], "annotations": []}
    return {"type": "input_text", "text": message["content"]}


def _too_long() -> RequestError:
    message = f"the conversation is over {BODY.most >> 20} MiB: begin a new one"
    return RequestError(message, param="previous_response_id", code=BODY.code, status=BODY.status)

"""The Responses API in the gateway: answers are stored on their way to the client, and can be asked for later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Send

from tourkit.errors import RequestError
from tourkit.server.api.dialects import EVENTS
from tourkit.server.api.replies import error_response, json_response
from tourkit.server.gateway.access import CLIENT
from tourkit.server.gateway.conversations import Conversations, Item

PATH = "/v1/responses"
_ENDS = (b"event: response.completed\n", b"event: response.incomplete\n")
_ERROR = b"event: error\n"
_PAGE = 20  # items of a list, if the client does not say how many
_MOST = 100


class Tapped:
    """A `send` for an answer of a worker. `on_response` gets the response before the client has the end of it.

    A stream comes in whole events (`relay.whole_pieces`). An error that the gateway puts into it gets the number that
    comes next.
    """

    def __init__(self, send: Send, on_response: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._on_response = on_response
        self._is_stream = False
        self._is_good = False  # the status is 200
        self._whole = b""  # the answer as far as it has come, if it is no stream
        self._n_events = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            self._is_stream = any(kind.startswith(EVENTS.encode()) for kind in kinds)
            self._is_good = message["status"] == 200
        elif self._is_good and self._is_stream:
            message = {**message, "body": self._events(message.get("body", b""))}
        elif self._is_good:
            self._whole += message.get("body", b"")
            if not message.get("more_body", False):
                self._on_response(orjson.loads(self._whole))
        await self._send(message)

    def _events(self, block: bytes) -> bytes:
        """Return a block of a stream. An error at its beginning has its number."""
        if block.startswith(_ERROR):
            block = self._numbered(block)
        for each in block.split(b"\n\n"):
            self._n_events += each.startswith(b"event: ")
            if each.startswith(_ENDS):
                self._on_response(orjson.loads(each.partition(b"data: ")[2])["response"])
        return block

    def _numbered(self, block: bytes) -> bytes:
        """Return a block that begins with an error event, with the number of the event."""
        first, end, others = block.partition(b"\n\n")
        head, _, data = first.partition(b"data: ")
        return head + b"data: " + orjson.dumps(orjson.loads(data) | {"sequence_number": self._n_events}) + end + others


def routes(conversations: Conversations) -> list[Route]:
    """Return the routes about stored responses."""

    async def response(request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            message = "stream is not supported for a stored response: leave it out"
            return error_response(RequestError(message, param="stream", code="unsupported_parameter"))
        try:
            found = conversations.find(request.path_params["id"], request.scope[CLIENT])
        except RequestError as exc:
            return error_response(exc)
        return Response(found.response(), media_type="application/json")

    async def delete(request: Request) -> Response:
        id_ = request.path_params["id"]
        try:
            conversations.delete(id_, request.scope[CLIENT])
        except RequestError as exc:
            return error_response(exc)
        return json_response(200, {"id": id_, "object": "response", "deleted": True})

    async def input_items(request: Request) -> Response:
        try:
            found = conversations.find(request.path_params["id"], request.scope[CLIENT])
            page = _page(found.asked(), dict(request.query_params))
        except RequestError as exc:
            return error_response(exc)
        return Response(page, media_type="application/json")

    return [
        Route(f"{PATH}/{{id}}", response, methods=["GET"]),
        Route(f"{PATH}/{{id}}", delete, methods=["DELETE"]),
        Route(f"{PATH}/{{id}}/input_items", input_items, methods=["GET"]),
    ]


def _page(items: list[Item], query: dict[str, str]) -> bytes:
    """Return a part of a list of items. `query`: limit, order and after of the request. Raises RequestError."""
    limit, order, after = query.get("limit", str(_PAGE)), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= len(str(_MOST)) and 1 <= int(limit) <= _MOST):
        raise RequestError(f"limit must be a whole number from 1 to {_MOST}", param="limit")
    if order not in ("asc", "desc"):
        raise RequestError("order must be asc or desc", param="order")
    found = items if order == "asc" else items[::-1]
    if after is not None:
        index = next((i for i, item in enumerate(found) if item.id == after), None)
        if index is None:
            raise RequestError("after must be the id of an item in the list", param="after")
        found = found[index + 1 :]
    shown = found[: int(limit)]
    return orjson.dumps(
        {
            "object": "list",
            "data": [orjson.Fragment(item.json) for item in shown],
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
            "has_more": len(found) > len(shown),
        }
    )

"""How each API writes errors and streams. The paths decide which API a request speaks: OpenAI's, except below.

Errors are made in OpenAI's form everywhere. The gateway and the workers rewrite them for the other APIs here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

EVENTS = "text/event-stream"
_COMMENT = b": waiting\n\n"  # a line that begins with a colon is a comment in server-sent events


def event(body: dict[str, Any], name: str = "") -> bytes:
    """Return one server-sent event. `name`: its type; empty for none."""
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + orjson.dumps(body) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one API writes errors and streams.

    `stream_type`: the content type of its streams. `ends`: the last bytes of a whole piece of a stream. `waiting`: sent
    while a client waits and nothing else is sent; empty if it has no such thing. `error`: makes the body of an error
    from the HTTP status and the body of OpenAI's form. `failure`: makes the piece of a stream that carries such a body.
    """

    stream_type: str
    ends: bytes
    waiting: bytes
    error: Callable[[int, dict[str, Any]], dict[str, Any]]
    failure: Callable[[int, dict[str, Any]], bytes]


def _same(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return body


def response_failure(status: int, body: dict[str, Any], number: int = 0) -> bytes:
    """Return the error event of the Responses API. `number`: its place in the stream.

    OpenAI's reference has the fields of the error in the event itself, and the Open Responses standard has them in an
    object. Clients read one of them.
    """
    error = body["error"]
    flat = {name: error[name] for name in ("code", "message", "param")}
    return event({"type": "error", "sequence_number": number} | flat | {"error": error}, "error")


OPENAI = Dialect(EVENTS, b"\n\n", _COMMENT, _same, lambda status, body: event(body))
RESPONSES = Dialect(EVENTS, b"\n\n", _COMMENT, _same, response_failure)
_BY_PATH = {"/v1/responses": RESPONSES}


def dialect_of(path: str) -> Dialect:
    """Return the API of a request's path, in the form of the routes."""
    return _BY_PATH.get(path, OPENAI)

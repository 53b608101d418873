"""How each API writes errors and streams. The paths decide which API a request speaks.

OpenAI's is the usual one. `/v1/messages` is Anthropic's, and `/api/` is Ollama's.

Errors are made in OpenAI's form everywhere. The gateway and the workers rewrite them for the other APIs here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

EVENTS = "text/event-stream"
_SERVER_ERROR = 500  # the first of the HTTP statuses for errors of the server
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
    `streams`: an answer is a stream if the request does not say. `id_headers`: those that have the request's id.
    `tag`: model names may end with it, and mean the same without it.
    """

    stream_type: str
    ends: bytes
    waiting: bytes
    error: Callable[[int, dict[str, Any]], dict[str, Any]]
    failure: Callable[[int, dict[str, Any]], bytes]
    streams: bool = False
    id_headers: tuple[bytes, ...] = (b"x-request-id",)
    tag: str = ""


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


# --- Anthropic --------------------------------------------------------------------------------------------------------

_KINDS = {  # of errors, by HTTP status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _of_messages(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """Return an error in Anthropic's form. `details` has the code and the field of OpenAI's form."""
    error, usual = body["error"], "invalid_request_error" if status < _SERVER_ERROR else "api_error"
    details = {"error_code": error["code"], "param": error["param"]}
    about = {"type": _KINDS.get(status, usual), "message": error["message"]}
    about["details"] = {key: value for key, value in details.items() if value is not None} or None
    return {"type": "error", "error": about}


MESSAGES = Dialect(
    EVENTS,
    b"\n\n",
    event({"type": "ping"}, "ping"),
    _of_messages,
    lambda status, body: event(_of_messages(status, body), "error"),
    id_headers=(b"x-request-id", b"request-id"),
)


# --- Ollama -----------------------------------------------------------------------------------------------------------

LINES = "application/x-ndjson"


def line(body: dict[str, Any]) -> bytes:
    """Return one piece of a stream of JSON lines."""
    return orjson.dumps(body) + b"\n"


def _of_ollama(status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"error": body["error"]["message"]}


def _ollama(waiting: dict[str, Any]) -> Dialect:
    """Return Ollama's dialect. Its streams have no comments: a piece without text keeps a client waiting."""
    return Dialect(
        LINES,
        b"\n",
        line(waiting | {"done": False}),
        _of_ollama,
        lambda status, body: line(_of_ollama(status, body)),
        streams=True,
        tag=":latest",
    )


OLLAMA_CHAT = _ollama({"message": {"role": "assistant", "content": ""}})
OLLAMA_GENERATE = _ollama({"response": ""})


def dialect_of(path: str) -> Dialect:
    """Return the API of a request's path, in the form of the routes."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return MESSAGES
    if path.startswith("/api/"):
        return OLLAMA_GENERATE if path == "/api/generate" else OLLAMA_CHAT
    return RESPONSES if path == "/v1/responses" else OPENAI

"""A real HTTP server on 127.0.0.1 for /v1/chat/completions. A function of the test makes the answers.

It is not a mock of the client: requests and answers, streamed ones too, go through a socket.
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish_reason: str = "stop"
    parts: dict[str, Any] = field(default_factory=dict)  # more parts of the message


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error in OpenAI's envelope; `raw` replaces the body, `headers` are added."""

    status: int
    message: str = "refused"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


# Called once per choice, with the request's body and the index of the choice.
Answerer = Callable[[dict[str, Any], int], "str | Answer | Refusal"]


@dataclass(slots=True)
class Stub:
    """What the test sees of the server. Every list gets one entry per request."""

    url: str
    answer: Answerer
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)  # the client's port, to tell connections apart
    gone: threading.Event = field(default_factory=threading.Event)  # set when a client hung up during a stream
    served: list[str] = field(default_factory=lambda: ["brain", "fast", "tool", "graph", "tiny"])
    ignore_n: bool = False
    cut_stream_after: int | None = None
    connections: set[socket.socket] = field(default_factory=set)

    def hang_up(self) -> None:
        """Close every open connection, as a restarted server would."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def texts(self) -> list[str]:
        """Return the last message of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextlib.contextmanager
def serve(answer: Answerer, *, ignore_n: bool = False, cut_stream_after: int | None = None) -> Iterator[Stub]:
    """Run the server during a `with` block, on port 0, so that ports never clash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    host, port = server.server_address[:2]
    stub = Stub(f"http://{host}:{port}", answer, ignore_n=ignore_n, cut_stream_after=cut_stream_after)
    server.stub = stub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        stub.hang_up()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.stub: Stub = self.server.stub  # type: ignore[attr-defined]
        self.stub.connections.add(self.connection)

    def finish(self) -> None:
        self.stub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.stub.served]
        self._send(200, json.dumps({"object": "list", "data": models}).encode(), {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stub.bodies.append(body)
        self.stub.headers.append({"path": self.path, **dict(self.headers)})
        self.stub.ports.append(self.client_address[1])
        count = 1 if self.stub.ignore_n else body.get("n", 1)
        made = (self.stub.answer(body, index) for index in range(count))
        answers = [next(made)] if body.get("stream") else list(made)  # a stream begins before its last answer is made
        refusal = next((answer for answer in answers if isinstance(answer, Refusal)), None)
        with contextlib.suppress(OSError):
            if refusal is not None:
                self._refuse(refusal)
            elif body.get("stream"):
                self._stream(map(_answer, chain(answers, made)))
            else:
                self._complete(body, [_answer(answer) for answer in answers])

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, refusal: Refusal) -> None:
        error = {
            "message": refusal.message,
            "type": "invalid_request_error",
            "param": refusal.param,
            "code": refusal.code,
        }
        data = json.dumps({"error": error}).encode() if refusal.raw is None else refusal.raw
        self._send(refusal.status, data, refusal.headers)

    def _complete(self, body: dict[str, Any], answers: list[Answer]) -> None:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, **answer.parts},
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        done = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": choices[::-1],  # the order of choices is not promised, their index is
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
        self._send(200, json.dumps(done, ensure_ascii=False).encode(), {})

    def _stream(self, answers: Iterator[Answer]) -> None:
        """Send the answers one after the other. `cut_stream_after`: pieces of the first one."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for index, answer in enumerate(answers):
                for number, piece in enumerate(_pieces(answer.text)):
                    if number == self.stub.cut_stream_after:
                        self.close_connection = True
                        return
                    self._event({"choices": [{"index": index, "delta": {"content": piece}, "finish_reason": None}]})
                for delta in _call_pieces(answer.parts.get("tool_calls", ())):
                    self._event({"choices": [{"index": index, "delta": delta, "finish_reason": None}]})
                self._event({"choices": [{"index": index, "delta": {}, "finish_reason": answer.finish_reason}]})
            self._event({"choices": [], "usage": {"total_tokens": 5}})
            self._chunk(b": a comment, to be passed over\n\n")
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.stub.gone.set()
            raise

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _answer(answer: "str | Answer | Refusal") -> Answer:
    assert not isinstance(answer, Refusal)
    return Answer(answer) if isinstance(answer, str) else answer


def _pieces(text: str) -> Iterator[str]:
    """Split a text into words, each with its leading white space."""
    return iter(re.findall(r"\s*\S+|\s+$", text))


def _call_pieces(calls: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the deltas of calls: the name first, then the arguments in pieces of three characters."""
    for at, call in enumerate(calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"tool_calls": [{"index": at, **call, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(arguments), 3):
            yield {"tool_calls": [{"index": at, "function": {"arguments": arguments[start : start + 3]}}]}


def schema_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a request. Fails if it was not sent as OpenAI's strict json_schema."""
    wanted = body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["strict"] is True
    assert wanted["json_schema"]["name"]
    schema: dict[str, Any] = wanted["json_schema"]["schema"]
    return schema


# One example for each pattern in the templates, and examples that fit most other patterns.
_EXAMPLES = ("", "a", "A", "0", "1", "1.5", "00:00", "2026-01-01", "+7 000 000-00-00", "a@b.c")


def minimal_instance(schema: dict[str, Any]) -> Any:
    """Return the smallest instance of a simple schema: the answer of a model that understands nothing."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        wanted = schema.get("required", ())
        return {k: minimal_instance(v) for k, v in schema.get("properties", {}).items() if k in wanted}
    if kind == "array":
        return [minimal_instance(schema.get("items", {})) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return _string(schema)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return False if kind == "boolean" else None


def _string(schema: dict[str, Any]) -> str:
    if schema.get("format") == "date":
        return "2026-01-01"
    shortest = schema.get("minLength", 0)
    for example in _EXAMPLES:
        if len(example) >= shortest and re.search(schema.get("pattern", ""), example):
            return example
    return "a" * shortest

"""The gateway's way in: spellings of paths, methods, compressed bodies, request ids, and comments in streams."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgi import Answer, ask
from starlette.types import Message, Receive, Scope, Send

from tourkit import __version__
from tourkit.server.api.limits import BODY
from tourkit.server.gateway.access import AccessRules
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.comments import Commented
from tourkit.server.gateway.entry import Entry
from tourkit.server.gateway.paths import canonical
from tourkit.server.gateway.relay import whole_pieces

NOBODY = json.dumps({"model": "nobody"}).encode()


def gateway(path: str, body: Any = None, *, keys: tuple[str, ...] = (), **how: Any) -> Answer:
    """Ask a gateway without models."""
    app = Gateway((), GatewayOptions(access=AccessRules(keys=keys))).app()
    return asyncio.run(ask(app, path, body, **how))


# --- paths and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/completions//", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/rerank", "/v1/rerank"),
        ("/v2/rerank", "/v1/rerank"),
        ("/models", "/v1/models"),
        ("/models/me/a-model", "/v1/models/me/a-model"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health/", "/health"),
        ("/", "/"),
        ("//", "/"),
        ("/v2/nothing", "/v2/nothing"),
        ("/v1", "/v1"),
    ],
)
def test_a_path_has_several_spellings(sent: str, meant: str) -> None:
    assert canonical(sent) == meant


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/completions/", "/v1/detokenize", "/apply-template"])
def test_a_request_under_another_spelling_reaches_its_route(path: str) -> None:
    answer = gateway(path, NOBODY)

    assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")


def test_another_spelling_of_an_open_path_is_open_and_of_another_path_is_not() -> None:
    assert gateway("/health/", method="GET", keys=("k",)).status == 200
    assert gateway("/models/", method="GET", keys=("k",)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "OPTIONS, POST"),
        ("HEAD", "/tokenize", "OPTIONS, POST"),
        ("DELETE", "/v1/models/tool", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    answer = gateway(path, method=method)

    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.body["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT"])
def test_an_unknown_path_is_404_for_every_method(method: str) -> None:
    answer = gateway("/v2/nothing", method=method)

    assert answer.status == 404
    assert answer.body["error"]["message"] == f"{method} /v2/nothing: no such route"


@pytest.mark.parametrize(("path", "allowed"), [("/completions", "OPTIONS, POST"), ("/", "GET, HEAD, OPTIONS")])
def test_options_names_the_methods_of_a_path(path: str, allowed: str) -> None:
    answer = gateway(path, method="OPTIONS")

    assert (answer.status, answer.headers["allow"], answer.raw) == (204, allowed, b"")


def test_the_version_is_that_of_the_package() -> None:
    assert gateway("/version", method="GET").body == {"version": __version__}


# --- compressed bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("", bytes),
        ("gzip", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
    ],
)
def test_a_compressed_body_is_unpacked(coding: str, pack: Callable[[bytes], bytes]) -> None:
    answer = gateway("/tokenize", pack(NOBODY), headers={"content-encoding": coding})

    assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [(NOBODY, "invalid_encoding"), (gzip.compress(NOBODY)[:-9], "invalid_encoding"), (b"\x1f\x8b", "invalid_encoding")],
    ids=["not compressed", "cut off", "two bytes"],  # a compressed body has the time in it
)
def test_a_body_that_cannot_be_unpacked_is_refused(body: bytes, code: str) -> None:
    answer = gateway("/tokenize", body, headers={"content-encoding": "gzip"})

    assert (answer.status, answer.body["error"]["param"], answer.body["error"]["code"]) == (400, "body", code)


def test_an_unknown_compression_is_415() -> None:
    answer = gateway("/tokenize", NOBODY, headers={"content-encoding": "zstd, gzip"})

    assert (answer.status, answer.body["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_that_is_too_large_when_it_is_unpacked_is_413() -> None:
    packed = gzip.compress(b" " * (BODY.most + 1))
    answer = gateway("/tokenize", packed, headers={"content-encoding": "gzip"})

    assert len(packed) < 100_000
    assert (answer.status, answer.body["error"]["code"]) == (413, "body_too_large")


# --- ids --------------------------------------------------------------------------------------------------------------


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("", False), ("x" * 129, False), ("a b", False)])
def test_the_id_of_a_request_is_the_clients_if_it_is_a_good_one(sent: str, kept: bool) -> None:
    found = asyncio.run(ask(Entry(nothing), "/", headers={"x-request-id": sent})).headers["x-request-id"]

    assert found == sent if kept else found.startswith("req_")


def test_each_answer_has_an_id_of_its_own_and_its_time_also_an_error() -> None:
    first, second = gateway("/v2/nothing"), gateway("/health", method="GET", keys=("k",))

    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["openai-processing-ms"].isdecimal()
    assert gateway("/metrics", method="GET", keys=("k",)).headers["x-request-id"]


# --- comments in streams ----------------------------------------------------------------------------------------------

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
REFUSED: Message = {"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]}
COMMENT = b": waiting\n\n"


def block(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Sent:
    """What a client gets. `commented`: set at each comment."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.commented = asyncio.Event()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "the answer begins twice"
            self.status, self.headers = message["status"], dict(message["headers"])
            return
        self.body += message["body"]
        if message["body"] == COMMENT:
            self.commented.set()

    async def until_commented(self) -> None:
        self.commented.clear()
        await self.commented.wait()


def stream(script: Callable[[Commented, Sent], Any], *, period: float = 0.0) -> Sent:
    """Run a script while comments are due all the time."""

    async def run() -> Sent:
        sent = Sent()
        commented = Commented(sent.send, "m F16 llama_cpp", period=period)
        commenting = asyncio.create_task(commented.run())
        await script(commented, sent)
        commenting.cancel()
        return sent

    return asyncio.run(run())


def test_a_stream_that_waits_for_its_first_token_begins_with_comments() -> None:
    async def script(commented: Commented, sent: Sent) -> None:
        await sent.until_commented()
        await commented(START)
        await commented(block(b"data: 1\n\n"))
        await sent.until_commented()
        await commented(block(b"data: [DONE]\n\n", more=False))

    sent = stream(script)

    assert sent.status == 200
    assert sent.headers[b"content-type"].startswith(b"text/event-stream")
    assert sent.headers[b"x-tourkit-model"] == b"m F16 llama_cpp"
    assert sent.body.startswith(COMMENT)
    assert sent.body.replace(COMMENT, b"") == b"data: 1\n\ndata: [DONE]\n\n"


def test_a_comment_never_comes_inside_an_event() -> None:
    async def script(commented: Commented, sent: Sent) -> None:
        await commented(START)
        await commented(block(b"data: 1"))
        for _ in range(20):
            await asyncio.sleep(0)
        await commented(block(b"2\n\n"))
        await sent.until_commented()

    assert b"data: 12\n\n" in stream(script).body


def test_an_error_after_a_comment_is_an_event() -> None:
    async def script(commented: Commented, sent: Sent) -> None:
        await sent.until_commented()
        await commented(REFUSED)
        await commented(block(b'{"error":'))
        await commented(block(b"{}}", more=False))

    sent = stream(script)

    assert sent.status == 200
    assert sent.body.replace(COMMENT, b"") == b'data: {"error":{}}\n\n'


def test_an_error_before_a_comment_keeps_its_status() -> None:
    async def script(commented: Commented, sent: Sent) -> None:
        await commented(REFUSED)
        for _ in range(20):
            await asyncio.sleep(0)
        await commented(block(b'{"error":{}}', more=False))

    sent = stream(script)

    assert (sent.status, sent.body) == (400, b'{"error":{}}')


def test_a_stream_that_sends_often_gets_no_comment() -> None:
    async def script(commented: Commented, sent: Sent) -> None:
        await commented(START)
        for _ in range(20):
            await commented(block(b"data: 1\n\n"))
            await asyncio.sleep(0)

    assert COMMENT not in stream(script, period=15.0).body


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_stream_of_a_worker_is_passed_on_in_whole_pieces(size: int) -> None:
    stream = b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DO'

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    async def run() -> list[bytes]:
        return [piece async for piece in whole_pieces(blocks(), b"\n\n")]

    pieces = asyncio.run(run())
    assert b"".join(pieces) == stream
    assert [piece.endswith(b"\n\n") for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_half_of_a_piece_is_not_passed_on_if_the_worker_goes_away() -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield b'data: {"a": 1}\n\ndata: {"b'
        raise ConnectionError

    async def run() -> list[bytes]:
        pieces = []
        with contextlib.suppress(ConnectionError):
            async for piece in whole_pieces(blocks(), b"\n\n"):
                pieces.append(piece)
        return pieces

    assert asyncio.run(run()) == [b'data: {"a": 1}\n\n']

"""The door of the server: connections that waste time, whose turn it is, and who may send requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import uvicorn
from fake_runner import Collected, FakeRunner
from sequences import sequence
from serving import Serving, serve_command
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from waiting import until

from tourkit.client import Client
from tourkit.commands.access import access_options
from tourkit.connections import BoundedServer, ConnectionLimits, OncePerSecond
from tourkit.engine.engine import BatchEngine
from tourkit.engine.waiting import Turns, WaitingLine, may_wait
from tourkit.errors import QueueFull, UsageError
from tourkit.generation import Finish, SamplingParams
from tourkit.net import listen
from tourkit.server.gateway.access import CLIENT, TRUSTED, Access, AccessRules
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.worker.app import ModelServer

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
END = "2"  # the token that ends the tiny model's answers
KEY = "ключ-é"  # fits no Latin-1
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"


# --- connections ----------------------------------------------------------------------------------------------------


@dataclass
class Running:
    server: BoundedServer
    port: int

    async def connect(self, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(first)
        return reader, writer

    async def open(self, number: int) -> None:
        """Wait until the server has this many connections."""
        while len(self.server.server_state.connections) != number:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(app: ASGIApp, **limits: Any) -> AsyncIterator[Running]:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = BoundedServer(config, ConnectionLimits(**limits))
    with listen("127.0.0.1", 0) as sock:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield Running(server, sock.getsockname()[1])
        server.should_exit = True
        await task


class Echo:
    """Reads the body and answers `ok`; for a path /slow only when `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        self.asked += 1
        if scope["path"] == "/slow":
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes the connection."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def answer_on(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\nok")


@pytest.mark.starts
@pytest.mark.parametrize(
    ("sent", "limits", "answer"),
    [
        (GET[:20], {"header": 0.2}, b"HTTP/1.1 408 "),
        (UPLOAD, {"body": 0.2, "body_rate": 1 << 20}, b"HTTP/1.1 408 "),
        (b"", {"header": 0.2}, b""),
    ],
    ids=["half a header", "half a body", "nothing"],
)
def test_a_client_that_does_not_send_on_is_disconnected(
    sent: bytes, limits: dict[str, Any], answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> bytes:
        async with running(Echo(), **limits) as server:
            reader, writer = await server.connect(sent)
            found = await rest_of(reader)
            writer.close()
            return found

    found = asyncio.run(run())

    assert found.startswith(answer)
    assert bool(found) is bool(answer)
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.starts
def test_a_header_without_an_end_is_refused() -> None:
    async def run() -> bytes:
        async with running(Echo()) as server:
            reader, writer = await server.connect(GET[:-2] + b"x: " + b"y" * 70_000)
            found = await rest_of(reader)
            writer.close()
            return found

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "header_too_large"


@pytest.mark.starts
def test_bytes_that_come_one_by_one_do_not_extend_the_time_for_a_header() -> None:
    async def run() -> bytes:
        async with running(Echo(), header=0.5) as server:
            reader, writer = await server.connect(GET[:-2] + b"x: ")
            reading = asyncio.create_task(rest_of(reader))
            while not reading.done():  # nothing is sent after the answer: a reset would take it away
                writer.write(b"y")
                await asyncio.wait({reading}, timeout=0.05)
            writer.close()
            return await reading

    assert asyncio.run(run()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.starts
def test_a_connection_is_closed_some_time_after_its_answer() -> None:
    async def run() -> bytes:
        async with running(Echo(), idle=0.2) as server:
            reader, writer = await server.connect(GET)
            found = await rest_of(reader)
            writer.close()
            return found

    assert asyncio.run(run()).endswith(b"\r\n\r\nok")


@pytest.mark.starts
def test_of_too_many_idle_connections_the_oldest_is_closed_and_the_others_answer() -> None:
    async def run() -> tuple[bytes, list[bytes]]:
        async with running(Echo(), most_idle=3, fresh=0) as server:
            connections = []
            for number in range(1, 4):
                connections.append(await server.connect())
                await server.open(number)
            connections.append(await server.connect())
            closed = await rest_of(connections[0][0])
            for _, writer in connections[1:]:
                writer.write(GET)
            answers = [await answer_on(reader) for reader, _ in connections[1:]]
            for _, writer in connections:
                writer.close()
            return closed, answers

    closed, answers = asyncio.run(run())

    assert closed == b""
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


@pytest.mark.starts
def test_many_clients_may_connect_at_once() -> None:
    """Their headers are on the way, so none of them counts as idle yet."""

    async def run() -> list[bytes]:
        async with running(Echo(), most_idle=3, fresh=3600) as server:
            connections = [await server.connect() for _ in range(8)]
            for _, writer in connections:
                writer.write(GET)
            answers = [await answer_on(reader) for reader, _ in connections]
            for _, writer in connections:
                writer.close()
            return answers

    assert [answer[:12] for answer in asyncio.run(run())] == [b"HTTP/1.1 200"] * 8


@pytest.mark.starts
def test_idle_connections_make_way_for_a_new_one_and_running_answers_do_not(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        echo = Echo()
        async with running(echo, most=2) as server:
            idle = await server.connect()
            await server.open(1)
            slow = [await server.connect(GET.replace(b"/ ", b"/slow "))]
            await server.open(2)
            slow.append(await server.connect(GET.replace(b"/ ", b"/slow ")))  # takes the place of the idle one
            assert await rest_of(idle[0]) == b""
            while echo.asked < 2:
                await asyncio.sleep(0.01)
            reader, writer = await server.connect(GET)  # no place is left now
            while not any("all 2 connections are in use" in record.message for record in caplog.records):
                await asyncio.sleep(0.01)
            echo.go.set()
            for each, _ in slow:
                await answer_on(each)
            await answer_on(reader)
            for _, each in (idle, *slow, (reader, writer)):
                each.close()

    asyncio.run(run())


@pytest.mark.starts
def test_when_the_system_refuses_connections_it_is_told_once_and_clients_are_answered_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        accept, refusals = loop.sock_accept, iter(range(200))

        async def refusing(sock: socket.socket) -> Any:
            accepted = await accept(sock)
            if next(refusals, None) is not None:
                accepted[0].close()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return accepted

        loop.sock_accept = refusing  # type: ignore[method-assign,assignment]
        async with running(Echo(), pause=0.001) as server:
            for _ in range(200):
                reader, writer = await server.connect()
                await rest_of(reader)
                writer.close()
            reader, writer = await server.connect(GET)
            await answer_on(reader)
            writer.close()

    asyncio.run(run())

    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"cannot accept a connection ({os.strerror(errno.EMFILE)})")


@pytest.mark.starts
def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
    ended = threading.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        while not ended.is_set():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            if (await poll(receive))["type"] == "http.disconnect":
                ended.set()

    async def poll(receive: Receive) -> Message:
        try:
            return await asyncio.wait_for(receive(), 0.001)
        except TimeoutError:
            return {"type": "http.request"}

    async def run() -> None:
        async with running(endless, unread=0.2) as server:
            _, writer = await server.connect(GET)
            while not ended.is_set():
                await asyncio.sleep(0.01)
            writer.transport.abort()

    asyncio.run(run())


@pytest.mark.starts
def test_a_hang_up_during_an_upload_to_the_gateway_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with running(Gateway((), GatewayOptions()).app()) as server:
            for _ in range(3):
                _, writer = await server.connect(UPLOAD)
                await server.open(1)
                while not server.server.server_state.tasks:
                    await asyncio.sleep(0.01)
                writer.close()
                await server.open(0)

    asyncio.run(run())

    assert caplog.records == []


def test_a_hang_up_during_an_upload_to_a_worker_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    headers = [(b"x-tourkit-secret", b"s")]

    async def receive() -> Message:
        return messages.pop(0)

    asyncio.run(call(ModelServer(None, "s").app(), "/tokenize", "POST", headers, receive=receive))  # type: ignore[arg-type]

    assert capsys.readouterr() == ("", "")


def test_one_line_of_each_kind_is_logged_in_a_second_and_the_next_says_how_many_were_left_out() -> None:
    now = [10.0]
    once = OncePerSecond(lambda: now[0])

    def passes(message: str, *values: object) -> str | None:
        record = logging.LogRecord("x", logging.WARNING, "", 0, message, values, None)
        return record.getMessage() if once.filter(record) else None

    first = [passes("bad request from %s", name) for name in "abc"]
    other = passes("another kind")
    now[0] += 1
    later = passes("bad request from %s", "d")

    assert first == ["bad request from a", None, None]
    assert other == "another kind"
    assert later == "bad request from d (and 2 more like this)"


# --- turns ----------------------------------------------------------------------------------------------------------


def submit(engine: BatchEngine, client: str, endings: list[str], done: Collected, n: int = 1) -> int:
    def emit(delta: Any) -> None:
        if delta.finish is not None:
            endings.append(client)
        done.deltas.put(delta)

    params = SamplingParams(temperature=0)
    return engine.submit(list(b"prompt"), params, 2, emit, [None] * n, client=client)


def test_a_client_with_64_requests_does_not_keep_anothers_single_one_waiting_behind_them() -> None:
    gate, endings = threading.Event(), list[str]()
    engine = BatchEngine(FakeRunner(slots=1, gate=gate))
    many = [Collected(1) for _ in range(64)]
    for each in many:
        submit(engine, "many", endings, each)
    single = Collected(1)
    submit(engine, "single", endings, single)

    gate.set()
    for each in (*many, single):
        each.wait()

    engine.close()
    assert endings.index("single") <= 2
    assert Counter(endings) == {"many": 64, "single": 1}


def test_clients_with_many_requests_take_turns_and_each_keeps_its_own_order() -> None:
    line = WaitingLine()
    for number, client in enumerate("aaaabbbc"):
        line.add(waiting_sequence(number, client))

    assert [(seq.client, seq.submission) for seq in line] == [
        *[("a", 0), ("b", 4), ("c", 7)],
        *[("a", 1), ("b", 5)],
        *[("a", 2), ("b", 6)],
        ("a", 3),
    ]


def test_a_client_that_comes_later_is_next_after_at_most_one_request_of_each_other_client() -> None:
    line = WaitingLine()
    for number in range(10):
        line.add(waiting_sequence(number, "a"))
    for _ in range(5):
        line.remove(next(iter(line)), served=True)

    line.add(waiting_sequence(10, "b"))
    line.add(waiting_sequence(11, "b"))

    assert "".join(seq.client for seq in line) == "babaaaa"


def test_requests_that_a_client_gave_up_do_not_count_against_its_next_one() -> None:
    line = WaitingLine()
    given_up = [waiting_sequence(number, "a") for number in range(10)]
    for seq in given_up:
        line.add(seq)
    for number in range(10, 14):
        line.add(waiting_sequence(number, "b"))
    for seq in given_up:
        line.remove(seq, served=False)

    line.add(waiting_sequence(14, "a"))

    assert "".join(seq.client for seq in line) == "babbb"


def test_a_preempted_sequence_is_next_whoever_waits() -> None:
    line = WaitingLine()
    first = waiting_sequence(0, "a")
    line.add(first)
    line.remove(first, served=True)
    line.add(waiting_sequence(1, "b"))

    line.put_back(first)
    line.add(waiting_sequence(2, "c"))

    assert next(iter(line)) is first
    line.remove(first, served=True)
    assert "".join(seq.client for seq in line) == "bc"


def waiting_sequence(submission: int, client: str) -> Any:
    seq = sequence(submission, 4, 0)
    seq.client = client
    return seq


def test_turns_of_one_client_are_first_come_first_served() -> None:
    turns = Turns()

    assert [turns.take("a") for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("client", "n", "waiting", "expected"),
    [
        ("a", 1, {}, True),
        ("a", 4, {}, True),
        ("a", 5, {}, False),
        ("a", 1, {"a": 4}, False),
        ("b", 1, {"a": 4}, True),
        ("b", 2, {"a": 4}, True),
        ("b", 3, {"a": 4}, False),
        ("c", 1, {"a": 4, "b": 2}, True),
        ("c", 2, {"a": 4, "b": 2}, False),
        ("d", 1, {"a": 4, "b": 2, "c": 2}, False),
    ],
)
def test_a_full_queue_has_room_for_the_share_of_a_client_that_has_less(
    client: str, n: int, waiting: Mapping[str, int], expected: bool
) -> None:
    assert may_wait(client, n, Counter(waiting), 4) is expected


def test_one_client_that_fills_the_queue_shuts_out_itself_alone() -> None:
    gate, endings = threading.Event(), list[str]()
    engine = BatchEngine(FakeRunner(slots=1, gate=gate), max_waiting=4)
    collected: list[Collected] = []
    is_full = False
    while not is_full:
        collected.append(Collected(1))
        try:
            submit(engine, "many", endings, collected[-1])
        except QueueFull:
            is_full = True
    collected[-1] = Collected(1)
    submit(engine, "single", endings, collected[-1])

    gate.set()
    answers = [each.wait()[0][1] for each in collected]

    engine.close()
    assert set(answers) <= {Finish.LENGTH, Finish.STOP}


# --- who may send requests ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """`scope`: as the application behind the door found it; None if the door refused the request."""

    status: int
    headers: dict[str, str]
    body: bytes
    scope: Scope | None = None

    @property
    def code(self) -> str | None:
        return json.loads(self.body)["error"]["code"] if self.status >= 400 else None


async def call(
    app: ASGIApp,
    path: str,
    method: str,
    headers: list[tuple[bytes, bytes]],
    *,
    address: str = "127.0.0.1",
    receive: Receive | None = None,
) -> Answer:
    scope: Scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": headers, "client": (address, 1), "scheme": "http", "root_path": ""}
    sent: list[Message] = []

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive or nothing, send)
    start, *bodies = sent or [{"status": 0, "headers": []}]
    found = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(body["body"] for body in bodies))


def ask(
    rules: AccessRules,
    headers: Mapping[str, str | bytes] | None = None,
    *,
    path: str = "/v1/models",
    method: str = "POST",
    address: str = "127.0.0.1",
) -> Answer:
    return ask_all(Access(_Behind(), rules), headers, path=path, method=method, address=address)


def ask_all(door: Access, headers: Mapping[str, str | bytes] | None = None, **about: Any) -> Answer:
    given = {"host": "127.0.0.1:8000"} | dict(headers or {})
    raw = [(name.encode(), each if isinstance(each, bytes) else each.encode()) for name, each in given.items()]
    behind = door._app
    assert isinstance(behind, _Behind)
    behind.scope = None
    answer = asyncio.run(
        call(
            door,
            about.get("path", "/v1/models"),
            about.get("method", "POST"),
            raw,
            address=about.get("address", "127.0.0.1"),
        )
    )
    return Answer(answer.status, answer.headers, answer.body, behind.scope)


class _Behind:
    """The application behind the door."""

    def __init__(self) -> None:
        self.scope: Scope | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"authorization": f"BEARER   {KEY} "},
        {"authorization": KEY},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"authorization": "Bearer other", "x-api-key": KEY},
        {"authorization": "Bearer second"},
    ],
)
def test_a_key_is_taken_from_each_header_that_clients_use(headers: dict[str, str]) -> None:
    answer = ask(AccessRules((KEY, "second")), headers)

    assert answer.status == 200
    assert answer.scope is not None
    assert answer.scope[TRUSTED]


def test_a_key_that_fits_latin_1_may_come_so_because_http_client_sends_it_so() -> None:
    rules = AccessRules(("clé",))

    assert [ask(rules, {"x-api-key": "clé".encode(form)}).status for form in ("utf-8", "latin-1")] == [200, 200]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer guess"},
        {"authorization": f"Basic {KEY}"},
        {"x-api-key": ""},
    ],
)
def test_without_the_right_key_everything_but_the_front_page_and_health_is_refused(headers: dict[str, str]) -> None:
    rules = AccessRules((KEY,))

    refused = [ask(rules, headers, path=path) for path in ("/v1/chat/completions", "/v1/models", "/metrics", "/x")]
    allowed = [ask(rules, headers, path=path) for path in ("/", "/health")]

    assert {(answer.status, answer.code) for answer in refused} == {(401, "invalid_api_key")}
    assert [answer.status for answer in allowed] == [200, 200]
    assert not any(answer.scope[TRUSTED] for answer in allowed if answer.scope)


def test_clients_are_told_apart_by_key_and_address_and_no_digest_shows_either() -> None:
    door = Access(_Behind(), AccessRules(("one", "two")))

    def client(key: str, address: str) -> str:
        scope = ask_all(door, {"x-api-key": key}, address=address).scope
        assert scope is not None
        return str(scope[CLIENT])

    found = [client(key, address) for key in ("one", "two") for address in ("192.0.2.1", "192.0.2.2")]

    assert len(set(found)) == 4
    assert client("one", "192.0.2.1") == found[0]
    assert not any(secret in digest for digest in found for secret in ("one", "two", "192"))


def test_keys_that_nobody_checks_tell_programs_of_this_machine_apart_and_give_others_no_more_turns() -> None:
    door = Access(_Behind(), AccessRules())

    def clients(address: str) -> int:
        scopes = [ask_all(door, {"x-api-key": key}, address=address).scope for key in "abc"]
        return len({scope[CLIENT] for scope in scopes if scope})

    assert (clients("127.0.0.1"), clients("192.0.2.1")) == (3, 1)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "192.168.1.5:8000",
        "[::1]:8000",
        "[fe80::1%25eth0]",
        "localhost",
        "LocalHost.:80",
        "venue.example",
    ],
)
def test_a_host_that_names_this_server_is_served(host: str) -> None:
    assert ask(AccessRules(hosts=("Venue.Example",)), {"host": host}).status == 200


def test_the_name_of_this_machine_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk.lan")
    door = Access(_Behind(), AccessRules())

    found = {
        host: ask_all(door, {"host": host}).status for host in ("desk", "desk.lan:1", "desk.local", "desk.example")
    }

    assert found == {"desk": 200, "desk.lan:1": 200, "desk.local": 200, "desk.example": 403}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "[evil]"]
)
def test_a_host_of_another_server_is_refused(host: str) -> None:
    """A page whose name leads to this machine (DNS rebinding) sends its own name as Host, and no Origin with GET."""
    answer = ask(AccessRules(), {"host": host}, method="GET")

    assert (answer.status, answer.code, answer.scope) == (403, "host_not_allowed", None)
    assert b"--allow-host" in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example", "content-type": "text/plain", "sec-fetch-site": "cross-site"},
    ],
)
def test_a_web_page_of_another_origin_is_refused(headers: dict[str, str]) -> None:
    answer = ask(AccessRules(), headers)

    assert (answer.status, answer.code, answer.scope) == (403, "origin_not_allowed", None)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec-fetch-site": "none"},
    ],
    ids=["curl -d", "text", "own page", "own page behind TLS", "typed"],
)
def test_programs_and_the_servers_own_pages_are_served_with_any_content_type(headers: dict[str, str]) -> None:
    assert ask(AccessRules(), headers).status == 200


@pytest.mark.parametrize("allowed", ["https://page.example", "*"])
def test_with_cors_a_page_may_ask_read_the_answer_and_read_errors(allowed: str) -> None:
    rules = AccessRules((KEY,), origins=(allowed,))
    page = {"origin": "https://page.example", "sec-fetch-site": "cross-site"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}

    question = ask(rules, page | asked, method="OPTIONS")
    answer = ask(rules, page | {"authorization": f"Bearer {KEY}"})
    refused = ask(rules, page)

    assert (question.status, question.scope, question.body) == (204, None, b"")
    assert question.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in question.headers["access-control-allow-methods"]
    assert (answer.status, refused.status) == (200, 401)
    for each in (question, answer, refused):
        assert each.headers["access-control-allow-origin"] == "https://page.example"
        assert each.headers["vary"] == "origin"


def test_cors_for_one_page_is_for_no_other() -> None:
    rules = AccessRules(origins=("https://page.example",))
    asked = {"access-control-request-method": "POST"}

    pages = (
        "https://other.example",
        "http://page.example",
        "https://page.example:1",
        "https://page.example.evil.example",
    )
    answers = [ask(rules, {"origin": page} | more, method="OPTIONS") for page in pages for more in ({}, asked)]

    assert {answer.status for answer in answers} == {403}


# --- the options of serve -------------------------------------------------------------------------------------------


def rules_of(*words: str, host: str = "127.0.0.1") -> AccessRules:
    """Return the rules that options of `serve` give."""
    found: list[Callable[[str], AccessRules]] = []

    @click.command()
    @access_options
    def command(access: Callable[[str], AccessRules]) -> None:
        found.append(access)

    command.main(list(words), standalone_mode=False)
    return found[0](host)


def test_an_empty_key_is_refused_wherever_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "key"
    empty.write_text(" \n\n")

    for words in (["--api-key", ""], ["--api-key", " "], ["--api-key-file", str(empty)]):
        with pytest.raises(UsageError, match=r"empty|no key in it"):
            rules_of(*words)
    monkeypatch.setenv("TOURKIT_API_KEY", "")
    with pytest.raises(UsageError, match=r"\$TOURKIT_API_KEY: the key is empty"):
        rules_of()


def test_keys_come_from_a_file_the_variable_or_the_command_line_which_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(f"\ufeff{KEY}\r\n\r\n second \n".encode())
    monkeypatch.setenv("TOURKIT_API_KEY", "from the variable")

    assert rules_of().keys == ("from the variable",)
    assert rules_of("--api-key-file", str(file)).keys == (KEY, "second")
    assert rules_of("--no-key").keys == ()
    assert capsys.readouterr().err == ""
    assert rules_of("--api-key", KEY).keys == (KEY,)
    [line] = capsys.readouterr().err.splitlines()
    assert "`ps`" in line
    assert KEY not in line


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "a", "--no-key"],
        ["--api-key", "a\nb"],
        ["--allow-host", "http://x"],
        ["--allow-host", ""],
        ["--cors", "page.example"],
    ],
)
def test_options_that_make_no_sense_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        rules_of(*words)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "venue.example"])
def test_an_address_that_other_machines_reach_needs_a_key_or_no_key(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--no-key"):
        rules_of(host=host)

    assert rules_of("--no-key", host=host) == AccessRules()
    assert capsys.readouterr().err.splitlines() == [f"--no-key: every machine that reaches {host} can use this server"]
    assert rules_of("--api-key", "k", host=host).keys == ("k",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert rules_of(host=host) == AccessRules()


# --- a real server --------------------------------------------------------------------------------------------------


def request(
    running: Serving, path: str = "/v1/chat/completions", headers: Mapping[str, str | bytes] | None = None, **body: Any
) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc)
    fields = {"model": "tool", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1} | body
    connection.request("POST" if path.startswith("/v1/c") else "GET", path, json.dumps(fields), dict(headers or {}))
    answer = connection.getresponse()
    found = Answer(answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return found


def waiting_in(running: Serving) -> float:
    text = request(running, "/metrics", {"x-api-key": "other"}).body.decode()
    [line] = [line for line in text.splitlines() if line.startswith("tourkit_sequences_waiting{")] or ["x 0"]
    return float(line.split()[-1])


@pytest.mark.starts
def test_a_server_with_keys_and_few_file_descriptors_stays_fair_quiet_and_up(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\nother\n", encoding="utf-8")
    options = [str(TINY), "--host", "0.0.0.0", "--api-key-file", str(keys), "--slots", "1", "--context", "512"]
    prefix = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"] if sys.platform != "win32" else []
    if shutil.which("taskset"):  # on one processor: its threads wait for no other program of a busy machine
        prefix = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *prefix]
    with serve_command(options, tmp_path / "log", prefix=prefix) as running:
        until(lambda: request(running, "/health").status == 200)

        check_access(running)
        check_turns(running)
        check_crowd(running)

        running.process.terminate()
        running.process.wait()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert len(log) < 2000
    shown = subprocess.list2cmdline(running.process.args)  # type: ignore[arg-type]
    assert KEY not in shown


def check_access(running: Serving) -> None:
    right = {"authorization": f"bearer {KEY}".encode()}
    found = {
        "no key": request(running).status,
        "right key": request(running, headers=right | {"content-type": "application/x-www-form-urlencoded"}).status,
        "foreign page": request(running, headers=right | {"origin": "http://evil.example"}).status,
        "foreign host": request(running, headers=right | {"host": "evil.example"}).status,
        "metrics": request(running, "/metrics").status,
    }
    assert found == {"no key": 401, "right key": 200, "foreign page": 403, "foreign host": 403, "metrics": 401}
    assert json.loads(request(running, "/health").body) == {"status": "ok"}
    assert "workers" in json.loads(request(running, "/health", right).body)
    with Client(running.url, api_key=KEY) as client:
        assert client.chat("Hello", max_tokens=1).text is not None


def check_turns(running: Serving) -> None:
    """One client has 12 requests open; the single one of another client is not answered last."""
    right, endless = {"x-api-key": KEY.encode()}, {"max_tokens": 24, "logit_bias": {END: -100}}
    with ThreadPoolExecutor(12) as pool:
        many = [pool.submit(request, running, headers=right, **endless) for _ in range(12)]
        until(lambda: waiting_in(running) >= 6)
        assert request(running, headers={"x-api-key": "other"}).status == 200
        left = sum(not each.done() for each in many)
        assert {each.result().status for each in many} == {200}
    assert left > 0


def check_crowd(running: Serving) -> None:
    """300 idle connections at 256 file descriptors: another client is answered."""
    address = urlsplit(running.url)
    crowd = [socket.create_connection((address.hostname or "", address.port or 0)) for _ in range(300)]
    assert request(running, headers={"x-api-key": "other"}).status == 200
    for each in crowd:
        each.close()

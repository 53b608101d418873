"""Hostile request bodies: limits come before work, every refusal names its field, and large bodies block nobody."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_worker import answers
from starlette.types import Message

from hostile.bodies import bodies, of_routes
from hostile.processes import with_peak
from tourkit.errors import RequestError
from tourkit.generation import EngineInfo
from tourkit.server.api import json_text, limits, off_loop
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.api.limits import LIMITS, Limit
from tourkit.server.api.replies import error_response
from tourkit.server.api.requests import parse_chat, parse_detokenize, parse_embeddings, parse_tokenize
from tourkit.server.api.rerank_fields import parse_rerank
from tourkit.server.api.response_fields import parse_response
from tourkit.server.api.route_fields import ROUTES
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.http import CLIENT_LEFT
from tourkit.server.worker import app as worker_app
from tourkit.server.worker.app import ModelServer

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"
PARSERS: dict[str, Callable[[Any], object]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/v1/embeddings": parse_embeddings,
    "/v1/rerank": parse_rerank,
    "/apply-template": parse_chat,
    "/v1/responses": lambda body: parse_response(body, None),
    "/tokenize": parse_tokenize,
    "/detokenize": parse_detokenize,
}
CHAT: dict[str, Any] = {"model": "tool", "messages": [{"role": "user", "content": "x"}]}
EMBED: dict[str, Any] = {"model": "embed", "input": "x"}
RERANK: dict[str, Any] = {"model": "rerank", "query": "x", "documents": ["x"]}


def refused(path: str, body: Any) -> RequestError:
    """Return the error for a body, given as data or as bytes."""
    with pytest.raises(RequestError) as caught:
        PARSERS[path](json_text.load(body if isinstance(body, bytes) else json.dumps(body).encode()))
    return caught.value


def schema(**keys: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": keys}}}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_table_of_limits() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("| `")]

    assert shown == [row(limit) for limit in LIMITS]


def row(limit: Limit) -> str:
    field = f"`{limit.field}` of `{limit.route}`" if limit.route else f"`{limit.field}`"
    code = f" `{limit.code}`" if limit.code else ""
    return f"| {field} | {limit.most:,} {limit.unit} | {limit.status}{code} |"


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def function(number: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}"}}


# A limit, and the route and the body with `count` of what it limits. The body is valid if the count is.
AT_A_LIMIT: list[tuple[Limit, str, Callable[[int], Any]]] = [
    (limits.MODEL, "/v1/chat/completions", lambda count: CHAT | {"model": "x" * count}),
    (limits.MESSAGES, "/v1/chat/completions", lambda count: CHAT | {"messages": CHAT["messages"] * count}),
    (limits.N, "/v1/chat/completions", lambda count: CHAT | {"n": count}),
    (limits.STOPS, "/v1/completions", lambda count: {"model": "tool", "prompt": "x", "stop": ["x"] * count}),
    (limits.BIASES, "/v1/chat/completions", lambda count: CHAT | {"logit_bias": {str(i): 1 for i in range(count)}}),
    (limits.TOP_LOGPROBS, "/v1/chat/completions", lambda count: CHAT | {"logprobs": True, "top_logprobs": count}),
    (limits.CHOICES, "/v1/chat/completions", lambda count: CHAT | {"choice": ["x"] * count}),
    (limits.PROMPTS, "/v1/completions", lambda count: {"model": "tool", "prompt": ["x"] * count}),
    (limits.TOOLS, "/v1/chat/completions", lambda count: CHAT | {"tools": [function(i) for i in range(count)]}),
    (limits.TEXTS, "/v1/embeddings", lambda count: EMBED | {"input": ["x"] * count}),
    (limits.ITEMS, "/v1/responses", lambda count: {"model": "tool", "input": CHAT["messages"] * count}),
    (limits.QUERY, "/v1/rerank", lambda count: RERANK | {"query": "x" * count}),
    (limits.DOCUMENTS, "/v1/rerank", lambda count: RERANK | {"documents": ["x"] * count}),
    (limits.TOKENIZED, "/tokenize", lambda count: {"model": "tool", "prompt": "x" * count}),
    (limits.TOKENS, "/detokenize", lambda count: {"model": "tool", "tokens": [1] * count}),
]


@pytest.mark.parametrize(("limit", "path", "body"), AT_A_LIMIT, ids=lambda value: getattr(value, "field", None))
def test_a_field_is_taken_at_its_limit_and_refused_by_name_above_it(
    limit: Limit, path: str, body: Callable[[int], Any]
) -> None:
    PARSERS[path](json_text.load(json.dumps(body(limit.most)).encode()))
    error = refused(path, body(limit.most + 1))

    assert (error.param, error.code, error.status) == (limit.field, limit.code, limit.status)
    assert limit.field in str(error)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT | {"stop": ["a", "x" * 1_001]}, "stop[1]"),
        ("/v1/chat/completions", {"model": "tool", "messages": [dict.fromkeys(map(str, range(101)))]}, "messages[0]"),
        ("/v1/chat/completions", dict.fromkeys(map(str, range(101))), "body"),
        ("/v1/embeddings", EMBED | {"input": ["x", "x" * 1_048_577]}, "input[1]"),
        ("/v1/rerank", RERANK | {"documents": ["x", {"text": "x" * 1_048_577}]}, "documents[1]"),
        ("/v1/chat/completions", CHAT | {"metadata": nested(100)}, "metadata"),
        ("/v1/chat/completions", CHAT | schema(properties={"a": {"const": nested(95)}}), "response_format"),
        ("/v1/chat/completions", nested(101), "body"),
    ],
)
def test_the_part_that_is_over_a_limit_is_named(path: str, body: Any, param: str) -> None:
    error = refused(path, body)

    assert error.param == param
    assert str(error).startswith(f"{param} has ")


@pytest.fixture
def low_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the usual counts, so that the tests are quick."""
    for name in ("CONTAINERS", "KEYS", "VALUES"):
        limit: Limit = getattr(json_text, name)
        monkeypatch.setattr(json_text, name, replace(limit, most=limit.most // 10))


@pytest.mark.usefixtures("low_counts")
@pytest.mark.parametrize(
    ("field", "value", "unit"),
    [
        ("metadata", [[]] * 100_000, "lists and objects"),
        ("metadata", [{"a": 1}] * 15_000, "lists and objects"),
        ("metadata", {"in": dict.fromkeys(map(str, range(20_000)))}, "keys"),
        ("user", [1] * 100_000, "values"),
        ("tokens", ["a", *[""] * 100_000], "values"),
    ],
)
def test_the_field_with_too_many_parts_is_named(field: str, value: Any, unit: str) -> None:
    error = refused("/v1/chat/completions", CHAT | {field: value})

    assert error.param == field
    assert str(error).startswith(f"{field} has too many {unit}: give at most ")


def test_a_body_with_as_many_levels_as_allowed_is_parsed() -> None:
    assert json_text.load(json.dumps(CHAT | {"metadata": nested(99)}).encode())["metadata"] == nested(99)


@pytest.mark.usefixtures("low_counts")
@pytest.mark.parametrize("inner", [b"[" * 15_000_000, b"[]," * 5_000_000, b"1," * 7_000_000])
def test_a_body_that_would_take_a_gigabyte_is_refused_with_little_memory(inner: bytes) -> None:
    body = b'{"model":"tool","metadata":[' + inner

    error, most = with_peak(lambda: refused("/v1/chat/completions", body))

    assert (error.param, error.code) == ("metadata", "body_too_complex")
    assert most < 4 * 1024 * 1024


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_brackets_inside_strings_do_not_count_wherever_a_block_ends(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is scanned block by block: strings and escapes go on in the next one."""
    monkeypatch.setattr(json_text, "_BLOCK", block)
    chance = random.Random(block)
    for _ in range(200):
        text = "".join(chance.choices(['"', "\\", "[", "{", "]", "é", "\n", '\\"', "a"], k=chance.randrange(30)))
        levels = chance.choice((99, 100))
        body = json.dumps({text + "[" * 101: text, "b": [text, nested(levels - 1)]}, ensure_ascii=False).encode()

        if levels == 99:
            json_text.load(body)
        else:
            assert refused("/v1/chat/completions", body).param == "b"


def test_a_string_that_does_not_end_is_looked_at_once() -> None:
    """The search for the field's name must not begin again at each quote of the string."""
    body = b'{"metadata":' + b"[" * 101 + b'"' + b'\\"' * 8_000_000

    assert refused("/v1/chat/completions", body).param == "metadata"


# --- what was a 500, or cost seconds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": {}, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": [], "text": "x"}]}]}, "messages[0].content[0]"),
        (schema(**{"$schema": 5}), "response_format.json_schema"),
        (schema(**{"$schema": ["x"]}), "response_format.json_schema"),
        (schema(**{"$id": {}}), "response_format.json_schema"),
        ({"logit_bias": {"1" * 5_000: 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"top_k": 2**40}, "top_k"),
        ({"temperature": 1e300}, "temperature"),
    ],
)
def test_a_value_of_a_strange_type_or_size_is_refused_by_name(extra: dict[str, Any], param: str) -> None:
    assert refused("/v1/chat/completions", CHAT | extra).param == param


def test_a_number_that_is_too_large_for_a_float_is_refused_by_name() -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(CHAT | {"temperature": 10**400})

    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    "text",
    [rb'"\ud800"', b"NaN", b"1e999", b"9" * 5_000, b'"\xff"', b'"\xed\xa0\x80"', b'"\0"', b"\xef\xbb\xbf{}", b""],
)
def test_text_that_is_no_json_is_refused(text: bytes) -> None:
    error = refused("/v1/chat/completions", text)

    assert (error.param, error.code) == ("body", "invalid_json")


def test_a_name_is_guessed_for_a_short_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'temperature'?" in str(refused("/v1/chat/completions", CHAT | {"temperatur": 1}))
    monkeypatch.setattr("difflib.get_close_matches", None)
    assert "leave it out" in str(refused("/v1/chat/completions", CHAT | {"temperature" * 300_000: 1}))


LONG = "x" * 300_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {LONG: 1}),
        ("/v1/chat/completions", CHAT | {"model": LONG}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": LONG, "content": "x"}]}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "x", LONG: 1}]}),
        ("/v1/chat/completions", CHAT | {"logit_bias": {LONG: 1}}),
        ("/v1/chat/completions", CHAT | {"logit_bias": {"\x00" * 300_000: 1}}),
        ("/v1/chat/completions", CHAT | {"stop": LONG}),
        ("/v1/chat/completions", CHAT | {"response_format": {"type": LONG}}),
        ("/v1/chat/completions", CHAT | {"structured_outputs": {LONG: 1}}),
        ("/v1/chat/completions", {LONG: nested(101)}),
        ("/v1/embeddings", EMBED | {"encoding_format": LONG}),
    ],
)
def test_a_refusal_quotes_at_most_200_characters(path: str, body: Any) -> None:
    error = refused(path, body)
    answer = json.loads(error_response(error).body)["error"]

    assert len(answer["param"]) <= 200
    assert len(max(re.findall(r"x*|(?:\\x00)*", answer["message"]), key=len)) <= 200
    assert len(answer["message"]) < 350


def test_bodies_of_a_generator_are_parsed_or_refused() -> None:
    """Changed bodies of all routes. Any other answer would be a 500. `make fuzz` tries more."""
    seed = 20
    sent = list(itertools.islice(bodies(seed), 1_500))
    of_workers = [(path, body) for path, body in sent if path in ROUTES]
    found = answers(of_workers)

    for i, (request, answer) in enumerate(zip(of_workers, found, strict=True)):
        assert answer.status in (200, 400, 404, 429), (
            f"seed {seed}, body {i}: {request[0]} {request[1][:2_000]!r} {answer.raw!r}"
        )
    assert {path for path, _ in of_workers} == ROUTES.keys()
    assert all(
        answer.body["error"]["param"] is not None for answer in found if answer.status >= 400 and answer.status != 429
    )
    assert 0.1 < sum(answer.status in (200, 429) for answer in found) / len(found) < 0.5


def test_the_generator_tries_every_field_of_every_route() -> None:
    named: dict[str, set[str]] = {path: set() for path in ROUTES}
    for path, body in itertools.islice(of_routes(1), 2_000):
        named.setdefault(path, set()).update(body)

    for path, fields in ROUTES.items():
        assert {field.name for field in fields} <= named[path], path
    assert {path.rpartition("/")[2] for path in named.keys() - ROUTES.keys()} == {"load", "unload", "pin", "unpin"}


def test_the_generator_repeats_its_bodies_for_a_seed() -> None:
    first, second, other = (generator_start(seed) for seed in (1, 1, 2))

    assert first == second != other


def generator_start(seed: int) -> list[tuple[str, bytes]]:
    generator = bodies(seed)
    return [next(generator) for _ in range(50)]


# --- the running applications -----------------------------------------------------------------------------------------


class Client:
    """One request to an ASGI application. `left`: set it to hang up. `sent`: bytes of the body that were taken."""

    def __init__(self, path: str, blocks: Iterable[bytes], headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "query_string": b""}
        self.scope |= {"raw_path": path.encode(), "headers": list(headers)}
        self.left = asyncio.Event()
        self.sent = 0
        self.answer = b""
        self.status = 0
        self._blocks = iter(blocks)
        self._ended = False

    async def receive(self) -> Message:
        block = next(self._blocks, None)
        if block is not None:
            self.sent += len(block)
            return {"type": "http.request", "body": block, "more_body": True}
        if not self.left.is_set() and not self._ended:
            self._ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.answer)["error"])


def ask_gateway(client: Client) -> Client:
    gateway = Gateway((), GatewayOptions())
    asyncio.run(gateway.app()(client.scope, client.receive, client.send))
    return client


def test_a_body_over_16_mib_is_refused_after_the_client_has_sent_it() -> None:
    """Most clients read no answer while they send. 30 MB are read and dropped."""
    client = ask_gateway(Client("/tokenize", [b"x" * 1_000_000] * 30))

    assert (client.status, client.error["param"], client.error["code"]) == (413, "body", "body_too_large")
    assert client.error["message"] == "the body is over 16 MiB"
    assert client.sent == 30_000_000


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    client = ask_gateway(Client("/tokenize", iter(lambda: b"x" * 1_000_000, b"")))

    assert client.status == 413
    assert client.sent <= 5 * limits.BODY.most


def test_the_gateway_reads_a_body_of_exactly_16_mib() -> None:
    start, end = b'{"model":"nobody","prompt":"', b'"}'
    client = ask_gateway(Client("/tokenize", [start, b"x" * (limits.BODY.most - len(start) - len(end)), end]))

    assert (client.status, client.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("headers", "body", "status", "param"),
    [
        ([(b"x-long", b"x" * 66_000)], b"{}", 431, "header"),
        ([(b"x-%d" % i, b"") for i in range(12_000)], b"{}", 431, "header"),
        ([], b'{"model":"' + b"x" * 5_000 + b'"}', 400, "model"),
        ([], b'{"model":["tool"]}', 400, "model"),
        ([], b'["tool"]', 400, "body"),
        ([], b'{"model":"tool","metadata":' + b"[" * 200_000, 400, "metadata"),
    ],
)
def test_the_gateway_refuses_by_name(headers: list[tuple[bytes, bytes]], body: bytes, status: int, param: str) -> None:
    client = ask_gateway(Client("/v1/chat/completions", [body], headers))

    assert (client.status, client.error["param"]) == (status, param)


class HeldEngine:
    """An engine whose long texts wait for `free`, in a thread. Small texts are done at once."""

    info = EngineInfo("none", 100, 1, 1_000)

    def __init__(self) -> None:
        self.free = threading.Event()
        self.begun = threading.Semaphore(0)
        self.count = 0
        self.loop = threading.get_ident()

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        self._hold(len(text))
        return [len(text)]

    def detokenize(self, tokens: list[int]) -> str:
        self._hold(len(tokens))
        return str(len(tokens))

    def _hold(self, size: int) -> None:
        if size > off_loop.LARGE_TEXT:
            self.count += 1
            self.begun.release()
            assert threading.get_ident() != self.loop
            self.free.wait()


def worker_client(path: str, body: dict[str, Any]) -> Client:
    return Client(path, [json.dumps({"model": "tool"} | body).encode()], [(SECRET_HEADER.encode(), b"s")])


SMALL = {"/tokenize": {"prompt": "abc"}, "/detokenize": {"tokens": [1]}}
LARGE = {"/tokenize": {"prompt": "x" * 1_000_000}, "/detokenize": {"tokens": [1] * 200_000}}


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_a_worker_answers_others_while_it_works_on_a_large_text(path: str) -> None:
    async def run() -> tuple[Client, Client]:
        engine = HeldEngine()
        app = ModelServer(engine, "s").app()  # type: ignore[arg-type]
        large, small = worker_client(path, LARGE[path]), worker_client(path, SMALL[path])
        working = asyncio.create_task(app(large.scope, large.receive, large.send))
        await asyncio.to_thread(engine.begun.acquire)
        await app(small.scope, small.receive, small.send)
        assert not working.done()
        engine.free.set()
        await working
        return large, small

    large, small = asyncio.run(run())

    assert (large.status, small.status) == (200, 200)


def test_a_worker_answers_others_while_it_parses_a_large_body(monkeypatch: pytest.MonkeyPatch) -> None:
    free, begun = threading.Event(), threading.Event()

    def held(body: Any) -> tuple[str, bool]:
        if len(body["prompt"]) > off_loop.LARGE_BODY:
            begun.set()
            assert threading.current_thread() is not threading.main_thread()
            free.wait()
        return body["prompt"][:3], False

    async def run() -> tuple[Client, Client]:
        app = ModelServer(HeldEngine(), "s").app()  # type: ignore[arg-type]
        large, small = worker_client("/tokenize", LARGE["/tokenize"]), worker_client("/tokenize", SMALL["/tokenize"])
        working = asyncio.create_task(app(large.scope, large.receive, large.send))
        await asyncio.to_thread(begun.wait)
        await app(small.scope, small.receive, small.send)
        assert not working.done()
        free.set()
        await working
        return large, small

    monkeypatch.setattr(worker_app, "parse_tokenize", held)
    large, small = asyncio.run(run())

    assert (large.status, small.status) == (200, 200)


def test_large_texts_of_clients_that_left_are_not_worked_on() -> None:
    async def run() -> tuple[HeldEngine, list[Client]]:
        engine = HeldEngine()
        app = ModelServer(engine, "s").app()  # type: ignore[arg-type]
        clients = [worker_client("/detokenize", LARGE["/detokenize"]) for _ in range(6)]
        working = [asyncio.create_task(app(each.scope, each.receive, each.send)) for each in clients]
        for _ in range(2):  # both threads are busy, the other requests wait
            await asyncio.to_thread(engine.begun.acquire)
        for client in clients:
            client.left.set()
        await asyncio.gather(*working)
        engine.free.set()
        return engine, clients

    engine, clients = asyncio.run(run())

    assert [client.status for client in clients] == [CLIENT_LEFT] * 6
    assert engine.count == 2


def test_a_result_that_comes_too_late_is_dropped() -> None:
    """The vectors of embeddings: their texts are taken out of the engine's queue."""

    async def run() -> None:
        left, begun, free, dropped = asyncio.Event(), threading.Event(), threading.Event(), Future[str]()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        def work() -> str:
            begun.set()
            free.wait()
            return "late"

        waiting = asyncio.create_task(off_loop.tokenized(10**6, work, receive, dropped.set_result))
        await asyncio.to_thread(begun.wait)
        left.set()
        assert await waiting is None
        free.set()
        assert await asyncio.wrap_future(dropped) == "late"

    asyncio.run(run())

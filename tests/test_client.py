"""The client against a real server on loopback."""

import ast
import asyncio
import email.utils
import inspect
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai_stub import Answer, Refusal, minimal_instance, schema_of, serve

import tourkit.client
from tourkit.client import AsyncClient, Client, ClientError

pytestmark = pytest.mark.starts

SCHEMA = {
    "title": "a person!",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def echo(body: dict[str, Any], index: int) -> str:
    return str(body["messages"][-1]["content"])


def test_chat_gives_text_finish_reason_model_and_usage() -> None:
    with serve(lambda body, index: Answer("привет", "length")) as stub, Client(stub.url) as client:
        reply = client.chat([{"role": "user", "content": "hi"}], model="brain", temperature=0)

    assert (reply.text, reply.finish_reason, reply.model) == ("привет", "length", "brain")
    assert reply.usage["total_tokens"] == 5
    assert stub.bodies == [{"model": "brain", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}]


def test_a_string_is_one_user_message_and_none_leaves_a_parameter_out() -> None:
    with serve(echo) as stub, Client(stub.url) as client:
        reply = client.chat("как дела?", max_tokens=None, seed=0)

    assert reply.text == "как дела?"
    assert stub.bodies[0] == {
        "model": "tool",
        "messages": [{"role": "user", "content": "как дела?"}],
        "seed": 0,
    }


CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def test_a_reply_has_the_calls_of_tools_and_a_message_to_go_on_with() -> None:
    with (
        serve(lambda body, index: Answer("", "tool_calls", {"tool_calls": [CALL]})) as stub,
        Client(stub.url) as client,
    ):
        reply = client.chat("Is it raining in Oslo?", tools=[{"type": "function"}])

    [call] = reply.tool_calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "Oslo"})
    assert reply.message == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert call.result({"rain": True}) == {"role": "tool", "tool_call_id": "call_1", "content": '{"rain": true}'}
    assert stub.bodies[0]["tools"] == [{"type": "function"}]


def test_arguments_that_were_cut_off_are_an_error_with_their_text() -> None:
    cut = CALL | {"function": {"name": "get_weather", "arguments": '{"city": "Os'}}
    with (
        serve(lambda body, index: Answer("", "length", {"tool_calls": [cut]})) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match="raise max_tokens") as error,
    ):
        client.chat("Is it raining in Oslo?")

    assert (error.value.finish_reason, error.value.text) == ("length", '{"city": "Os')


TWO_CALLS = [CALL, CALL | {"id": "call_2", "function": {"name": "get_time", "arguments": "{}"}}]


def test_after_its_last_piece_a_stream_has_the_whole_answer_with_its_calls() -> None:
    answer = Answer("Я спрошу.", "tool_calls", {"tool_calls": TWO_CALLS})
    with serve(lambda body, index: answer) as stub, Client(stub.url) as client:
        whole, stream = client.chat("x"), client.stream("x")
        assert stream.reply is None
        pieces = list(stream)

    assert "".join(pieces) == "Я спрошу."
    assert stream.reply is not None
    assert stream.reply.tool_calls == whole.tool_calls
    assert [call.name for call in whole.tool_calls] == ["get_weather", "get_time"]
    assert (stream.reply.message, stream.reply.finish_reason) == (whole.message, "tool_calls")
    assert stream.reply.usage == {"total_tokens": 5}


def test_calls_whose_arguments_were_cut_off_are_an_error_at_the_end_of_a_stream() -> None:
    cut = CALL | {"function": {"name": "get_weather", "arguments": '{"city": "Os'}}
    with (
        serve(lambda body, index: Answer("Well.", "length", {"tool_calls": [cut]})) as stub,
        Client(stub.url) as client,
    ):
        stream = client.stream("x")
        assert next(stream) == "Well."
        with pytest.raises(ClientError, match="raise max_tokens"):
            next(stream)
        assert stream.reply is None


def test_answers_by_a_deadline_have_their_calls() -> None:
    answer = Answer("", "tool_calls", {"tool_calls": TWO_CALLS})
    with (
        serve(lambda body, index: answer) as stub,
        Client(stub.url, ends=time.monotonic() + 3600) as client,
    ):
        replies = client.sample("x", 2)
        whole = client.chat("x")

    assert stub.bodies[0]["stream"] is True
    assert [reply.tool_calls for reply in replies] == [whole.tool_calls] * 2


def test_half_a_surrogate_pair_survives_the_trip() -> None:
    """The client must send damaged text from a bad file. The server decides whether to refuse it."""
    with serve(lambda body, index: "ok") as stub, Client(stub.url) as client:
        client.chat("a\ud800b")

    assert stub.texts() == ["a\ud800b"]


def test_one_connection_serves_requests_in_a_row() -> None:
    with serve(echo) as stub, Client(stub.url) as client:
        for _ in range(3):
            client.chat("x")
        list(client.stream("one two"))
        client.chat("x")

    assert len(stub.ports) == 5
    assert len(set(stub.ports)) == 1


def test_threads_at_work_hold_connections_of_their_own() -> None:
    together = threading.Barrier(4)

    def answer(body: dict[str, Any], index: int) -> str:
        together.wait(timeout=30)
        return echo(body, index)

    with serve(answer) as stub, Client(stub.url) as client, ThreadPoolExecutor(4) as pool:
        texts = [f"№ {i}" for i in range(4)]
        got = [reply.text for reply in pool.map(client.chat, texts)]

    assert got == texts
    assert len(set(stub.ports)) == 4


def test_a_connection_that_went_stale_is_replaced() -> None:
    with serve(echo) as stub, Client(stub.url) as client:
        client.chat("a")
        stub.hang_up()
        assert client.chat("b").text == "b"

    assert len(set(stub.ports)) == 2


def test_a_fresh_connection_that_breaks_is_an_error_not_a_retry() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = []

        def accept_and_close() -> None:
            connection, _ = listener.accept()
            taken.append(connection.recv(1))
            connection.close()

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ClientError, match="ended its answer early"):
            client.chat("x")
        thread.join()

    assert taken == [b"P"]


def test_a_refused_connection_says_how_to_start_a_server() -> None:
    with socket.socket() as unused:  # bound but not listening, so that no other process gets this port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ClientError) as caught:
            client.chat("x")

    assert str(caught.value) == f"no tourkit server at {url}: start `tourkit serve --bundle DIR --offline`"
    assert caught.value.status is None


def test_a_silent_server_is_a_timeout_with_a_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, timeout=0.05) as client, pytest.raises(ClientError, match=r"no answer .* in 0.05 s"):
            client.chat("x")


def test_the_servers_error_keeps_status_message_param_and_code() -> None:
    refusal = Refusal(400, "temperature is 9,\n at most 2", param="temperature", code="bad_value")
    with (
        serve(lambda body, index: refusal) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.chat("x", temperature=9)

    error = caught.value
    assert (error.status, error.message, error.param, error.code) == (
        400,
        "temperature is 9, at most 2",
        "temperature",
        "bad_value",
    )
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    ("raw", "said"),
    [(b"<h1>Bad\n gateway</h1>", "Bad"), (b"", "no details"), (b'{"error": "no"}', "no"), (b"[1]", "[1]")],
)
def test_an_error_without_the_envelope_is_still_one_line(raw: bytes, said: str) -> None:
    with (
        serve(lambda body, index: Refusal(502, raw=raw)) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.chat("x")

    assert caught.value.status == 502
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    def answer(body: dict[str, Any], index: int) -> str | Refusal:
        if len(stub.bodies) < 3:
            return Refusal(status, "busy", headers={"Retry-After": "0"})
        return "done"

    with serve(answer) as stub, Client(stub.url) as client:
        assert client.chat("x").text == "done"

    assert len(stub.bodies) == 3


def test_patience_ends() -> None:
    """The loop ends whatever the server answers: a wait has a minimum, and all waits together have a maximum."""
    refusal = Refusal(429, "the queue is full", headers={"Retry-After": "0"})
    with (
        serve(lambda body, index: refusal) as stub,
        Client(stub.url, patience=0.2) as client,
        pytest.raises(ClientError, match="the queue is full") as caught,
    ):
        client.chat("x")

    assert caught.value.status == 429
    assert 2 <= len(stub.bodies) <= 5


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (None, 1.0, 1.25),
        ("3", 3.0, 3.75),
        ("-5", 0.05, 0.07),
        ("nan", 1.0, 1.25),
        ("1e9", 20.0, 25.0),
        ("soon", 1.0, 1.25),
        (email.utils.formatdate(0, usegmt=True), 0.05, 0.07),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, low: float, high: float) -> None:
    assert low <= tourkit.client._wait(header) <= high


def test_structured_sends_a_strict_schema_and_gives_parsed_json() -> None:
    def answer(body: dict[str, Any], index: int) -> str:
        return json.dumps(minimal_instance(schema_of(body)))

    with serve(answer) as stub, Client(stub.url) as client:
        assert client.structured("who?", SCHEMA, temperature=0) == {"name": "", "age": 0}

    assert stub.bodies[0]["response_format"]["json_schema"]["name"] == "a_person_"
    assert stub.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_an_answer_that_was_cut_off_names_its_finish_reason() -> None:
    with (
        serve(lambda body, index: Answer('{"name": "An', "length")) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match=r"finish_reason length.*raise max_tokens") as caught,
    ):
        client.structured("who?", SCHEMA)

    assert caught.value.finish_reason == "length"
    assert caught.value.text == '{"name": "An'


@pytest.mark.parametrize("text", ["I cannot", '{"a": NaN}', "[" * 100_000, ""])
def test_an_answer_that_is_no_json_is_a_client_error(text: str) -> None:
    with (
        serve(lambda body, index: text) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match="not JSON") as caught,
    ):
        client.structured("who?", SCHEMA)

    assert caught.value.finish_reason == "stop"


def test_sample_is_one_call_and_keeps_the_order_of_the_choices() -> None:
    with serve(lambda body, index: f"answer {index}") as stub, Client(stub.url) as client:
        replies = client.sample("x", 4, schema=SCHEMA, temperature=0.7, seed=5)

    assert [reply.text for reply in replies] == [f"answer {i}" for i in range(4)]
    assert [(body["n"], body["seed"]) for body in stub.bodies] == [(4, 5)]
    assert schema_of(stub.bodies[0]) == SCHEMA


def test_a_server_that_ignores_n_is_asked_for_the_rest_with_other_seeds() -> None:
    def answer(body: dict[str, Any], index: int) -> str:
        return str(body["seed"])

    with serve(answer, ignore_n=True) as stub, Client(stub.url) as client:
        replies = client.sample("x", 3, seed=10)

    assert [reply.text for reply in replies] == ["10", "11", "12"]
    assert [body["n"] for body in stub.bodies] == [3, 2, 1]


def test_at_the_deadline_sample_gives_the_answers_that_are_whole() -> None:
    let_go = threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        if index == 2:
            let_go.wait(timeout=60)
        return f"answer {index}"

    with serve(answer) as stub, Client(stub.url, ends=time.monotonic() + 2) as client:
        replies = client.sample("x", 4, seed=5)
        let_go.set()
        later = client.sample("x", 4)

    assert [(reply.text, reply.finish_reason) for reply in replies] == [("answer 0", "stop"), ("answer 1", "stop")]
    assert later == []
    assert len(stub.bodies) == 1


def test_before_the_deadline_sample_gives_every_answer_and_raises_what_goes_wrong() -> None:
    answers: dict[int, str | Refusal] = {0: "one", 1: "two", 2: Refusal(400, "no such thing")}
    with (
        serve(lambda body, index: answers[2 if body["n"] == 1 else index]) as stub,
        Client(stub.url, ends=time.monotonic() + 3600) as client,
    ):
        replies = client.sample("x", 2)
        with pytest.raises(ClientError, match="no such thing"):
            client.sample("x", 1)

    assert [reply.text for reply in replies] == ["one", "two"]


def test_the_deadline_ends_the_wait_for_a_busy_server() -> None:
    busy = Refusal(429, headers={"Retry-After": "20"})
    with serve(lambda body, index: busy) as stub, Client(stub.url, ends=time.monotonic() + 0.5) as client:
        assert client.sample("x", 2) == []


def test_a_stream_gives_the_pieces_of_the_answer() -> None:
    with serve(lambda body, index: "раз два  три\n") as stub, Client(stub.url) as client:
        pieces = list(client.stream("count"))

    assert len(pieces) > 1
    assert "".join(pieces) == "раз два  три\n"
    assert stub.bodies[0]["stream"] is True


def test_a_stream_left_early_hangs_up() -> None:
    """The server must notice it, or the slot stays taken until the answer is complete."""
    with serve(lambda body, index: "word " * 200_000) as stub, Client(stub.url) as client:
        pieces = client.stream("x")
        assert next(pieces) == "word"
        pieces.close()  # type: ignore[attr-defined]
        assert stub.gone.wait(timeout=30)
        assert client.chat("x").finish_reason == "stop"


def test_a_stream_that_breaks_off_is_an_error_after_its_pieces() -> None:
    with serve(lambda body, index: "a b c", cut_stream_after=2) as stub, Client(stub.url) as client:
        got: list[str] = []
        with pytest.raises(ClientError, match="ended early"):
            got.extend(client.stream("x"))

    assert got == ["a", " b"]


def test_a_refused_stream_raises_the_servers_error() -> None:
    with (
        serve(lambda body, index: Refusal(404, "no such model")) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match="no such model"),
    ):
        list(client.stream("x"))


def test_closing_gives_up_the_requests_under_way() -> None:
    arrived, let_go = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        arrived.set()
        let_go.wait(timeout=30)
        return "late"

    with serve(answer) as stub, ThreadPoolExecutor(1) as pool:
        client = Client(stub.url)
        waiting = pool.submit(client.chat, "x")
        assert arrived.wait(timeout=30)
        client.close()
        with pytest.raises(ClientError, match="cancelled"):
            waiting.result(timeout=30)
        let_go.set()
        with pytest.raises(ClientError, match="closed"):
            client.chat("y")

    assert stub.texts() == ["x"]


def test_a_clone_has_the_settings_and_a_life_of_its_own() -> None:
    with serve(echo) as stub:
        client = Client(stub.url, model="brain", api_key="k")
        with client.clone() as twin:
            client.close()
            twin.chat("x")

    assert stub.bodies[0]["model"] == "brain"
    assert stub.headers[0]["Authorization"] == "Bearer k"


def test_url_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(echo) as stub:
        monkeypatch.setenv("TOURKIT_URL", stub.url + "/v1/")
        monkeypatch.setenv("TOURKIT_API_KEY", "secret")
        with Client() as client:
            client.chat("x")

    assert stub.headers[0]["Authorization"] == "Bearer secret"
    assert stub.headers[0]["path"] == "/v1/chat/completions"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is set on the machine must neither see nor stop a request to loopback."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serve(echo) as stub, Client(stub.url) as client:
        assert client.chat("x").text == "x"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a/?x"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ClientError, match="is not a server address"):
        Client(url)


def test_a_key_that_fits_no_header_is_refused_without_showing_it() -> None:
    with pytest.raises(ClientError) as caught:
        Client(api_key="top\nsecret")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [b"[]", b'{"choices": []}', b'{"choices": [{"text": "old"}]}', b"x"])
def test_a_200_that_is_no_chat_completion_is_a_client_error(text: bytes) -> None:
    with (
        serve(lambda body, index: Refusal(200, raw=text)) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match=r"no chat completion|without choices"),
    ):
        client.chat("x")


def test_the_client_imports_the_standard_library_alone() -> None:
    """It is copied as one file into other people's solutions."""
    tree = ast.parse(Path(tourkit.client.__file__).read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= sys.stdlib_module_names


# --- embeddings, rankings, choices ------------------------------------------------------------------------------------


def raw(**body: Any) -> Refusal:
    """An answer that is no chat completion."""
    return Refusal(200, raw=json.dumps(body).encode())


def test_a_choice_is_sent_as_such_and_comes_back_as_text() -> None:
    with serve(lambda body, index: body["choice"][1]) as stub, Client(stub.url) as client:
        assert client.choice("?", ("yes", "no")) == "no"

    assert stub.bodies[0]["choice"] == ["yes", "no"]


def test_a_choice_that_is_cut_off_is_an_error_with_its_text() -> None:
    with (
        serve(lambda body, index: Answer("ye", "length")) as stub,
        Client(stub.url) as client,
        pytest.raises(ClientError, match="none of the options") as error,
    ):
        client.choice("?", ("yes", "no"))

    assert (error.value.finish_reason, error.value.text) == ("length", "ye")


def test_embeddings_come_in_the_order_of_the_texts() -> None:
    found = raw(data=[{"index": 1, "embedding": [3, 4]}, {"index": 0, "embedding": [1, 2.5]}])
    with serve(lambda body, index: found) as stub, Client(stub.url) as client:
        assert client.embed(["a", "b"]) == [[1, 2.5], [3, 4]]
        assert client.embed([]) == []

    assert stub.bodies == [{"model": "embed", "input": ["a", "b"]}]
    assert stub.headers[0]["path"] == "/v1/embeddings"


def test_a_ranking_has_the_best_document_first() -> None:
    found = raw(results=[{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.9}])
    with serve(lambda body, index: found) as stub, Client(stub.url) as client:
        ranked = client.rerank("q", ["a", "b"], top_n=2)

    assert [(each.index, each.score, each.document) for each in ranked] == [(1, 0.9, "b"), (0, 0.1, "a")]
    assert stub.bodies == [{"model": "rerank", "query": "q", "documents": ["a", "b"], "top_n": 2}]
    assert stub.headers[0]["path"] == "/v1/rerank"


@pytest.mark.parametrize(
    "body", [{}, {"data": [{"embedding": [1]}], "results": [{"index": 5, "relevance_score": 1}]}, {"data": 5}]
)
def test_what_is_no_embedding_and_no_ranking_is_an_error(body: dict[str, Any]) -> None:
    with serve(lambda sent, index: raw(**body)) as stub, Client(stub.url) as client:
        with pytest.raises(ClientError, match="returned"):
            client.embed(["a", "b"])
        with pytest.raises(ClientError, match="returned no ranking"):
            client.rerank("q", ["a"])


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_tasks_ask_at_once_and_connections_are_kept() -> None:
    together = threading.Barrier(4)

    def answer(body: dict[str, Any], index: int) -> str:
        together.wait(timeout=30)
        return echo(body, index)

    async def run(url: str) -> list[str]:
        async with AsyncClient(Client(url)) as client:
            replies = [await asyncio.gather(*(client.chat(f"{i}") for i in range(4))) for _ in range(2)]
            return [reply.text for each in replies for reply in each]

    with serve(answer) as stub:
        assert asyncio.run(run(stub.url)) == ["0", "1", "2", "3"] * 2

    assert len(set(stub.ports)) == 4


def test_a_task_streams_and_a_stream_that_is_left_hangs_up() -> None:
    async def run(url: str) -> tuple[str, str]:
        async with AsyncClient(Client(url)) as client:
            stream = client.stream("one two")
            whole = "".join([piece async for piece in stream])
            assert (stream.reply and stream.reply.text) == whole
            pieces = client.stream("x " * 100_000)
            first = await anext(pieces)
            await pieces.aclose()
            return whole, first

    with serve(echo) as stub:
        assert asyncio.run(run(stub.url)) == ("one two", "x")
        assert stub.gone.wait(timeout=30)


def test_errors_reach_the_task_and_a_closed_client_says_so() -> None:
    async def run(url: str) -> list[str]:
        client = AsyncClient(Client(url))
        said = []
        for _ in range(2):
            try:
                await client.chat("x")
            except ClientError as error:
                said.append(error.message)
            await client.close()
        return said

    with serve(lambda body, index: Refusal(400, "no")) as stub:
        assert asyncio.run(run(stub.url)) == ["no", f"the client of {stub.url} is closed: make a new one"]


def test_the_asyncio_client_has_every_method_of_the_client_with_the_same_arguments() -> None:
    own = {name for name in vars(Client) if not name.startswith("_")} - {"clone", "settings", "is_closed"}

    assert own <= vars(AsyncClient).keys()
    for name in own:
        mine, theirs = (inspect.signature(getattr(each, name)).parameters for each in (AsyncClient, Client))
        assert list(mine.values()) == list(theirs.values())

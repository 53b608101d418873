"""Conversations of the Responses API that the gateway keeps: who may read them, for how long, and what goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asgi import Answer
from near_gateway import NearGateway
from starlette.types import Message
from thinking_runner import TURN, Script, ThinkingRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.errors import EngineDead, RequestError
from tourkit.server.api.dialects import RESPONSES
from tourkit.server.api.limits import BODY
from tourkit.server.api.replies import error_body
from tourkit.server.gateway.conversations import Conversations
from tourkit.server.gateway.relay import whole_pieces
from tourkit.server.gateway.request_log import RequestLog
from tourkit.server.gateway.responses import Tapped

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def engine_in_process() -> Iterator[RunnerEngine]:
    engine = RunnerEngine(ThinkingRunner("none", Script("Yes.", "Yes.", TURN)), "stand-in")
    yield engine
    engine.close()


@pytest.fixture
def near(engine_in_process: RunnerEngine) -> NearGateway:
    return NearGateway(engine_in_process, "tool", "brain")


def respond(near: NearGateway, given: Any, *, key: str = "", **fields: Any) -> Answer:
    return near.post(PATH, {"model": "tool", "input": given} | fields, key=key)


def response(near: NearGateway, given: Any, *, key: str = "", **fields: Any) -> dict[str, Any]:
    answer = respond(near, given, key=key, **fields)
    assert answer.status == 200, answer.raw
    return answer.events[-1]["response"] if fields.get("stream") else answer.body


def texts(near: NearGateway) -> list[str]:
    """Return the texts of the items that the worker got last."""
    given = json.loads(near.relay.asked[-1].body)["input"]
    items = [{"content": given}] if isinstance(given, str) else given
    contents = [item["content"] for item in items]
    return [content if isinstance(content, str) else content[0]["text"] for content in contents]


def error(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.body["error"]["code"], answer.body["error"]["param"]


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_goes_on_where_an_earlier_one_ended(near: NearGateway, stream: bool) -> None:
    first = response(near, "One?", stream=stream)
    second = response(near, [{"role": "user", "content": "Two?"}], previous_response_id=first["id"], stream=stream)
    third = response(near, "Three?", previous_response_id=second["id"], stream=stream)

    assert texts(near) == ["One?", "Yes.", "Two?", "Yes.", "Three?"]
    assert third["previous_response_id"] == second["id"]
    assert third["usage"]["input_tokens"] > second["usage"]["input_tokens"]


def test_two_requests_may_go_on_from_the_same_response(near: NearGateway) -> None:
    first = response(near, "One?")
    response(near, "Two?", previous_response_id=first["id"])
    response(near, "Other?", previous_response_id=first["id"])

    assert texts(near) == ["One?", "Yes.", "Other?"]


def test_the_instructions_of_an_earlier_request_are_not_carried_over(near: NearGateway) -> None:
    first = response(near, "One?", instructions="Be kind.")
    second = response(near, "Two?", previous_response_id=first["id"])

    assert texts(near) == ["One?", "Yes.", "Two?"]
    assert second["instructions"] is None


def test_a_conversation_may_go_on_with_another_model(near: NearGateway) -> None:
    first = response(near, "One?")
    second = near.post(PATH, {"model": "brain", "input": "Two?", "previous_response_id": first["id"]}).body

    assert second["model"] == "brain"
    assert texts(near) == ["One?", "Yes.", "Two?"]


def test_an_item_can_be_referred_to(near: NearGateway) -> None:
    item = response(near, "One?")["output"][0]
    response(
        near, [{"role": "user", "content": "Zero?"}, {"type": "item_reference", "id": item["id"]}, {"id": item["id"]}]
    )

    assert texts(near) == ["Zero?", "Yes.", "Yes."]


def test_an_error_in_a_conversation_names_the_item_of_the_request(near: NearGateway) -> None:
    first = response(near, "One?")
    answer = respond(near, [{"role": "nobody", "content": "Two?"}], previous_response_id=first["id"])

    assert answer.body["error"]["param"] == "input[0].role"


@pytest.mark.parametrize("given", [None, 5, []])
def test_a_wrong_input_is_refused_in_a_conversation_too(near: NearGateway, given: Any) -> None:
    first = response(near, "One?")

    assert respond(near, given, previous_response_id=first["id"]).body["error"]["param"] == "input"


def test_a_request_that_refers_to_nothing_reaches_the_worker_byte_for_byte(near: NearGateway) -> None:
    body = b'{"model": "tool",  "input": "One?"}'
    near.post(PATH, body)

    assert near.relay.asked[-1].body == body


# --- what is not stored -----------------------------------------------------------------------------------------------


def test_a_response_that_is_not_stored_here_is_404(near: NearGateway) -> None:
    answer = respond(near, "Two?", previous_response_id="resp_nobody")

    assert error(answer) == (404, "previous_response_not_found", "previous_response_id")
    assert error(near.get(f"{PATH}/resp_nobody")) == (404, "response_not_found", "response_id")
    assert error(near.get(f"{PATH}/resp_nobody/input_items")) == (404, "response_not_found", "response_id")
    assert error(near.delete(f"{PATH}/resp_nobody")) == (404, "response_not_found", "response_id")
    assert error(respond(near, [{"type": "item_reference", "id": "msg_1"}])) == (404, "item_not_found", "input[0]")
    assert near.relay.asked == []


def test_store_false_stores_nothing_and_may_go_on(near: NearGateway) -> None:
    first = response(near, "One?")
    second = response(near, "Two?", previous_response_id=first["id"], store=False)

    assert (second["store"], texts(near)) == (False, ["One?", "Yes.", "Two?"])
    assert respond(near, "Three?", previous_response_id=second["id"]).status == 404
    assert near.get(f"{PATH}/{second['id']}").status == 404


def test_a_conversation_is_another_clients_for_everybody_else(near: NearGateway) -> None:
    mine = response(near, "My secret", key="mine")

    assert respond(near, "What?", previous_response_id=mine["id"], key="other").status == 404
    assert respond(near, [{"id": mine["output"][0]["id"]}], key="other").status == 404
    for path in (f"{PATH}/{mine['id']}", f"{PATH}/{mine['id']}/input_items"):
        assert near.get(path, key="other").status == 404
    assert near.delete(f"{PATH}/{mine['id']}", key="other").status == 404
    assert near.get(f"{PATH}/{mine['id']}", key="mine").status == 200


# --- stored responses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_is_the_one_that_was_sent(near: NearGateway, stream: bool) -> None:
    sent = response(near, "One?", stream=stream, metadata={"a": "b"})

    assert near.get(f"{PATH}/{sent['id']}").body == sent


def test_a_stored_response_cannot_be_streamed_again(near: NearGateway) -> None:
    sent = response(near, "One?")

    assert error(near.get(f"{PATH}/{sent['id']}?stream=true")) == (400, "unsupported_parameter", "stream")


def test_a_deleted_response_is_gone_and_those_after_it_keep_its_items(near: NearGateway) -> None:
    first = response(near, "One?")
    second = response(near, "Two?", previous_response_id=first["id"])

    assert near.delete(f"{PATH}/{first['id']}").body == {"id": first["id"], "object": "response", "deleted": True}
    assert near.get(f"{PATH}/{first['id']}").status == 404
    response(near, "Three?", previous_response_id=second["id"])
    assert texts(near) == ["One?", "Yes.", "Two?", "Yes.", "Three?"]


def items(near: NearGateway, id_: str, query: str = "") -> dict[str, Any]:
    answer = near.get(f"{PATH}/{id_}/input_items{query}")
    assert answer.status == 200, answer.raw
    return answer.body


def test_the_input_items_are_all_that_the_model_got_the_last_one_first(near: NearGateway) -> None:
    first = response(near, "One?")
    second = response(near, [{"role": "user", "content": "Two?"}], previous_response_id=first["id"])
    page = items(near, second["id"])
    shown = [
        (item["role"], item["status"], item["content"][0]["type"], item["content"][0]["text"]) for item in page["data"]
    ]

    assert shown == [
        ("user", "completed", "input_text", "Two?"),
        ("assistant", "completed", "output_text", "Yes."),
        ("user", "completed", "input_text", "One?"),
    ]
    assert (page["object"], page["has_more"]) == ("list", False)
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert len({item["id"] for item in page["data"]}) == 3


def test_input_items_come_in_pages(near: NearGateway) -> None:
    id_ = response(near, [{"role": "user", "content": str(i)} for i in range(25)])["id"]
    first = items(near, id_)
    second = items(near, id_, f"?after={first['last_id']}&limit=3")
    third = items(near, id_, f"?after={second['last_id']}&limit=100")
    rising = items(near, id_, "?order=asc&limit=2")

    assert [item["content"][0]["text"] for page in (first, second, third) for item in page["data"]] == [
        str(i) for i in reversed(range(25))
    ]
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    assert [item["content"][0]["text"] for item in rising["data"]] == ["0", "1"]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
def test_a_wrong_page_is_refused(near: NearGateway, query: str, param: str) -> None:
    id_ = response(near, "One?")["id"]
    answer = near.get(f"{PATH}/{id_}/input_items?{query}")

    assert (answer.status, answer.body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/responses", "OPTIONS, POST"),
        ("/responses/resp_1", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/responses/resp_1/input_items/", "GET, HEAD, OPTIONS"),
    ],
)
def test_the_routes_have_their_methods(near: NearGateway, path: str, allowed: str) -> None:
    answer = asyncio.run(near.send(path, method="PUT"))

    assert (answer.status, answer.headers["allow"]) == (405, allowed)


# --- memory -----------------------------------------------------------------------------------------------------------


class Kept:
    """Stored responses without a gateway: each answer is one message."""

    def __init__(self, most: int) -> None:
        self.conversations = Conversations(most)

    def say(self, id_: str, text: str, previous: str | None = None) -> None:
        asyncio.run(self._say(id_, text, previous))

    async def _say(self, id_: str, text: str, previous: str | None) -> None:
        body = json.dumps({"model": "m", "input": text, "previous_response_id": previous}).encode()
        async with self.conversations.begin(body, "client") as begun:
            answer = {"id": f"msg_{id_}", "type": "message", "content": [{"type": "output_text", "text": "Yes."}]}
            self.conversations.end(begun, {"id": id_, "status": "completed", "output": [answer]}, "client")

    def has(self, id_: str) -> bool:
        try:
            self.conversations.find(id_, "client")
        except RequestError:
            return False
        return True


def test_the_responses_that_were_not_used_for_the_longest_time_go_first() -> None:
    kept = Kept(16_000)
    for id_ in ("a", "b", "c"):
        kept.say(id_, "x" * 3_000)
    assert [kept.has(id_) for id_ in ("b", "c", "a")] == [True, True, True]  # a was used last

    kept.say("d", "x" * 3_000)

    assert [kept.has(id_) for id_ in "abcd"] == [True, False, True, True]
    assert kept.conversations.size <= 16_000


def test_the_items_of_a_conversation_stay_while_a_later_response_needs_them() -> None:
    kept = Kept(1 << 20)
    kept.say("a", "x" * 3_000)
    whole = kept.conversations.size
    kept.say("b", "y", previous="a")
    kept.conversations.delete("a", "client")

    assert len(kept.conversations.find("b", "client").asked()) == 3
    assert kept.conversations.size > whole

    kept.conversations.delete("b", "client")

    assert kept.conversations.size == 0


def test_nothing_is_left_of_a_response_that_is_larger_than_the_memory() -> None:
    kept = Kept(10_000)
    kept.say("a", "x" * 3_000)
    kept.say("b", "x" * 10_000, previous="a")

    assert (kept.has("a"), kept.has("b"), kept.conversations.size) == (False, False, 0)


def test_a_response_that_is_deleted_while_a_request_goes_on_from_it_is_counted_once() -> None:
    kept = Kept(1 << 20)
    kept.say("a", "x")

    async def go_on() -> None:
        async with kept.conversations.begin(b'{"input": "y", "previous_response_id": "a"}', "client") as begun:
            kept.conversations.delete("a", "client")
            kept.conversations.end(begun, {"id": "b", "status": "completed", "output": []}, "client")

    asyncio.run(go_on())
    assert len(kept.conversations.find("b", "client").asked()) == 3
    kept.conversations.delete("b", "client")
    assert kept.conversations.size == 0


def test_a_conversation_over_the_limit_of_a_body_is_refused(near: NearGateway) -> None:
    kept = Kept(1 << 30)
    kept.say("a", "x" * (BODY.most - 1_000))

    with pytest.raises(RequestError) as caught:
        kept.say("b", "x" * 2_000, previous="a")

    assert (caught.value.status, caught.value.code) == (413, "body_too_large")


def test_a_response_that_failed_is_not_stored() -> None:
    kept = Kept(1 << 20)

    async def fail() -> None:
        async with kept.conversations.begin(b'{"input": "x"}', "client") as begun:
            kept.conversations.end(begun, {"id": "a", "status": "failed", "output": []}, "client")

    asyncio.run(fail())
    assert not kept.has("a")


# --- the answer on its way --------------------------------------------------------------------------------------------


def tapped(
    *blocks: bytes, kind: bytes = b"text/event-stream; charset=utf-8", status: int = 200, failure: bytes = b""
) -> tuple[bytes, list[Any]]:
    """Return what the client gets of an answer that comes in blocks, and the responses that are found in it.

    `failure`: what the gateway sends after a worker that dies behind the blocks; empty if it does not die.
    """
    sent: list[Message] = []
    found: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def worker() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block
        if failure:
            raise ConnectionResetError

    async def run() -> None:
        tap = Tapped(send, found.append)
        await tap({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        try:
            async for piece in whole_pieces(worker(), RESPONSES.ends):
                await tap({"type": "http.response.body", "body": piece, "more_body": True})
        except ConnectionResetError:
            assert failure
        await tap({"type": "http.response.body", "body": failure, "more_body": False})

    asyncio.run(run())
    return b"".join(message.get("body", b"") for message in sent), found


CREATED = b'event: response.created\ndata: {"sequence_number":0,"response":{}}\n\n'
COMPLETED = b'event: response.completed\ndata: {"sequence_number":1,"response":{"id":"a"}}\n\n'


def test_the_response_is_found_however_the_stream_is_cut_into_blocks() -> None:
    error = b'event: error\ndata: {"sequence_number":2}\n\n'
    stream = b": waiting\n\n" + CREATED + COMPLETED + error + b"data: [DONE]\n\n"

    for size in range(1, len(stream) + 1):
        blocks = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert tapped(*blocks) == (stream, [{"id": "a"}])


def test_an_answer_that_is_no_success_is_no_response() -> None:
    assert tapped(b'{"error": {}}', kind=b"application/json", status=400) == (b'{"error": {}}', [])


def test_an_error_of_the_gateway_in_a_stream_has_the_next_number() -> None:
    failure = RESPONSES.failure(*error_body(EngineDead("the worker went away")))
    raw, found = tapped(b": waiting\n\n", CREATED, CREATED, failure)

    *_, last = Answer(raw=raw).events
    assert (last["type"], last["sequence_number"], last["message"]) == ("error", 2, "the worker went away")
    assert found == []


def test_a_half_event_of_a_worker_that_died_is_left_out() -> None:
    failure = RESPONSES.failure(*error_body(EngineDead("the worker went away")))
    raw, _ = tapped(CREATED + COMPLETED[:30], failure=failure)

    assert [event["sequence_number"] for event in Answer(raw=raw).events] == [0, 1]
    assert raw.startswith(CREATED + b"event: error")


def test_the_log_has_the_tokens_of_a_response(near: NearGateway) -> None:
    lines: list[str] = []
    near.app = RequestLog(near.app, lines.append)
    used = response(near, "One?", tools=[{"type": "function", "name": "a"}], tool_choice="none")["usage"]

    assert f"{used['input_tokens']}+{used['output_tokens']} tokens" in lines[0]

"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgi import Answer, ask
from thinking_runner import Script, ThinkingRunner
from tool_runner import FAMILIES, ORDER, ToolRunner, stand_ins, worker_answer

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.defaults import RoleDefaults
from tourkit.errors import EngineError, RequestError
from tourkit.generation import Delta
from tourkit.server.api.dialects import MESSAGES
from tourkit.server.api.message_fields import parse_count, parse_message
from tourkit.server.api.message_replies import MessageReply
from tourkit.server.api.replies import Usage
from tourkit.server.api.route_fields import ROUTES, Use
from tourkit.server.gateway.access import AccessRules
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.comments import Commented

BODY: dict[str, Any] = {"model": "tool", "max_tokens": 200, "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"name": name, "description": "Of a city.", "input_schema": SCHEMA} for name in ("get_weather", "get_time")]


@pytest.fixture(scope="module")
def engines() -> Iterator[Callable[[str], RunnerEngine]]:
    """Return a stand-in for a model: that of a family, one that writes its thinking and "Yes.", or a small one."""

    def made(name: str) -> ThinkingRunner:
        script = Script("<think>\nHm.\n</think>\n\nYes.", "Yes.", "</think>")
        runner = ThinkingRunner("think", script) if name == "thinks" else ToolRunner(name.removeprefix("small "))
        runner.context = 150 if name.startswith("small ") else runner.context
        return runner

    yield from stand_ins(made)


Engines = Callable[[str], RunnerEngine]


def post(engine: RunnerEngine, body: dict[str, Any], path: str = "/v1/messages", **how: Any) -> Answer:
    return worker_answer(engine, path, body, **how)


def order(text: str, **fields: Any) -> dict[str, Any]:
    """Return a body that lets a stand-in of a family write a text."""
    return (
        BODY | {"messages": [{"role": "user", "content": ORDER + text}], "temperature": 0, "max_tokens": 400} | fields
    )


def whole(engine: RunnerEngine, body: dict[str, Any]) -> dict[str, Any]:
    answer = post(engine, body)
    assert answer.status == 200, answer.raw
    message: dict[str, Any] = answer.body
    return message


def streamed(engine: RunnerEngine, body: dict[str, Any]) -> dict[str, Any]:
    """Return the message that the events of a stream make, as Anthropic's clients put it together."""
    answer = post(engine, body | {"stream": True})
    names = [line[7:] for line in answer.raw.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in answer.events]
    return added_up(answer.events)


def added_up(events: list[Any]) -> dict[str, Any]:
    """Put a message together, and check that the events come in Anthropic's order."""
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    message: dict[str, Any] = events[0]["message"]
    blocks, parts, is_open = message["content"], dict[int, str](), False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            assert is_open
            _, text = (value for value in event["delta"].values())
            kind = event["delta"]["type"]
            key = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(kind)
            if key is None:
                parts[event["index"]] = parts.get(event["index"], "") + text
            else:
                blocks[event["index"]][key] += text
        else:
            assert event["type"] == "content_block_stop"
        is_open = event["type"] != "content_block_stop"
    assert not is_open
    for index, text in parts.items():
        blocks[index]["input"] = json.loads(text)
    return message | events[-2]["delta"] | {"usage": events[-2]["usage"]}


BOTH = pytest.mark.parametrize("answer", [whole, streamed], ids=["whole", "streamed"])
Ask = Callable[[RunnerEngine, dict[str, Any]], dict[str, Any]]


# --- answers ----------------------------------------------------------------------------------------------------------


@BOTH
def test_an_answer_is_a_message_with_a_block_of_text(engines: Engines, answer: Ask) -> None:
    found = answer(engines("generic"), order("Hello, мир"))

    assert found["id"].startswith("msg_")
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "tool")
    assert found["content"] == [{"type": "text", "text": "Hello, мир"}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)


@BOTH
def test_tokens_from_the_cache_are_not_input_tokens(engines: Engines, answer: Ask) -> None:
    body = order("Hello" + "!" * 50)
    count = post(engines("generic"), body, "/v1/messages/count_tokens").body
    answer(engines("generic"), body)

    usage = answer(engines("generic"), body)["usage"]

    assert usage["cache_read_input_tokens"] > 50
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count["input_tokens"]
    assert usage["output_tokens"] == len("Hello") + 50


@BOTH
def test_a_stop_sequence_ends_the_answer_and_is_named(engines: Engines, answer: Ask) -> None:
    found = answer(engines("generic"), order("one END two", stop_sequences=["two", "END"]))

    assert found["content"] == [{"type": "text", "text": "one "}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("stop_sequence", "END")


@BOTH
def test_max_tokens_ends_the_answer(engines: Engines, answer: Ask) -> None:
    found = answer(engines("generic"), order("a" * 50, max_tokens=9))

    assert (found["content"][0]["text"], found["stop_reason"]) == ("a" * 9, "max_tokens")


@BOTH
def test_more_max_tokens_than_the_context_has_are_a_limit_and_no_error(engines: Engines, answer: Ask) -> None:
    """Clients of this API must send max_tokens, and their defaults are large."""
    assert answer(engines("small generic"), order("Hello", max_tokens=64_000))["content"][0]["text"] == "Hello"

    found = answer(engines("small generic"), order("a" * 90, max_tokens=64_000))

    assert found["stop_reason"] == "model_context_window_exceeded"
    assert 0 < len(found["content"][0]["text"]) < 90


@BOTH
def test_an_empty_answer_has_a_block_of_text_all_the_same(engines: Engines, answer: Ask) -> None:
    assert answer(engines("generic"), order(""))["content"] == [{"type": "text", "text": ""}]


def test_a_stream_says_the_tokens_of_the_prompt_at_its_beginning(engines: Engines) -> None:
    events = post(engines("generic"), order("Hello", stream=True)).events

    count = post(engines("generic"), order("Hello"), "/v1/messages/count_tokens").body
    assert events[0]["message"]["usage"]["input_tokens"] == count["input_tokens"]
    assert events[0]["message"]["stop_reason"] is None


# --- tools ------------------------------------------------------------------------------------------------------------


def uses(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


@BOTH
def test_calls_are_blocks_after_the_text(engines: Engines, answer: Ask) -> None:
    found = answer(engines("hermes"), order("I look.\n" + FAMILIES["hermes"].two, tools=TOOLS))

    assert [block["type"] for block in found["content"]] == ["text", "tool_use", "tool_use"]
    assert found["content"][0]["text"] == "I look."
    assert uses(found) == [("get_weather", {"city": "Paris"}), ("get_time", {"city": "Rome"})]
    assert len({block["id"] for block in found["content"][1:]}) == 2
    assert found["stop_reason"] == "tool_use"


@BOTH
def test_a_call_alone_has_no_block_of_text(engines: Engines, answer: Ask) -> None:
    found = answer(engines("hermes"), order(FAMILIES["hermes"].one, tools=TOOLS))

    assert [block["type"] for block in found["content"]] == ["tool_use"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "any"}, {"get_weather", "get_time"}),
        ({"type": "tool", "name": "get_time"}, {"get_time"}),
    ],
)
@BOTH
def test_a_call_can_be_demanded(engines: Engines, choice: Any, names: set[str], answer: Ask) -> None:
    found = answer(engines("hermes"), order("I will not.", tools=TOOLS, tool_choice=choice))

    assert found["stop_reason"] == "tool_use"
    assert {name for name, _ in uses(found)} <= names


def test_parallel_calls_can_be_turned_off(engines: Engines) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    found = whole(engines("hermes"), order(FAMILIES["hermes"].two, tools=TOOLS, tool_choice=choice))

    assert uses(found) == [("get_weather", {"city": "Paris"})]


def test_the_schemas_of_tools_have_the_names_of_this_api() -> None:
    offer = parse_message(BODY | {"tools": TOOLS}).request.offer

    assert offer is not None
    assert offer.where == ("tools[0].input_schema", "tools[1].input_schema")


def test_with_tool_choice_none_the_model_sees_no_tools() -> None:
    assert parse_message(BODY | {"tools": TOOLS, "tool_choice": {"type": "none"}}).request.offer is None


def test_a_call_that_max_tokens_cuts_off_is_not_in_a_whole_answer(engines: Engines) -> None:
    found = whole(engines("hermes"), order(FAMILIES["hermes"].one, tools=TOOLS, max_tokens=14))

    assert (found["stop_reason"], uses(found)) == ("max_tokens", [])


def test_calls_and_results_of_earlier_turns_become_messages_of_chat() -> None:
    messages = [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "redacted_thinking", "data": "?"},
                {"type": "text", "text": "I look.", "citations": None},
                {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "b", "name": "get_time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "noon"}]},
                {"type": "tool_result", "tool_use_id": "a", "content": "no city", "is_error": True},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    found = parse_message(BODY | {"messages": messages}).request

    assert [message["role"] for message in found.messages or ()] == ["user", "assistant", "tool", "tool", "user"]
    _, said, *results, _ = found.messages or ()
    assert (said["content"], said["reasoning_content"]) == ("I look.", "Hm.")
    assert [call["function"] for call in said["tool_calls"]] == [
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
        {"name": "get_time", "arguments": {}},
    ]
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        ("b", "noon"),
        ("a", "Error: no city"),
    ]
    assert found.malformed == ()


def test_a_malformed_call_is_passed_on_as_text_and_named_by_its_own_field(engines: Engines) -> None:
    messages = [
        *BODY["messages"],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": [1]}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
    ]
    answer = post(engines("hermes"), BODY | {"system": "S", "messages": messages})

    fields = "messages[1].content[0], messages[2].content[0].tool_use_id"
    assert (answer.status, answer.headers["x-tourkit-ignored"]) == (200, fields)


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "system", ["Be brief.\nBe kind.", [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]]
)
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    messages = parse_message(BODY | {"system": system}).request.messages or ()

    assert messages[0] == {"role": "system", "content": "Be brief.\nBe kind."}


def test_messages_of_one_role_that_follow_each_other_are_one() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]

    assert parse_message(BODY | {"messages": messages}).request.messages == ({"role": "user", "content": "a\nb"},)


def test_a_document_of_plain_text_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Once."}
    content = [{"type": "document", "source": source, "title": "Tale"}, {"type": "text", "text": "Sum up."}]

    [message] = parse_message(BODY | {"messages": [{"role": "user", "content": content}]}).request.messages or ()

    assert message["content"] == "Tale\nOnce.\nSum up."


def test_examples_of_a_tool_are_in_its_description() -> None:
    tool = TOOLS[0] | {"input_examples": [{"city": "Осло"}]}
    offer = parse_message(BODY | {"tools": [tool]}).request.offer

    assert offer is not None
    assert offer.tools[0].description == 'Of a city.\nExamples of its input:\n{"city": "Осло"}'


# --- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["output_config", "output_format"])
@BOTH
def test_an_answer_follows_a_schema(engines: Engines, field: str, answer: Ask) -> None:
    form: Any = {"type": "json_schema", "schema": SCHEMA}
    body = order('{"city":"Oslo"}', **{field: {"format": form} if field == "output_config" else form})

    assert json.loads(answer(engines("generic"), body)["content"][0]["text"]) == {"city": "Oslo"}


# --- thinking ---------------------------------------------------------------------------------------------------------

ENABLED = {"type": "enabled", "budget_tokens": 1024}


@pytest.mark.parametrize("thinking", [ENABLED, {"type": "adaptive", "display": "summarized"}])
@BOTH
def test_thinking_that_is_asked_for_is_the_first_block(engines: Engines, thinking: Any, answer: Ask) -> None:
    found = answer(engines("thinks"), BODY | {"thinking": thinking})

    assert found["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "tourkit"},
        {"type": "text", "text": "Yes."},
    ]
    assert found["usage"]["output_tokens_details"]["thinking_tokens"] > 0


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
@BOTH
def test_without_it_the_model_does_not_think(engines: Engines, thinking: Any, answer: Ask) -> None:
    found = answer(engines("thinks"), BODY | {"thinking": thinking})

    assert found["content"] == [{"type": "text", "text": "Yes."}]
    assert "output_tokens_details" not in found["usage"]


def test_thinking_that_the_set_turns_on_or_a_client_omits_is_not_shown() -> None:
    on = (RoleDefaults("tool", thinking=True),)
    asked = [parse_message(BODY, on), parse_message(BODY | {"thinking": {"type": "adaptive", "display": "omitted"}})]

    assert [(each.request.thinking.enabled, each.include_reasoning) for each in asked] == [(True, False)] * 2


def test_the_budget_and_the_effort_are_those_of_thinking() -> None:
    found = parse_message(BODY | {"thinking": ENABLED, "output_config": {"effort": "max"}}).request.thinking

    assert (found.enabled, found.budget, found.effort) == (True, 1024, "xhigh")


def test_what_does_nothing_for_the_model_is_named_by_its_own_field(engines: Engines) -> None:
    body = order("Yes.", thinking=ENABLED, output_config={"effort": "low"})

    ignored = post(engines("generic"), body).headers["x-tourkit-ignored"]

    assert set(ignored.split(", ")) == {"thinking", "thinking.budget_tokens", "output_config.effort"}
    assert "x-tourkit-ignored" not in post(engines("generic"), order("Yes.")).headers


# --- errors -----------------------------------------------------------------------------------------------------------

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
        ({"messages": [*BODY["messages"], {"role": "assistant", "content": "{"}]}, "messages"),
        (user(IMAGE), "messages[0].content[0]"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "tool_use", "id": "a", "name": "f", "input": {}}), "messages[0].content[0].type"),
        (user({"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}), "messages[0].content[0].content[0]"),
        (user({"type": "tool_result", "tool_use_id": "a", "is_error": 1}), "messages[0].content[0].is_error"),
        (user({"type": "document", "source": {"type": "base64"}}), "messages[0].content[0]"),
        ({"system": [IMAGE]}, "system[0]"),
        ({"system": 1}, "system"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"stop_sequences": ["x" * 1001]}, "stop_sequences[0]"),
        ({"temperature": 3}, "temperature"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOLS[0] | {"input_examples": 1}]}, "tools[0].input_examples"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display"),
        ({"output_config": 1}, "output_config"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"output_format": {"type": "json_schema", "schema": 1}}, "output_format"),
        ({"container": {"id": "x"}}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ],
)
def test_a_refusal_names_the_field_of_this_api(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_message(BODY | fields)

    assert caught.value.param == param
    assert str(caught.value).startswith((param, f"'{param}"))


def test_an_image_is_refused_because_the_model_is_text_only() -> None:
    with pytest.raises(RequestError, match="this model is text-only") as caught:
        parse_message(BODY | user(IMAGE))

    assert caught.value.code == "unsupported_content"


@pytest.mark.parametrize(
    ("parse", "path"), [(parse_message, "/v1/messages"), (parse_count, "/v1/messages/count_tokens")]
)
def test_fields_and_values_that_change_nothing_are_accepted(parse: Any, path: str) -> None:
    for field in ROUTES[path]:
        for value in (*field.values, BODY.get(field.name)):
            parse(BODY | {field.name: value})
        if field.use is Use.NO_EFFECT:
            parse(BODY | {field.name: {"any": ["value"]}})


def test_a_schema_that_cannot_be_enforced_is_named_by_the_field_of_this_api(engines: Engines) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}
    answer = post(engines("hermes"), order("x", tools=[{"name": "f", "input_schema": schema}]))

    assert (answer.status, answer.body["error"]["param"]) == (400, "tools[0].input_schema")
    assert answer.body["error"]["message"].startswith("tools[0].input_schema")


def test_a_prompt_that_is_too_long_is_refused(engines: Engines) -> None:
    answer = post(engines("generic"), order("a" * 9_000))

    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")


# --- the way in -------------------------------------------------------------------------------------------------------


def gateway(path: str, body: Any = None, *, keys: tuple[str, ...] = (), **how: Any) -> Answer:
    """Ask a gateway without models."""
    app = Gateway((), GatewayOptions(access=AccessRules(keys=keys))).app()
    return asyncio.run(ask(app, path, body, **how))


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/v1/messages/", "/v1/messages/count_tokens"])
def test_errors_have_anthropics_form_and_the_id_of_the_request(path: str) -> None:
    answer = gateway(path, BODY)

    assert (answer.status, answer.body["type"]) == (404, "error")
    assert answer.body["error"]["type"] == "not_found_error"
    assert answer.body["error"]["message"].startswith("model 'tool' is not served here")
    assert answer.body["error"]["details"] == {"error_code": "model_not_found", "param": "model"}
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert int(answer.headers["content-length"]) == len(answer.raw)


def test_a_key_is_needed_and_the_header_x_api_key_has_it() -> None:
    refused = gateway("/v1/messages", BODY, keys=("k",))
    let_in = gateway("/v1/messages", BODY, keys=("k",), headers={"x-api-key": "k"})

    assert (refused.status, refused.body["error"]["type"]) == (401, "authentication_error")
    assert let_in.status == 404


def test_a_client_that_waits_gets_a_ping_and_an_error_is_an_event() -> None:
    sent = b""

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"")

    async def wait() -> None:
        commented = Commented(send, "small Q4_1 llama_cpp", MESSAGES)
        await commented._comment()
        await commented({"type": "http.response.start", "status": 503, "headers": []})
        error = {"error": {"message": "it died", "type": "server_error", "param": None, "code": "engine_dead"}}
        await commented({"type": "http.response.body", "body": json.dumps(error).encode()})

    asyncio.run(wait())

    ping, error = sent.decode().strip().split("\n\n")
    assert ping == 'event: ping\ndata: {"type":"ping"}'
    assert error.startswith("event: error\n")
    about = {"type": "overloaded_error", "message": "it died", "details": {"error_code": "engine_dead"}}
    assert json.loads(error.partition("data: ")[2]) == {"type": "error", "error": about}


def test_an_answer_that_fails_in_the_middle_ends_with_an_event() -> None:
    reply = MessageReply("msg_1", "tool")
    begun = reply.chunk(Delta(0, "He", 1), lambda: Usage(5, 1, 0))

    failed = reply.failure(EngineError("it broke"))

    assert begun.count(b"event: ") == 3
    assert failed.startswith(b"event: error\n")
    assert b'"type":"api_error","message":"it broke"' in failed


def test_a_wrong_method_is_an_error_of_this_api_too() -> None:
    answer = gateway("/v1/messages", method="GET")

    assert (answer.status, answer.body["error"]["type"]) == (405, "invalid_request_error")

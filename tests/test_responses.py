"""The Responses API on a stand-in engine: Open Responses' compliance cases, streams, input items, fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from asgi import Answer
from near_gateway import NearGateway
from thinking_runner import TURN
from tool_runner import FAMILIES, ORDER, ToolRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.errors import EngineDead, RequestError
from tourkit.generation import Delta
from tourkit.server.api.replies import Usage
from tourkit.server.api.response_fields import AskedResponse, parse_response
from tourkit.server.api.response_replies import ResponseReply

pytest.importorskip("llguidance", reason="llguidance is not installed here")

FAMILY = "hermes"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}\n</tool_call>'
LOCATION = {
    "type": "object",
    "properties": {"location": {"type": "string", "description": "The city and state", "maxLength": 40}},
    "required": ["location"],
}
WEATHER = {"type": "function", "name": "get_weather", "description": "Of a place.", "parameters": LOCATION}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]}
TOOLS = [{"type": "function", "name": name, "parameters": CITY} for name in ("get_weather", "get_time")]
ALICE = "Hello Alice!"


class Scripted(ToolRunner):
    """It writes what the last message says after `ORDER`, a call if it is asked about weather, else a greeting."""

    def __init__(self) -> None:
        super().__init__(FAMILY)

    def _next(self, history: tuple[int, ...]) -> int:
        prompt, _, written = self.spell(history).rpartition(TURN.encode())
        if ORDER.encode() in prompt:
            return super()._next(history)
        text = (CALL if b"weather like" in prompt else ALICE).encode()
        return self._token(text[len(written) :] if text.startswith(written) else b"")


@pytest.fixture(scope="module")
def near() -> Iterator[NearGateway]:
    engine = RunnerEngine(Scripted(), "stand-in")
    try:
        yield NearGateway(engine)
    finally:
        engine.close()


def respond(near: NearGateway, given: Any, **fields: Any) -> Answer:
    return near.post("/v1/responses", {"model": "tool", "input": given, "temperature": 0} | fields)


def said(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


# --- Open Responses' compliance cases ---------------------------------------------------------------------------------
#
# They are the seven cases of the standard's own suite. Its case with an image asks for an answer; these models are
# text-only, so the answer is the error that says it.

CASES: dict[str, dict[str, Any]] = {
    "basic text": {"input": [said("user", "Say hello in exactly 3 words.")]},
    "streaming": {"input": [said("user", "Count from 1 to 5.")], "stream": True},
    "system prompt": {"input": [said("system", "You are a pirate."), said("user", "Say hello.")]},
    "tool calling": {"input": [said("user", "What's the weather like in San Francisco?")], "tools": [WEATHER]},
    "tool calling, streaming": {
        "input": [said("user", "What's the weather like in San Francisco?")],
        "tools": [WEATHER],
        "stream": True,
    },
    "multi-turn": {
        "input": [
            said("user", "My name is Alice."),
            said("assistant", "Hello Alice! Nice to meet you."),
            said("user", "What is my name?"),
        ]
    },
}
OPTIONAL = {type(None)}
# The fields that the standard requires of a response, with their types in JSON.
RESPONSE = {
    "id": {str},
    "object": {str},
    "created_at": {int},
    "completed_at": {int} | OPTIONAL,
    "status": {str},
    "incomplete_details": {dict} | OPTIONAL,
    "model": {str},
    "previous_response_id": {str} | OPTIONAL,
    "instructions": {str} | OPTIONAL,
    "output": {list},
    "error": {dict} | OPTIONAL,
    "tools": {list},
    "tool_choice": {str, dict},
    "truncation": {str},
    "parallel_tool_calls": {bool},
    "text": {dict},
    "top_p": {int, float},
    "presence_penalty": {int, float},
    "frequency_penalty": {int, float},
    "top_logprobs": {int},
    "temperature": {int, float},
    "reasoning": {dict} | OPTIONAL,
    "user": {str} | OPTIONAL,
    "usage": {dict} | OPTIONAL,
    "max_output_tokens": {int} | OPTIONAL,
    "max_tool_calls": {int} | OPTIONAL,
    "store": {bool},
    "background": {bool},
    "service_tier": {str},
    "metadata": {dict},
    "safety_identifier": {str} | OPTIONAL,
    "prompt_cache_key": {str} | OPTIONAL,
}
ITEMS = {
    "message": {"id": str, "status": str, "role": str, "content": list},
    "function_call": {"id": str, "status": str, "call_id": str, "name": str, "arguments": str},
    "reasoning": {"id": str, "summary": list, "content": list},
}
EVENTS = {
    "response.created": {"response": dict},
    "response.in_progress": {"response": dict},
    "response.output_item.added": {"output_index": int, "item": dict},
    "response.content_part.added": {"item_id": str, "output_index": int, "content_index": int, "part": dict},
    "response.output_text.delta": {"item_id": str, "output_index": int, "content_index": int, "delta": str},
    "response.output_text.done": {"item_id": str, "output_index": int, "content_index": int, "text": str},
    "response.reasoning_text.delta": {"item_id": str, "output_index": int, "content_index": int, "delta": str},
    "response.reasoning_text.done": {"item_id": str, "output_index": int, "content_index": int, "text": str},
    "response.content_part.done": {"item_id": str, "output_index": int, "content_index": int, "part": dict},
    "response.function_call_arguments.delta": {"item_id": str, "output_index": int, "delta": str},
    "response.function_call_arguments.done": {"item_id": str, "output_index": int, "arguments": str, "name": str},
    "response.output_item.done": {"output_index": int, "item": dict},
    "response.completed": {"response": dict},
    "response.incomplete": {"response": dict},
}


def check_response(response: dict[str, Any]) -> None:
    """Check that a response has the form of the standard."""
    assert {name: type(response[name]) in types for name, types in RESPONSE.items()} == dict.fromkeys(RESPONSE, True)
    for item in response["output"]:
        for name, kind in ITEMS[item["type"]].items():
            assert isinstance(item[name], kind), (name, item)
    for tool in response["tools"]:
        assert {"type", "name", "description", "parameters", "strict"} == set(tool)
    if response["usage"] is not None:
        usage = response["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert isinstance(usage["input_tokens_details"]["cached_tokens"], int)
        assert isinstance(usage["output_tokens_details"]["reasoning_tokens"], int)


def check_stream(answer: Answer) -> dict[str, Any]:
    """Check that a stream has the form of the standard, and return its response."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.raw.endswith(b"data: [DONE]\n\n")
    events = answer.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    names = [line.removeprefix("event: ") for line in answer.raw.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    for event in events:
        for name, kind in EVENTS[event["type"]].items():
            assert isinstance(event[name], kind), event
    assert names[:2] == ["response.created", "response.in_progress"]
    for event in (events[0], events[1], events[-1]):
        check_response(event["response"])
    response: dict[str, Any] = events[-1]["response"]
    check_items(events, response)
    return response


def check_items(events: list[dict[str, Any]], response: dict[str, Any]) -> None:
    """Check that each item is added, grows by its deltas, and is done, one after the other."""
    for index, item in enumerate(response["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own == sorted(own, key=lambda event: event["sequence_number"])
        assert (own[0]["type"], own[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        assert own[-1]["item"] == item
        assert own[0]["item"]["id"] == item["id"]
        assert {event["item_id"] for event in own[1:-1]} == {item["id"]}
        grown = "".join(event["delta"] for event in own if "delta" in event)
        assert grown == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    numbers = [event["output_index"] for event in events if "output_index" in event]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("case", CASES)
def test_a_compliance_case_of_open_responses_is_met(near: NearGateway, case: str) -> None:
    asked = CASES[case]
    answer = respond(near, given=asked["input"], **{key: asked[key] for key in asked.keys() - {"input"}})

    assert answer.status == 200, answer.raw
    response = check_stream(answer) if asked.get("stream") else answer.body
    check_response(response)
    kinds = [item["type"] for item in response["output"]]
    assert (response["status"], kinds) == ("completed", ["function_call" if "tools" in asked else "message"])
    if "tools" in asked:
        [call] = response["output"]
        assert (call["name"], call["arguments"]) == ("get_weather", '{"location": "San Francisco, CA"}')
        if asked.get("stream"):
            deltas = [each for each in answer.events if each["type"] == "response.function_call_arguments.delta"]
            assert len(deltas) > 1


def test_the_compliance_case_with_an_image_is_refused_because_the_model_is_text_only(near: NearGateway) -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    answer = respond(near, [said("user", [{"type": "input_text", "text": "What do you see?"}, image])])

    assert (answer.status, answer.body["error"]["param"]) == (400, "input[0].content[1]")
    assert answer.body["error"]["message"] == (
        "input[0].content[1] is an image: this model is text-only, so send text parts only"
    )


# --- streams ----------------------------------------------------------------------------------------------------------


def test_two_calls_are_two_items_in_a_stream_and_in_a_whole_answer(near: NearGateway) -> None:
    order = ORDER + "I look." + FAMILIES[FAMILY].two
    whole = respond(near, order, tools=TOOLS).body
    streamed = check_stream(respond(near, order, tools=TOOLS, stream=True))

    for response in (whole, streamed):
        message, one, two = response["output"]
        assert message["content"][0]["text"] == "I look."
        assert [(call["name"], call["arguments"]) for call in (one, two)] == [
            ("get_weather", '{"city": "Paris"}'),
            ("get_time", '{"city": "Rome"}'),
        ]
        assert one["call_id"] != two["call_id"]


def test_thinking_is_an_item_of_its_own_before_the_answer() -> None:
    thought = "<think>\nHm.\n</think>\n\n"
    engine = RunnerEngine(ToolRunner("hermes, thinking"), "stand-in")
    try:
        near = NearGateway(engine)
        whole = respond(near, f"{ORDER}{thought}Yes.").body
        streamed = check_stream(respond(near, f"{ORDER}{thought}Yes.", stream=True))
        hidden = respond(near, f"{ORDER}{thought}Yes.", include_reasoning=False).body
    finally:
        engine.close()

    for response in (whole, streamed):
        check_response(response)
        thinking, message = response["output"]
        assert thinking["content"] == [{"type": "reasoning_text", "text": "Hm."}]
        assert thinking["summary"] == []
        assert message["content"][0]["text"] == "Yes."
        assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert [item["type"] for item in hidden["output"]] == ["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_max_output_tokens_ends_is_incomplete(near: NearGateway, stream: bool) -> None:
    answer = respond(near, "Hi", max_output_tokens=3, stream=stream)
    response = check_stream(answer) if stream else answer.body

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"
    if stream:
        assert answer.events[-1]["type"] == "response.incomplete"


def test_an_answer_without_text_still_has_a_message(near: NearGateway) -> None:
    whole = respond(near, ORDER).body
    streamed = check_stream(respond(near, ORDER, stream=True))

    assert [response["output"][0]["content"][0]["text"] for response in (whole, streamed)] == ["", ""]


def test_log_probabilities_come_with_the_text_that_they_belong_to(near: NearGateway) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = respond(near, "Hi", **fields).body["output"][0]["content"][0]
    answer = respond(near, "Hi", **fields, stream=True)
    part = check_stream(answer)["output"][0]["content"][0]

    assert "".join(each["token"] for each in whole["logprobs"]) == ALICE
    assert {len(each["top_logprobs"]) for each in whole["logprobs"]} == {2}
    assert part["logprobs"] == whole["logprobs"]
    deltas = [event for event in answer.events if event["type"] == "response.output_text.delta"]
    assert [each for event in deltas for each in event["logprobs"]] == whole["logprobs"]


def test_without_include_there_are_no_log_probabilities(near: NearGateway) -> None:
    assert respond(near, "Hi").body["output"][0]["content"][0]["logprobs"] == []


def test_a_failure_in_a_stream_is_an_error_event_and_a_failed_response() -> None:
    reply = ResponseReply("resp_1", 0, {"model": "tool"})
    raw = reply.opening(1) + reply.chunk(Delta(0, "Hel", 3), lambda: Usage(0, 0, 0))
    raw += reply.failure(EngineDead("the worker ended"))
    *_, error, failed = Answer(raw=raw).events

    assert [event["sequence_number"] for event in Answer(raw=raw).events] == list(range(7))
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_dead", "the worker ended")
    assert error["error"]["message"] == "the worker ended"
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"] == {"code": "engine_dead", "message": "the worker ended"}
    assert failed["response"]["output"][0]["content"][0]["text"] == "Hel"


# --- input items ------------------------------------------------------------------------------------------------------


def parsed(given: Any, n_stored: int | None = None, **fields: Any) -> AskedResponse:
    return parse_response({"model": "tool", "input": given} | fields, n_stored)


def messages(given: Any, **fields: Any) -> list[dict[str, Any]]:
    return list(parsed(given, **fields).generate.request.messages or ())


def test_a_string_is_a_message_of_the_user_and_instructions_come_first() -> None:
    assert messages("Hi", instructions="Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
    ]


def test_content_may_be_a_string_or_parts_of_requests_and_replies() -> None:
    assert messages(
        [
            {"role": "developer", "content": "Be kind."},
            said("user", [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}]),
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "phase": "final_answer",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": " No."},
                ],
            },
        ]
    ) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes? No."},
    ]


def call(id_: str, city: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": id_, "name": "get_weather", "arguments": f'{{"city":"{city}"}}'}


def test_the_items_of_one_answer_become_one_message_with_thinking_and_calls() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    output = {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "rain"}]}
    found = messages([thought, said("assistant", "I look."), call("a", "Paris"), call("b", "Rome"), output])

    assert [message["role"] for message in found] == ["assistant", "tool"]
    assert (found[0]["content"], found[0]["reasoning_content"]) == ("I look.", "Hm.")
    assert [each["function"]["arguments"] for each in found[0]["tool_calls"]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert found[1] == {"role": "tool", "content": "rain", "tool_call_id": "b", "name": "get_weather"}


def test_the_answer_after_a_result_is_a_message_of_its_own() -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": "rain"}
    found = messages([said("user", "?"), call("a", "Paris"), output, call("b", "Rome"), said("user", "!")])

    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant", "user"]


def test_thinking_that_only_another_server_can_read_is_left_out() -> None:
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}

    assert messages([sealed, said("assistant", "Yes.")]) == [{"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (None, "input"),
        ([], "input"),
        (5, "input"),
        (["x"], "input[0]"),
        ([{"type": "computer_call"}], "input[0].type"),
        ([{"content": "x"}], "input[0].type"),
        ([said("user", "x"), said("nobody", "x")], "input[1].role"),
        ([said("user", [{"type": "input_file"}])], "input[0].content[0]"),
        ([said("user", 5)], "input[0].content"),
        ([{**said("user", "x"), "weight": 5}], "input[0].weight"),
        ([{"type": "function_call_output", "call_id": "a", "output": 5}], "input[0].output"),
        ([{"type": "reasoning", "content": "x"}, said("user", "x")], "input[0].content"),
        ([{"type": "reasoning", "summary": []}], "input"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
    ],
)
def test_a_wrong_item_is_named(given: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(given)

    assert caught.value.param == param
    assert str(caught.value).startswith(param)


def test_an_error_counts_the_items_of_the_request_and_not_those_that_are_stored() -> None:
    with pytest.raises(RequestError) as caught:
        parsed([said("user", "x"), said("assistant", "x"), said("nobody", "x")], 2, previous_response_id="resp_1")

    assert caught.value.param == "input[0].role"


def test_a_malformed_call_in_the_history_is_passed_on_as_text_and_named(near: NearGateway) -> None:
    broken = {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": "{"}
    answer = respond(near, [said("user", "?"), broken])

    assert (answer.status, answer.headers["x-tourkit-ignored"]) == (200, "input[1]")


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"text": "x"}, "text"),
        ({"text": {"form": "x"}}, "text.form"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"$id": 5}}}}, "text.format"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"effor": "low"}}, "reasoning.effor"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a", "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": 5}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "b"}, "tools": TOOLS}, "tool_choice"),
        ({"include": ["everything"]}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "some"}, "truncation"),
        ({"metadata": "x"}, "metadata"),
        ({"store": "x"}, "store"),
        ({"instructions": ["x"]}, "instructions"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"previous_response_id": 5}, "previous_response_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_error_names_the_field_that_was_sent(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed("x", **fields)

    assert caught.value.param == param
    assert param in str(caught.value)


def test_an_error_of_the_engine_names_the_field_that_was_sent(near: NearGateway) -> None:
    answer = respond(near, "x", max_output_tokens=5_000)

    assert answer.body["error"]["param"] == "max_output_tokens"
    assert answer.body["error"]["message"].startswith("This model's maximum context length is 4096 tokens.")
    assert "lower max_output_tokens" in answer.body["error"]["message"]


def test_max_tokens_is_refused_with_the_name_that_this_api_has() -> None:
    with pytest.raises(RequestError, match="did you mean 'max_output_tokens'"):
        parsed("x", max_tokens=5)


def test_a_field_about_things_that_are_not_here_is_accepted() -> None:
    fields = {"store": False, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "prompt_cache_key": "k"}
    fields |= {"safety_identifier": "s", "background": False, "include": ["reasoning.encrypted_content"]}
    fields |= {"max_tool_calls": 3, "stream_options": {"include_obfuscation": False}, "truncation": "disabled"}

    about = parsed("x", **fields).about

    assert {name: about[name] for name in ("store", "metadata", "user", "prompt_cache_key", "max_tool_calls")} == {
        "store": False,
        "metadata": {"a": "b"},
        "user": "me",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
    }


def test_what_no_model_here_knows_is_named(near: NearGateway) -> None:
    fields = {"text": {"verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"}}
    answer = respond(near, "Hi", **fields)

    assert answer.headers["x-tourkit-ignored"] == "reasoning.effort, reasoning.summary, text.verbosity"
    assert answer.body["text"]["verbosity"] == "low"


def test_thinking_in_the_history_is_named_if_the_template_does_not_read_it(near: NearGateway) -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}

    assert respond(near, [thought, said("assistant", "x")]).headers["x-tourkit-ignored"] == "input.reasoning"


def test_the_format_is_the_constraint_and_is_repeated() -> None:
    form = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    asked = parsed("x", text={"format": form})

    assert asked.generate.request.schema_source is not None
    assert asked.about["text"] == {"format": form | {"description": None}}
    constraint = parsed("x", text={"format": {"type": "json_object"}}).generate.request.constraint
    assert constraint is not None
    assert constraint.kind == "json_object"
    assert parsed("x", text={"format": {"type": "text"}}).generate.request.constraint is None


def test_a_structured_answer_follows_its_schema(near: NearGateway) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = respond(near, ORDER + '{"n":4}', text={"format": {"type": "json_schema", "name": "n", "schema": schema}})

    assert answer.body["output"][0]["content"][0]["text"] == '{"n":4}'
    assert answer.body["tourkit"]["choices"][0]["valid"]
    assert answer.headers["x-tourkit-constraint"] == "strict"


def test_tools_and_their_choice_are_those_of_chat() -> None:
    asked = parsed("x", tools=TOOLS, tool_choice={"type": "function", "name": "get_time"}, parallel_tool_calls=False)
    offer = asked.generate.request.offer
    assert offer is not None

    assert (offer.names, offer.required, offer.parallel) == (("get_time",), True, False)
    assert offer.where == ("tools[0].parameters", "tools[1].parameters")
    assert asked.about["tool_choice"] == {"type": "function", "name": "get_time"}
    assert asked.about["parallel_tool_calls"] is False


def test_allowed_tools_may_leave_out_the_mode() -> None:
    allowed = {"type": "allowed_tools", "tools": [{"type": "function", "name": "get_time"}]}
    asked = parsed("x", tools=TOOLS, tool_choice=allowed)
    offer = asked.generate.request.offer
    assert offer is not None

    assert (offer.names, offer.required) == (("get_time",), False)
    assert asked.about["tool_choice"] == allowed | {"mode": "auto"}


# --- truncation -------------------------------------------------------------------------------------------------------


class Small(Scripted):
    """Its context has 300 tokens of one byte."""

    context = 300


@pytest.fixture(scope="module")
def small() -> Iterator[NearGateway]:
    engine = RunnerEngine(Small(), "stand-in")
    try:
        yield NearGateway(engine)
    finally:
        engine.close()


def conversation(turns: int) -> list[dict[str, Any]]:
    pairs = [(said("user", "x" * 30), said("assistant", "y" * 20)) for _ in range(turns)]
    return [message for pair in pairs for message in pair]


def test_truncation_auto_leaves_out_the_fewest_oldest_turns(small: NearGateway) -> None:
    given = [said("system", "Be kind."), *conversation(9), said("user", "Last.")]
    fits = [given[0], *given[13:]]  # three turns and the last message; four turns are over 300 tokens
    whole, cut = (respond(small, given, max_output_tokens=20, truncation=how) for how in ("disabled", "auto"))

    assert whole.body["error"]["code"] == "context_length_exceeded"
    assert (cut.status, cut.body["truncation"]) == (200, "auto")
    usages = [cut.body["usage"], respond(small, fits, max_output_tokens=20).body["usage"]]
    assert usages[0]["input_tokens"] == usages[1]["input_tokens"] > 300 - 20 - 67


def test_truncation_auto_keeps_the_last_turn_and_refuses_it_if_it_does_not_fit(small: NearGateway) -> None:
    answer = respond(small, [*conversation(2), said("user", "x" * 500)], truncation="auto")

    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")


def test_truncation_auto_changes_nothing_if_all_fits(small: NearGateway) -> None:
    given = [*conversation(2), said("user", "Last.")]

    usages = [respond(small, given, truncation=how).body["usage"] for how in ("disabled", "auto")]
    assert usages[0]["input_tokens"] == usages[1]["input_tokens"]


# --- the official client ----------------------------------------------------------------------------------------------


def test_the_official_client_goes_on_with_a_conversation_and_reads_a_stream(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tool", input="Hello", max_output_tokens=4, temperature=0)
    again = {"previous_response_id": first.id, "max_output_tokens": 4, "temperature": 0.0}
    second = client.responses.create(model="brain", input="More", **again)
    with client.responses.stream(model="brain", input="More", **again) as stream:
        *_, last = stream

    assert (first.status, second.previous_response_id) == ("incomplete", first.id)
    assert last.type == "response.incomplete"
    assert last.response.output_text == second.output_text
    shown = [item.role for item in client.responses.input_items.list(second.id, order="asc")]
    assert shown == ["user", "assistant", "user"]
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)


def test_the_official_client_parses_a_structured_answer(client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        kind: Literal["city", "river"]

    answer = client.responses.parse(model="tool", input="Oslo?", text_format=Place, max_output_tokens=40)

    assert answer.output_parsed is not None
    assert answer.output_parsed.kind in ("city", "river")

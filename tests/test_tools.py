"""Tools: calls, in the form of each family of models, through the engine and the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from tool_runner import FAMILIES, ORDER, ToolRunner, stand_ins

from tourkit.backends.chat_template import ChatTemplate
from tourkit.backends.control_tokens import ControlTokens
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.backends.tool_prompt import ToolPrompt
from tourkit.calling.forms import FAMILIES as FORMS
from tourkit.calling.forms import GENERIC
from tourkit.calling.stream import CallStream
from tourkit.calling.tools import Calls
from tourkit.errors import RequestError
from tourkit.server.api.generation import Generation, complete, stream
from tourkit.server.api.model import Model
from tourkit.server.api.replies import ChatReply
from tourkit.server.api.requests import Generate, parse_chat

pytest.importorskip("llguidance", reason="llguidance is not installed here")

FAMILY = pytest.mark.parametrize("family", FAMILIES)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Of a city.", "parameters": SCHEMA}}
    for name in ("get_weather", "get_time")
]
WEATHER, TIME = ("get_weather", '{"city": "Paris"}'), ("get_time", '{"city": "Rome"}')
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def engines() -> Iterator[Callable[[str], RunnerEngine]]:
    """Return the engine of a family. What it writes depends on the prompt alone."""
    yield from stand_ins(ToolRunner)


def parsed(text: str = "", **fields: Any) -> Generate:
    """Return a request to write a text."""
    body = {"model": "tool", "messages": [{"role": "user", "content": ORDER + text}], "temperature": 0, "tools": TOOLS}
    return parse_chat(body | fields)


def nobody_hangs_up() -> HttpRequest:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    return HttpRequest({"type": "http", "headers": []}, receive)


class Answer:
    """The message of a reply, whole or put together from a stream. `chunks`: those of the stream."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str], chunks: list[dict[str, Any]]) -> None:
        [choice] = body["choices"]
        self.body, self.headers, self.chunks = body, headers, chunks
        self.message, self.finish = choice["message"], choice["finish_reason"]
        self.content = self.message["content"]
        functions = [call["function"] for call in self.message.get("tool_calls", ())]
        self.calls = [(function["name"], function["arguments"]) for function in functions]


def whole(engine: RunnerEngine, text: str, **fields: Any) -> Answer:
    """Return the whole reply of a model that writes this text."""
    asked = parsed(text, **fields)
    reply = ChatReply("id", 0, "tool", legacy_calls=asked.legacy_calls)
    response = asyncio.run(complete_here(engine, asked, reply))
    return Answer(json.loads(bytes(response.body)), dict(response.headers), [])


async def complete_here(engine: RunnerEngine, asked: Generate, reply: ChatReply) -> Response:
    return await complete(Model(engine), asked, reply, nobody_hangs_up())


def streamed(engine: RunnerEngine, text: str, **fields: Any) -> Answer:
    """Return the same from a stream. The tokens of the stand-ins are single bytes."""
    asked = parsed(text, stream=True, **fields)

    async def make() -> list[dict[str, Any]]:
        model, http = Model(engine), nobody_hangs_up()
        generation = await Generation.start(model, asked.request, http)
        assert generation is not None
        reply = ChatReply("id", 0, "tool", legacy_calls=asked.legacy_calls)
        text = b"".join([event async for event in stream(model, generation, reply, asked, http)])
        *events, done, end = text.split(b"\n\n")
        assert (done, end) == (b"data: [DONE]", b"")
        return [json.loads(event.removeprefix(b"data: ")) for event in events]

    chunks = asyncio.run(make())
    return Answer(added_up(chunks), {}, chunks)


def added_up(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a message together as OpenAI's clients do."""
    content, finish, calls = "", None, {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        content += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for piece in choice["delta"].get("tool_calls", ()):
            call = calls.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
            call |= {key: piece[key] for key in ("id", "type") if key in piece}
            for key, text in piece["function"].items():
                call["function"][key] += text
    message = {"content": content or None, "tool_calls": [calls[index] for index in sorted(calls)]}
    return {"choices": [{"message": message, "finish_reason": finish}]}


BOTH = pytest.mark.parametrize("ask", [whole, streamed], ids=["whole", "streamed"])
Engines = Callable[[str], RunnerEngine]


# --- the families -----------------------------------------------------------------------------------------------------


@FAMILY
@BOTH
def test_a_call_has_its_name_and_arguments_and_nothing_is_left_in_the_content(
    engines: Engines, family: str, ask: Any
) -> None:
    found = ask(engines(family), FAMILIES[family].one)

    assert (found.calls, found.content, found.finish) == ([WEATHER], None, "tool_calls")
    assert found.message["tool_calls"][0]["id"].startswith("call_")
    assert found.message["tool_calls"][0]["type"] == "function"


@pytest.mark.parametrize("family", [name for name, about in FAMILIES.items() if about.two])
@BOTH
def test_an_answer_can_have_two_calls(engines: Engines, family: str, ask: Any) -> None:
    found = ask(engines(family), FAMILIES[family].two)

    assert (found.calls, found.content, found.finish) == ([WEATHER, TIME], None, "tool_calls")
    ids = [call["id"] for call in found.message["tool_calls"]]
    assert len(set(ids)) == 2


@pytest.mark.parametrize("family", [name for name, about in FAMILIES.items() if about.two])
def test_parallel_tool_calls_false_allows_one_call(engines: Engines, family: str) -> None:
    found = whole(engines(family), FAMILIES[family].two, parallel_tool_calls=False)

    assert (found.calls, found.finish) == ([WEATHER], "tool_calls")


@pytest.mark.parametrize("family", [name for name, about in FAMILIES.items() if not about.at_start])
@BOTH
def test_text_before_a_call_is_the_content(engines: Engines, family: str, ask: Any) -> None:
    about = FAMILIES[family]
    text = about.free + "Я посмотрю: 2 < 3.\n\n" + about.one.removeprefix(about.free)

    found = ask(engines(family), text)

    assert (found.content, found.calls, found.finish) == ("Я посмотрю: 2 < 3.", [WEATHER], "tool_calls")


@FAMILY
@pytest.mark.parametrize("said", [' {"name": "get_weather"} <tool', "5 < 6 [TOOL] <|\n"])
def test_an_answer_without_a_call_is_content_to_its_last_character(engines: Engines, family: str, said: str) -> None:
    found = streamed(engines(family), FAMILIES[family].free + said)

    assert (found.content, found.calls, found.finish) == (said, [], "stop")


@FAMILY
def test_a_required_call_is_made_whatever_the_model_wants_to_write(engines: Engines, family: str) -> None:
    found = whole(engines(family), FAMILIES[family].free + "I will not.", tool_choice="required", max_tokens=300)

    assert found.content is None
    assert [set(json.loads(arguments)) for _, arguments in found.calls] == [{"city"}] * len(found.calls)
    assert found.calls
    assert found.finish == "tool_calls"


@FAMILY
def test_a_named_tool_is_called_and_no_other(engines: Engines, family: str) -> None:
    found = whole(engines(family), FAMILIES[family].one, tool_choice=NAMED, max_tokens=300)

    assert {name for name, _ in found.calls} == {"get_time"}


@FAMILY
def test_without_tool_choice_none_tools_are_shown_and_with_it_they_are_not(engines: Engines, family: str) -> None:
    assert "get_weather" in prompt_of(engines(family))
    assert "get_weather" not in prompt_of(engines(family), tool_choice="none")
    assert ("[tools]" in prompt_of(engines(family))) is FAMILIES[family].native


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "hermes, thinking"])  # it thinks less then
def test_a_call_is_closed_out_when_the_tokens_run_short(engines: Engines, family: str) -> None:
    long = FAMILIES[family].one.replace("Paris", "P" * 30)
    room = len(long) - 20

    found = whole(engines(family), long, max_tokens=room)

    assert [set(json.loads(arguments)) for _, arguments in found.calls] == [{"city"}]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "hermes, thinking"])
def test_free_text_may_use_all_tokens_and_ends_with_length(engines: Engines, family: str) -> None:
    free = FAMILIES[family].free

    found = whole(engines(family), free + "a" * 100, max_tokens=120 if free else 20)

    assert (set(found.content), found.finish) == ({"a"}, "length")


@FAMILY
def test_stop_strings_end_the_content_and_no_call(engines: Engines, family: str) -> None:
    about = FAMILIES[family]

    assert whole(engines(family), about.one, stop=["Par", "city", "}"]).calls == [WEATHER]
    assert whole(engines(family), about.free + "one END two", stop=["END"]).content == "one "


def test_with_thinking_the_thinking_is_apart_and_the_call_comes_after_it(engines: Engines) -> None:
    for family in ("hermes, thinking", "gpt-oss"):
        found = whole(engines(family), FAMILIES[family].one, reasoning_effort="high")

        assert found.message["reasoning_content"] == "Hm."
        assert found.calls == [WEATHER]


# --- the text of an answer, cut at any place --------------------------------------------------------------------------

WRITTEN = [family.form for family in FORMS] + [GENERIC]


@pytest.mark.parametrize("form", WRITTEN, ids=[form.name for form in WRITTEN])
def test_wherever_an_answer_is_cut_no_marker_is_in_the_content_and_pieces_add_up(form: Any) -> None:
    two = form.written([WEATHER, TIME] if form.several else [WEATHER])
    said = "" if form.free or not form.marker else "So.\n"
    text = said + two
    for end in range(len(text) + 1):
        names = ["get", "get_time", "get_weather"]
        parts = CallStream(form, names, lambda: "call_1", {name: ["city"] for name in names})
        calls, content = Calls(), ""
        for char in text[:end]:
            found = parts.feed(char)
            calls.take(found.pieces)
            content += found.content
        content += parts.close(cut=True).content

        assert said.startswith(content.rstrip())
        for (name, arguments), call in zip([WEATHER, TIME], calls.found, strict=False):
            assert call.name == name
            assert arguments.startswith(call.arguments)


# --- content under a schema -------------------------------------------------------------------------------------------

JSON = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


@pytest.mark.parametrize("family", ["hermes", "llama-3", "mistral"])
def test_an_answer_without_a_call_follows_the_response_format(engines: Engines, family: str) -> None:
    found = whole(engines(family), '{"city": "Oslo"}', response_format=JSON)

    assert (found.content, found.calls) == ('{"city": "Oslo"}', [])
    assert found.body["tourkit"]["choices"][0]["valid"]


def test_with_a_response_format_tools_can_be_called_all_the_same(engines: Engines) -> None:
    assert whole(engines("hermes"), FAMILIES["hermes"].one, response_format=JSON).calls == [WEATHER]
    assert whole(engines("llama-3"), FAMILIES["generic"].one, response_format=JSON).calls == [WEATHER]


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompt_of(engine: RunnerEngine, **fields: Any) -> str:
    """Return the prompt of a request as text."""
    asked = engine.with_calls(parsed(**fields).request)
    made = engine._texts.engine_input(asked, engine._spacing, None, matchers=1)
    return engine._runner.spell(made.tokens).decode()  # type: ignore[attr-defined]


def call(id_: str, name: str = "get_weather", arguments: Any = '{"city": "Paris"}') -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


PAST = [
    {"role": "user", "content": "Q"},
    {"role": "assistant", "content": None, "tool_calls": [call("call_one"), call("call_two", "get_time")]},
    {"role": "tool", "tool_call_id": "call_two", "content": "noon"},
    {"role": "tool", "tool_call_id": "call_one", "content": [{"type": "text", "text": "sunny"}]},
]


def test_a_template_gets_calls_with_arguments_as_objects_and_results_with_their_ids(engines: Engines) -> None:
    prompt = prompt_of(engines("hermes"), messages=PAST)

    assert '(call_one {"name": "get_weather", "arguments": {"city": "Paris"}})' in prompt
    assert "[tool]noon<call_two>[tool]sunny<call_one>" in prompt


def test_a_template_that_takes_one_call_a_message_gets_each_with_its_result(engines: Engines) -> None:
    prompt = prompt_of(engines("llama-3"), messages=PAST)

    assert prompt.index("(call_one") < prompt.index("sunny") < prompt.index("(call_two") < prompt.index("noon")


def test_mistral_gets_ids_of_nine_letters_or_digits(engines: Engines) -> None:
    prompt = prompt_of(engines("mistral"), messages=PAST)

    ids = [part.split(" ")[0] for part in prompt.split("(")[1:]]
    assert [len(id_) for id_ in ids] == [9, 9]
    assert f"[tool]noon<{ids[1]}>[tool]sunny<{ids[0]}>" in prompt


def test_a_template_without_tools_gets_calls_and_results_as_text(engines: Engines) -> None:
    prompt = prompt_of(engines("generic"), messages=PAST)

    assert f"[assistant]{FAMILIES['generic'].one}" in prompt
    assert "[user]<tool_response>\nnoon\n</tool_response>\n<tool_response>\nsunny\n</tool_response>[answer]" in prompt


def test_a_conversation_with_calls_needs_no_tools(engines: Engines) -> None:
    assert "(call_one" in prompt_of(engines("hermes"), messages=PAST, tools=None)


# --- malformed history ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "at"),
    [
        ([call("a", arguments='{"city": ')], "messages[1].tool_calls[0]"),
        ([call("a", arguments="[1]")], "messages[1].tool_calls[0]"),
        ([{"id": "a", "type": "function"}], "messages[1].tool_calls[0]"),
        (["get_weather"], "messages[1].tool_calls[0]"),
        ({"name": "get_weather"}, "messages[1].tool_calls[0]"),
        ([call("b"), call("a", name="")], "messages[1].tool_calls[1]"),
    ],
)
def test_a_malformed_call_is_passed_on_as_text_and_named(engines: Engines, calls: Any, at: str) -> None:
    past = [PAST[0], {"role": "assistant", "content": "So:", "tool_calls": calls}]
    result = {"role": "tool", "tool_call_id": "a", "content": "sunny"}

    asked = parsed(messages=[*past, result, {"role": "user", "content": "And?"}]).request

    assert asked.malformed == (at, "messages[2].tool_call_id")
    assert (asked.messages or ())[1]["content"].startswith("So:\n")
    assert (asked.messages or ())[2] == {"role": "user", "content": "sunny\n\nAnd?"}
    assert whole(engines("hermes"), "", messages=[*past, result]).headers["x-tourkit-ignored"].startswith(at)


def test_a_result_without_an_id_belongs_to_the_first_open_call() -> None:
    messages = [*PAST[:2], {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "noon"}]

    found = parsed(messages=messages).request.messages or ()

    assert [message["tool_call_id"] for message in found[2:]] == ["call_one", "call_two"]


# --- the older fields -------------------------------------------------------------------------------------------------

FUNCTIONS = [tool["function"] for tool in TOOLS]


@BOTH
def test_functions_are_called_in_the_older_form(engines: Engines, ask: Any) -> None:
    found = ask(engines("hermes"), FAMILIES["hermes"].two, tools=None, functions=FUNCTIONS, function_call="auto")

    shown = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    if found.chunks:
        pieces = [chunk["choices"][0]["delta"].get("function_call", {}) for chunk in found.chunks]
        assert {key: "".join(piece.get(key, "") for piece in pieces) for key in shown} == shown
    else:
        assert found.message["function_call"] == shown
    assert found.finish == "function_call"


def test_messages_in_the_older_form_are_read(engines: Engines) -> None:
    past = [
        PAST[0],
        {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]

    prompt = prompt_of(engines("hermes"), messages=past)

    assert '{"name": "get_weather", "arguments": {}}' in prompt
    assert "[tool]sunny<call_0>" in prompt


# --- requests ---------------------------------------------------------------------------------------------------------


def with_parameters(schema: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": schema}}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function.name"),
        ({"tools": with_parameters([])}, "tools[0].function.parameters"),
        ({"tools": with_parameters({"type": "array"})}, "tools[0].function.parameters"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"regex": "a+"}, "regex"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parsed(**fields)

    assert (refused.value.param, refused.value.status) == (param, 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "tool_choice": "none", "parallel_tool_calls": False},
        {"tools": with_parameters(None), "tool_choice": "any"},
        {"tools": with_parameters({}), "tool_choice": {"type": "function", "name": "f"}},
        {"tool_choice": "required", "regex": "a+"},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
    ],
)
def test_what_clients_send_is_accepted(fields: dict[str, Any]) -> None:
    assert parsed(**fields).model == "tool"


def test_a_schema_that_nothing_can_meet_is_refused_with_its_field(engines: Engines) -> None:
    tools = with_parameters({"type": "object", "properties": {"a": False}, "required": ["a"]})

    with pytest.raises(RequestError) as refused:
        whole(engines("hermes"), "", tools=tools)

    assert refused.value.param == "tools[0].function.parameters"


def test_arguments_that_the_grammar_cannot_hold_are_repaired_and_reported(engines: Engines) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
        "required": ["tags"],
        "additionalProperties": False,
    }
    text = '<tool_call>\n{"name": "f", "arguments": {"tags": ["a", "a"]}}\n</tool_call>'

    found = whole(engines("hermes"), text, tools=with_parameters(schema))

    assert json.loads(found.calls[0][1]) == {"tags": ["a"]}
    assert found.body["tourkit"]["constraint"] == "relaxed"
    assert found.body["tourkit"]["dropped"] == ["/tools/0/function/parameters/properties/tags/uniqueItems"]
    assert found.body["tourkit"]["choices"][0]["valid"]


# --- published templates ----------------------------------------------------------------------------------------------

# llama.cpp's source has them; `make` unpacks it. They are not in the repository.
PUBLISHED = next(iter(Path(__file__).parents[1].glob("build/llama.cpp/*/vendor/llama.cpp/models/templates")), None)
EXPECTED = {
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-args",
    "ibm-granite-granite-3.3-2B-Instruct": "granite-3",
    "openai-gpt-oss-120b": "gpt-oss",
    "google-gemma-2-2b-it": "gemma",
    "Qwen3.5-4B": "qwen-xml",
    "Qwen3-Coder": "qwen-xml",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen-xml",
    "google-gemma-4-31B-it": "gemma-4",
    "LFM2.5-Instruct": "lfm",
    "LFM2.5-8B-A1B": "lfm",
    "LFM2-8B-A1B": "lfm",
    "deepseek-ai-DeepSeek-V3.1": "deepseek",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-r1",
    "GLM-4.6": "generic",
}


@pytest.mark.skipif(PUBLISHED is None, reason="llama.cpp's source is not unpacked here")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_template_shows_tools_calls_and_results(name: str) -> None:
    assert PUBLISHED is not None
    source = (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    tools = ToolPrompt(template, ControlTokens({}), frozenset())
    offer = parsed(messages=PAST).request.offer
    assert offer is not None

    shown = [tool.to_json() for tool in offer.tools]
    messages, variables = tools.placed(list(parsed(messages=PAST).request.messages or ()), shown, tools.form(offer))
    prompt = template.render(messages, options=variables)

    assert tools.form(offer).name == EXPECTED[name]
    assert [text for text in ("Of a city.", "get_time", "Paris", "noon", "sunny") if text not in prompt] == []

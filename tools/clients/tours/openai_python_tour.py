"""openai-python: chat, streams, structured output, tools, several answers, responses, errors; sync and async."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
from pydantic import BaseModel, ConfigDict
from tour import KEY, MODEL, NOBODY, QUESTION, ROOT, URL, WEATHER, WEATHER_SCHEMA, check, embedder, raised, run, weather

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
LIMITS: dict[str, Any] = {"max_tokens": 24, "temperature": 0}
USER: Any = [{"role": "user", "content": QUESTION}]
TOOLS: Any = [WEATHER]


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


def aclient() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)


@check
def models() -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names, names
    assert client.models.retrieve(MODEL).id == MODEL


@check
def chat() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, **LIMITS)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


@check
def fields_that_programs_send() -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=USER,
        store=True,
        metadata={"run": "7"},
        user="me",
        safety_identifier="me",
        prompt_cache_key="tour",
        service_tier="auto",
        verbosity="low",
        reasoning_effort="low",
        modalities=["text"],
        prediction={"type": "content", "content": "Paris"},
        **LIMITS,
    )
    assert answer.choices[0].message.content


@check
def chat_without_v1() -> None:
    bare = openai.OpenAI(base_url=ROOT, api_key=KEY, max_retries=0)
    assert bare.chat.completions.create(model=MODEL, messages=USER, **LIMITS).choices


@check
async def chat_async() -> None:
    async with aclient() as many:
        calls = [many.chat.completions.create(model=MODEL, messages=USER, **LIMITS) for _ in range(4)]
        answers = await asyncio.gather(*calls)
    assert len({answer.choices[0].message.content for answer in answers}) >= 1
    assert all(answer.choices[0].message.content for answer in answers)


@check
def stream() -> None:
    whole = client.chat.completions.create(model=MODEL, messages=USER, seed=1, **LIMITS).choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}, seed=1, **LIMITS
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert whole
    assert chunks[-1].usage
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


@check
async def stream_async() -> None:
    async with aclient() as one:
        answer = await one.chat.completions.create(model=MODEL, messages=USER, stream=True, **LIMITS)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices]
    assert "".join(pieces)


@check
def stream_helper() -> None:
    with client.chat.completions.stream(model=MODEL, messages=USER, response_format=Trip, max_tokens=60) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert isinstance(final.choices[0].message.parsed, Trip)


@check
def structured_parse() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Trip, max_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, Trip)


@check
def structured_json_schema() -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=USER, response_format=schema, max_tokens=60)
    document = json.loads(answer.choices[0].message.content or "")
    assert set(document) == {"city", "days"}


@check
def structured_json_object() -> None:
    kind: Any = {"type": "json_object"}
    answer = client.chat.completions.create(model=MODEL, messages=USER, response_format=kind, max_tokens=60)
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@check
def tools_loop() -> None:
    messages: Any = [*USER]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=160
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": _result(call)}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=24
    )
    assert isinstance(answer.choices[0].message.content, str)
    assert not answer.choices[0].message.tool_calls


@check
def tools_auto() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS, **LIMITS)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


@check
def tools_named_and_streamed() -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(
        model=MODEL, messages=USER, tools=TOOLS, tool_choice=named, parallel_tool_calls=False, max_tokens=160
    ) as events:
        kinds = {event.type for event in events}
        [call] = events.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds, kinds
    _result(call)


@check
def tools_parse() -> None:
    tool = openai.pydantic_function_tool(Trip, name="book")
    answer = client.chat.completions.parse(
        model=MODEL, messages=USER, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=160
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Trip)


@check
def several_answers() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, n=4, max_tokens=8, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    chunks = client.chat.completions.create(model=MODEL, messages=USER, n=2, max_tokens=8, stream=True)
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}


@check
def logprobs() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=3, **LIMITS)
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content
    assert all(len(token.top_logprobs) == 3 for token in content)


@check
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt=["one two", "three four"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]


@check
def responses() -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24)
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text
    again = client.responses.create(
        model=MODEL, input="And of Norway?", previous_response_id=answer.id, max_output_tokens=24
    )
    assert again.usage
    assert answer.usage
    assert again.usage.input_tokens > answer.usage.input_tokens
    assert client.responses.retrieve(answer.id).id == answer.id
    client.responses.delete(answer.id)


@check
def responses_stream() -> None:
    """With a schema, because the client takes an answer that was cut off as an error."""
    with client.responses.stream(model=MODEL, input=QUESTION, text_format=Trip, max_output_tokens=60) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert isinstance(final.output_parsed, Trip)


@check
def responses_stream_that_is_cut_off() -> None:
    events = list(client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=2, stream=True))
    assert events[-1].type in ("response.incomplete", "response.completed")
    assert [event.sequence_number for event in events] == list(range(len(events)))


@check
def responses_parse() -> None:
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Trip, max_output_tokens=60)
    assert isinstance(answer.output_parsed, Trip)


@check
def responses_tools_loop() -> None:
    tool: Any = {"type": "function", "strict": True} | WEATHER["function"]
    answer = client.responses.create(
        model=MODEL, input=QUESTION, tools=[tool], tool_choice="required", parallel_tool_calls=False
    )
    [call] = [item for item in answer.output if item.type == "function_call"]
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": _answer(call.arguments)}
    answer = client.responses.create(
        model=MODEL,
        input=[output],
        previous_response_id=answer.id,
        tools=[tool],
        tool_choice="none",
        max_output_tokens=24,
    )
    assert answer.output_text


@check
def embeddings() -> None:
    """The client asks for base64 if a program does not ask for `float`."""
    own: Any = {"model": embedder(), "input": ["one", "two"]}
    vectors = [each.embedding for each in client.embeddings.create(**own).data]
    plain = [each.embedding for each in client.embeddings.create(encoding_format="float", **own).data]
    assert len(vectors) == 2
    assert all(abs(a - b) < 1e-6 for both in zip(vectors, plain, strict=True) for a, b in zip(*both, strict=True))


@check
def errors() -> None:
    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(**{"model": MODEL, "messages": USER, "max_tokens": 4} | fields)

    raised(openai.NotFoundError, lambda: ask(model=NOBODY), NOBODY)
    error = raised(openai.BadRequestError, lambda: ask(temperature=9), "temperature")
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "temperature"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    raised(openai.BadRequestError, lambda: ask(messages=[{"role": "user", "content": [image]}]), "text-only")
    error = raised(openai.BadRequestError, lambda: ask(max_tokens=10**6), "This model's maximum context length is")
    assert isinstance(error, openai.BadRequestError)
    assert error.code == "context_length_exceeded"


def _result(call: Any) -> str:
    assert call.function.name == "get_weather"
    return _answer(call.function.arguments)


def _answer(arguments: str) -> str:
    return weather(**json.loads(arguments))


run()

"""anthropic-python: messages, streams, structured output, tools with a loop, the tool runner, counts, errors."""

from __future__ import annotations

import json
from typing import Any, Literal

import anthropic
from anthropic import beta_tool
from pydantic import BaseModel, ConfigDict
from tour import KEY, MODEL, NOBODY, QUESTION, ROOT, WEATHER_SCHEMA, check, raised, run, weather

client = anthropic.Anthropic(base_url=ROOT, api_key=KEY, max_retries=0)
USER: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"name": "get_weather", "description": "The weather forecast of a city.", "input_schema": WEATHER_SCHEMA}
ONE_CALL: Any = {"type": "any", "disable_parallel_tool_use": True}


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


def ask(**fields: Any) -> Any:
    return client.messages.create(**{"model": MODEL, "messages": USER, "max_tokens": 24} | fields)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@check
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]


@check
def chat() -> None:
    answer = ask()
    assert answer.type == "message"
    assert text_of(answer)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert text_of(ask(system="Be brief."))


@check
def blocks() -> None:
    """What agents send: a system prompt in blocks, cache_control, metadata, and a text in blocks."""
    cached: Any = {"type": "ephemeral"}
    system = [{"type": "text", "text": "Be brief.", "cache_control": cached}]
    content = [{"type": "text", "text": QUESTION, "cache_control": cached}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Paris."}, *USER]
    assert text_of(ask(system=system, messages=messages, metadata={"user_id": "me"}, stop_sequences=["\n\n\n"]))


@check
async def chat_async() -> None:
    async with anthropic.AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0) as one:
        assert text_of(await one.messages.create(model=MODEL, messages=USER, max_tokens=24))


@check
def stream() -> None:
    events = list(ask(stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert {"content_block_start", "content_block_delta", "content_block_stop"} <= set(kinds)


@check
def stream_helper() -> None:
    with client.messages.stream(model=MODEL, messages=USER, max_tokens=24) as answer:
        text = "".join(answer.text_stream)
        final = answer.get_final_message()
    assert text
    assert text_of(final) == text
    assert final.usage.output_tokens > 0


@check
async def stream_async() -> None:
    one = anthropic.AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0)
    async with one, one.messages.stream(model=MODEL, messages=USER, max_tokens=24) as answer:
        pieces = [piece async for piece in answer.text_stream]
    assert "".join(pieces)


@check
def structured_parse() -> None:
    answer = client.messages.parse(model=MODEL, messages=USER, max_tokens=80, output_format=Trip)
    assert isinstance(answer.parsed_output, Trip)


@check
def structured_json_schema() -> None:
    config = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    weather(**json.loads(text_of(ask(output_config=config, max_tokens=80))))


@check
def tools_loop() -> None:
    asked = ask(tools=[TOOL], tool_choice=ONE_CALL, max_tokens=120)
    assert asked.stop_reason == "tool_use"
    [call] = [block for block in asked.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)}
    turns = [*USER, {"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
    assert text_of(ask(messages=turns, tools=[TOOL], tool_choice={"type": "none"}))


@check
def tools_named_and_streamed() -> None:
    named: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    with client.messages.stream(model=MODEL, messages=USER, max_tokens=120, tools=[TOOL], tool_choice=named) as answer:
        kinds = {event.type for event in answer}
        final = answer.get_final_message()
    assert "input_json" in kinds, kinds
    [call] = [block for block in final.content if block.type == "tool_use"]
    weather(**dict(call.input))  # type: ignore[call-overload]


@check
def tools_auto() -> None:
    assert ask(tools=[TOOL]).content


@check
def tool_runner() -> str:
    """The runner keeps `tool_choice`, so it ends after its number of turns."""

    @beta_tool
    def get_weather(city: str, days: int) -> str:
        """The weather forecast of a city.

        Args:
            city: The city.
            days: For how many days.
        """
        return json.dumps({"city": city, "days": days})

    runner = client.beta.messages.tool_runner(
        model=MODEL, messages=USER, max_tokens=120, tools=[get_weather], tool_choice=ONE_CALL, max_iterations=2
    )
    turns = list(runner)
    assert any(block.type == "tool_use" for block in turns[0].content)
    return f"{len(turns)} turns"


@check
def count_tokens() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=USER, tools=[TOOL]).input_tokens
    assert counted > client.messages.count_tokens(model=MODEL, messages=USER).input_tokens > 0
    usage = ask().usage  # tokens that the KV cache had are counted apart
    both = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert client.messages.count_tokens(model=MODEL, messages=USER).input_tokens == both


@check
def thinking() -> None:
    """A model that cannot think accepts the field."""
    assert ask(thinking={"type": "disabled"}).content


@check
def errors() -> None:
    raised(anthropic.NotFoundError, lambda: ask(model=NOBODY), NOBODY)
    raised(anthropic.BadRequestError, lambda: ask(max_tokens=0), "max_tokens")
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    raised(anthropic.BadRequestError, lambda: ask(messages=[{"role": "user", "content": [image]}]), "text-only")
    long = [{"role": "user", "content": "word " * 20000}]
    error = raised(anthropic.BadRequestError, lambda: ask(messages=long), "context")
    assert isinstance(error, anthropic.BadRequestError)
    assert error.body["error"]["type"] == "invalid_request_error", error.body  # type: ignore[index]


run()

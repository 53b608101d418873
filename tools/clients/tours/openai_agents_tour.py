"""openai-agents: an agent with tools, typed output, a stream, a handoff and a session, over both APIs, and errors."""

from __future__ import annotations

from typing import Any, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, run, weather

set_tracing_disabled(True)
# Over responses, the library takes an answer that was cut off as an error. Small models end their answers to this.
SHORT = "Is it true? Answer yes or no."
Kind = type[OpenAIChatCompletionsModel] | type[OpenAIResponsesModel]


class Trip(BaseModel):
    city: Literal["Oslo", "Paris"]
    days: int


@function_tool
def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
    """The weather forecast of a city."""
    return weather(city, days)


def agent(kind: Kind, model: str = MODEL, choice: str | None = None, **fields: Any) -> Agent[Any]:
    """Return an agent. After the first call of a tool, the library sets `tool_choice` back by itself."""
    client = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    settings = ModelSettings(temperature=0, max_tokens=80, tool_choice=choice)
    return Agent(name="Guide", instructions="Be brief.", model=kind(model, client), model_settings=settings, **fields)


async def chat(kind: Kind) -> None:
    result = await Runner.run(agent(kind), SHORT)
    assert result.final_output


async def stream(kind: Kind) -> None:
    result = Runner.run_streamed(agent(kind), SHORT)
    kinds = {event.type async for event in result.stream_events()}
    assert "raw_response_event" in kinds
    assert result.final_output


async def structured(kind: Kind) -> None:
    result = await Runner.run(agent(kind, output_type=Trip), QUESTION)
    assert isinstance(result.final_output, Trip)


async def tools_loop(kind: Kind) -> None:
    guide = agent(kind, choice="required", tools=[get_weather])
    result = await Runner.run(guide, QUESTION, max_turns=6)
    kinds = [item.type for item in result.new_items]
    assert {"tool_call_item", "tool_call_output_item"} <= set(kinds), kinds
    assert result.final_output


async def handoff(kind: Kind) -> None:
    """`required` leaves only the handoff to choose from."""
    other = agent(kind)
    result = await Runner.run(agent(kind, choice="required", handoffs=[other]), QUESTION, max_turns=6)
    assert result.last_agent is other
    assert result.final_output


async def session(kind: Kind) -> None:
    memory = SQLiteSession("tour")
    await Runner.run(agent(kind, output_type=Trip), QUESTION, session=memory)
    result = await Runner.run(agent(kind, output_type=Trip), "And of Norway?", session=memory)
    assert len(await memory.get_items()) == 4
    assert result.final_output


async def errors(kind: Kind) -> None:
    try:
        await Runner.run(agent(kind, model=NOBODY), QUESTION)
    except openai.NotFoundError as error:
        assert NOBODY in str(error), error
    else:
        raise AssertionError("no error was raised")


def add(task: Any, kind: Kind, api: str) -> None:
    async def one() -> None:
        await task(kind)

    one.__name__ = f"{task.__name__}_over_{api}"
    check(one)


for each in (chat, stream, structured, tools_loop, handoff, session, errors):
    add(each, OpenAIChatCompletionsModel, "chat")
    add(each, OpenAIResponsesModel, "responses")
run()

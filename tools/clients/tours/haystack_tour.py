"""Haystack: OpenAIChatGenerator, streams, structured output, tools, an agent, a pipeline, responses, errors."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, Document
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from pydantic import BaseModel
from tour import KEY, MODEL, NOBODY, QUESTION, URL, WEATHER_SCHEMA, check, embedder, raised, run, weather

USER = [ChatMessage.from_user(QUESTION)]


class Trip(BaseModel):
    city: Literal["Oslo", "Paris"]
    days: int


def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
    """The weather forecast of a city."""
    return weather(city, days)


TOOL = create_tool_from_function(get_weather)


def generator(name: str = MODEL, kind: Any = OpenAIChatGenerator, **fields: Any) -> Any:
    asked = {"max_tokens": 60, "temperature": 0} if kind is OpenAIChatGenerator else {"max_output_tokens": 60}
    own: Any = {"generation_kwargs": asked | fields.pop("asked", {}), "max_retries": 0}
    return kind(api_key=Secret.from_token(KEY), model=name, api_base_url=URL, **own | fields)


@check
def chat() -> None:
    [answer] = generator().run(USER)["replies"]
    assert answer.text
    assert answer.meta["usage"]["completion_tokens"] > 0


@check
async def chat_async() -> None:
    [answer] = (await generator().run_async(USER))["replies"]
    assert answer.text


@check
def stream() -> None:
    pieces: list[str] = []
    [answer] = generator(streaming_callback=lambda chunk: pieces.append(chunk.content)).run(USER)["replies"]
    assert answer.text == "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1


@check
def several_answers() -> None:
    assert len(generator(asked={"n": 3, "max_tokens": 8}).run(USER)["replies"]) == 3


@check
def structured_pydantic() -> None:
    [answer] = generator(asked={"response_format": Trip}).run(USER)["replies"]
    Trip.model_validate_json(answer.text)


@check
def structured_json_schema() -> None:
    kind = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA, "strict": True}}
    [answer] = generator(asked={"response_format": kind}).run(USER)["replies"]
    weather(**json.loads(answer.text))


@check
def structured_stream() -> None:
    """Haystack takes no class of pydantic here, only a schema."""
    kind = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA}}
    made = generator(asked={"response_format": kind}, streaming_callback=lambda chunk: None)
    weather(**json.loads(made.run(USER)["replies"][0].text))


@check
def tools_loop() -> None:
    made = generator(tools=[TOOL])
    [asked] = made.run(USER, generation_kwargs={"tool_choice": "required", "parallel_tool_calls": False})["replies"]
    call = asked.tool_call
    result = ChatMessage.from_tool(TOOL.invoke(**call.arguments), origin=call)
    [answer] = made.run([*USER, asked, result], generation_kwargs={"tool_choice": "none"})["replies"]
    assert answer.text


@check
def tools_streamed_and_strict() -> None:
    made = generator(tools=[TOOL], tools_strict=True, streaming_callback=lambda chunk: None)
    [asked] = made.run(USER, generation_kwargs={"tool_choice": "required", "parallel_tool_calls": False})["replies"]
    weather(**asked.tool_call.arguments)


@check
def agent() -> None:
    """The model must call the tool, and the agent ends after it: `exit_conditions`."""
    made = Agent(
        chat_generator=generator(asked={"tool_choice": "required", "parallel_tool_calls": False}),
        tools=[TOOL],
        exit_conditions=["get_weather"],
        raise_on_tool_invocation_failure=True,
    )
    answer = made.run(messages=USER)
    assert answer["messages"][-1].tool_call_result.result


@check
def agent_with_a_final_answer() -> None:
    """The model is free, so a small one may answer without a call."""
    answer = Agent(chat_generator=generator(), tools=[TOOL], max_agent_steps=4).run(messages=USER)
    assert len(answer["messages"]) > 1


@check
def pipeline() -> None:
    made = Pipeline()
    made.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("{{question}}")]))
    made.add_component("model", generator())
    made.connect("prompt.prompt", "model.messages")
    assert made.run({"prompt": {"question": QUESTION}})["model"]["replies"][0].text


@check
def responses() -> None:
    [answer] = generator(kind=OpenAIResponsesChatGenerator).run(USER)["replies"]
    assert answer.text


@check
def embeddings() -> None:
    own: Any = {"model": embedder(), "api_base_url": URL, "api_key": Secret.from_token(KEY)}
    assert OpenAITextEmbedder(**own).run("one")["embedding"]
    documents = OpenAIDocumentEmbedder(progress_bar=False, **own).run(
        [Document(content="one"), Document(content="two")]
    )["documents"]
    assert all(document.embedding for document in documents)


@check
def errors() -> None:
    raised(openai.NotFoundError, lambda: generator(NOBODY).run(USER), NOBODY)
    raised(openai.BadRequestError, lambda: generator(asked={"temperature": 9}).run(USER), "temperature")


run()

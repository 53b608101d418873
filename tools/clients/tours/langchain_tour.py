"""LangChain's ChatOpenAI: invoke, batch, stream, bind_tools, structured output by each method, an agent, errors."""

from __future__ import annotations

from typing import Any, Literal

import openai
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, embedder, raised, run, weather


class Trip(BaseModel):
    """A trip."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


@tool
def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
    """The weather forecast of a city."""
    return weather(city, days)


def chat_model(**fields: Any) -> ChatOpenAI:
    options = {"model": MODEL, "base_url": URL, "api_key": KEY, "max_tokens": 80, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**options | fields)


@check
def chat() -> None:
    answer = chat_model().invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata
    assert answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


@check
async def chat_async() -> None:
    assert (await chat_model().ainvoke(QUESTION)).content


@check
def batch() -> None:
    assert len(chat_model(max_tokens=8).batch([QUESTION] * 4)) == 4


@check
def stream() -> None:
    chunks = list(chat_model(stream_usage=True).stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks)
    assert any(chunk.usage_metadata for chunk in chunks)


@check
def tools_loop() -> None:
    bound = chat_model().bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    asked = bound.invoke(QUESTION)
    assert isinstance(asked, AIMessage)
    [call] = asked.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    free = chat_model().bind_tools([get_weather], tool_choice="none")
    assert free.invoke([HumanMessage(QUESTION), asked, result]).content


@check
def tools_named_and_streamed() -> None:
    bound = chat_model().bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False, strict=True)
    whole: Any = None
    for chunk in bound.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    [call] = whole.tool_calls
    weather(**call["args"])


def structured(method: str, **fields: Any) -> None:
    answer = chat_model().with_structured_output(Trip, method=method, **fields).invoke(f"{QUESTION} Answer as JSON.")
    assert isinstance(answer, Trip), repr(answer)


@check
def structured_json_schema() -> None:
    structured("json_schema")


@check
def structured_json_schema_strict() -> None:
    structured("json_schema", strict=True)


@check
def structured_function_calling() -> None:
    structured("function_calling")


@check
def structured_json_mode() -> None:
    """This method sends no schema, so a small model seldom follows it: the text is JSON, and that is all."""
    answer: Any = chat_model().with_structured_output(method="json_mode").invoke(f"{QUESTION} Answer as JSON.")
    assert isinstance(answer, dict)


@check
def agent() -> None:
    """The first turn must call the tool; later ones may not, as a small model does not end by itself."""
    from langchain.agents.middleware import wrap_model_call

    @wrap_model_call
    def choose(request: Any, handler: Any) -> Any:
        done = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if done else "required"))

    made = create_agent(chat_model(), tools=[get_weather], middleware=[choose])
    answer = made.invoke({"messages": [HumanMessage(QUESTION)]})
    kinds = [type(message).__name__ for message in answer["messages"]]
    assert kinds[:3] == ["HumanMessage", "AIMessage", "ToolMessage"], kinds
    assert answer["messages"][-1].content


@check
def agent_with_structured_answer() -> None:
    made = create_agent(chat_model(), tools=[], response_format=Trip)
    answer = made.invoke({"messages": [HumanMessage(QUESTION)]})
    assert isinstance(answer["structured_response"], Trip)


@check
def completions() -> None:
    model = OpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=8, n=2, best_of=2)
    found = model.generate(["one two", "three four"])
    assert [len(each) for each in found.generations] == [2, 2]


@check
def responses() -> None:
    assert chat_model(use_responses_api=True, max_tokens=24).invoke(QUESTION).content


@check
def embeddings() -> None:
    """By default the class makes token ids with a table that it downloads. This option sends texts."""
    model = OpenAIEmbeddings(model=embedder(), base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
    assert len(model.embed_documents(["one", "two"])) == 2
    assert model.embed_query("one")


@check
def errors() -> None:
    raised(openai.NotFoundError, lambda: chat_model(model=NOBODY).invoke(QUESTION), NOBODY)
    raised(openai.BadRequestError, lambda: chat_model(temperature=9).invoke(QUESTION), "temperature")
    raised(openai.BadRequestError, lambda: chat_model().invoke("word " * 20000), "maximum context length")


run()

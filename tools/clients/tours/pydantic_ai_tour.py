"""pydantic-ai: chat, streams, each kind of output, a tool loop and errors, over chat completions and over responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, ModelHTTPError, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, embedder, raised, run, weather

Kind = type[OpenAIChatModel] | type[OpenAIResponsesModel]


class Trip(BaseModel):
    city: Literal["Oslo", "Paris"]
    days: int


def agent(kind: Kind, model: str = MODEL, **fields: Any) -> Agent[None, Any]:
    """Return an agent whose HTTP client does not repeat a request: a failure is a finding of the tour."""
    client = AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)
    own: Any = {"model_settings": {"max_tokens": 80, "temperature": 0}}
    return Agent(kind(model, provider=OpenAIProvider(openai_client=client)), **own | fields)


def chat(kind: Kind) -> None:
    result = agent(kind, instructions="Be brief.").run_sync(QUESTION)
    assert result.output
    assert result.usage.output_tokens > 0


async def stream(kind: Kind) -> None:
    async with agent(kind).run_stream(QUESTION) as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    assert "".join(pieces)


def history(kind: Kind) -> None:
    guide = agent(kind)
    first = guide.run_sync(QUESTION)
    assert guide.run_sync("And of Norway?", message_history=first.all_messages()).output


def structured(kind: Kind) -> None:
    """The default is a tool with the schema, and `tool_choice: required`."""
    assert isinstance(agent(kind, output_type=Trip).run_sync(QUESTION).output, Trip)


def structured_tool(kind: Kind) -> None:
    made = agent(kind, output_type=ToolOutput(Trip, name="book", strict=True))
    assert isinstance(made.run_sync(QUESTION).output, Trip)


def structured_native(kind: Kind) -> None:
    assert isinstance(agent(kind, output_type=NativeOutput(Trip)).run_sync(QUESTION).output, Trip)


def structured_prompted(kind: Kind) -> str:
    """The schema is a text in the prompt, and the answer any JSON. A small model may not follow it."""
    try:
        assert isinstance(agent(kind, output_type=PromptedOutput(Trip), retries=0).run_sync(QUESTION).output, Trip)
    except UnexpectedModelBehavior as error:
        return f"the prompt alone has the schema, and the model did not follow it: {type(error).__name__}"
    return ""


async def structured_stream(kind: Kind) -> None:
    async with agent(kind, output_type=Trip).run_stream(QUESTION) as result:
        found = [partial async for partial in result.stream_output()]
    assert isinstance(found[-1], Trip)


def tools_loop(kind: Kind) -> None:
    """The first request must call the tool; later ones are free, so the agent ends."""

    class First(AbstractCapability[None]):
        def get_model_settings(self) -> Any:
            def choose(run: RunContext[None]) -> Any:
                return {"tool_choice": "required" if run.run_step == 1 else "none"}

            return choose

    made = agent(kind, capabilities=[First()])
    cities = []

    @made.tool_plain
    def get_weather(city: Literal["Oslo", "Paris", "Lima"], days: int) -> str:
        """The weather forecast of a city."""
        cities.append(city)
        return weather(city, days)

    assert made.run_sync(QUESTION).output
    assert cities


def errors(kind: Kind) -> None:
    error = raised(ModelHTTPError, lambda: agent(kind, model=NOBODY).run_sync(QUESTION), NOBODY)
    assert isinstance(error, ModelHTTPError)
    assert error.status_code == 404
    hot: Any = {"temperature": 9}
    raised(ModelHTTPError, lambda: agent(kind, model_settings=hot).run_sync(QUESTION), "temperature")


@check
def embeddings() -> None:
    own = OpenAIProvider(base_url=URL, api_key=KEY)
    found = Embedder(OpenAIEmbeddingModel(embedder(), provider=own)).embed_documents_sync(["one", "two"])
    assert len(found.embeddings) == 2


def add(task: Callable[[Kind], Any], kind: Kind, api: str) -> None:
    def one() -> Any:
        return task(kind)

    one.__name__ = f"{task.__name__}_over_{api}"
    check(one)


TASKS = (chat, stream, history, structured, structured_tool, structured_native, structured_prompted, structured_stream)
for each in (*TASKS, tools_loop, errors):
    add(each, OpenAIChatModel, "chat")
    add(each, OpenAIResponsesModel, "responses")
run()

"""LlamaIndex's OpenAILike: complete, chat, streams, structured output, tools, two agents, errors."""

from __future__ import annotations

from typing import Any, Literal

import openai
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict
from tour import KEY, MODEL, NOBODY, QUESTION, URL, check, embedder, raised, run, weather

City = Literal["Oslo", "Paris", "Lima"]
USER = [ChatMessage(role="user", content=QUESTION)]


class Trip(BaseModel):
    """A trip."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


def model(name: str = MODEL, **fields: Any) -> OpenAILike:
    own: Any = {"is_chat_model": True, "is_function_calling_model": True, "max_retries": 0, "context_window": 2048}
    own |= {"model": name, "api_base": URL, "api_key": KEY, "max_tokens": 60, "temperature": 0}
    return OpenAILike(**own | fields)


def get_weather(city: City, days: int) -> str:
    """The weather forecast of a city."""
    return weather(city, days)


get_weather.__annotations__ = {"city": City, "days": int, "return": str}  # LlamaIndex does not resolve texts
TOOL = FunctionTool.from_defaults(get_weather)


@check
def chat() -> None:
    assert model().chat(USER).message.content
    assert model().complete(QUESTION).text


@check
async def chat_async() -> None:
    assert (await model().achat(USER)).message.content


@check
def completion_route() -> None:
    assert model(is_chat_model=False).complete("one two").text


@check
def stream() -> None:
    assert "".join(piece.delta or "" for piece in model().stream_chat(USER))
    assert "".join(piece.delta or "" for piece in model().stream_complete(QUESTION))


@check
def structured_by_tools() -> None:
    """`structured_predict` of a model that calls tools: `tool_choice: required`."""
    assert isinstance(model().structured_predict(Trip, PromptTemplate(QUESTION)), Trip)
    assert isinstance(model().as_structured_llm(Trip).chat(USER).raw, Trip)


@check
def structured_by_schema() -> None:
    """The schema as `response_format`."""
    found = model(should_use_structured_outputs=True).structured_predict(Trip, PromptTemplate(QUESTION))
    assert isinstance(found, Trip)


@check
def structured_by_prompt() -> str:
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Trip), prompt_template_str=QUESTION, llm=model()
    )
    try:
        assert isinstance(program(), Trip)
    except ValueError as error:
        return f"the prompt alone has the schema, and the model did not follow it: {type(error).__name__}"
    return ""


@check
def structured_stream() -> None:
    """By the schema. By tools, the library sends no `tool_choice` here, and the model may answer with text."""
    llm = model(should_use_structured_outputs=True)
    found = list(llm.stream_structured_predict(Trip, PromptTemplate(QUESTION)))
    assert getattr(found[-1], "city", None) in ("Oslo", "Paris"), found


@check
def tools_loop() -> None:
    llm = model()
    asked = llm.chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True)
    [call] = llm.get_tool_calls_from_response(asked)
    result = ChatMessage(
        role="tool", content=str(TOOL(**call.tool_kwargs)), additional_kwargs={"tool_call_id": call.tool_id}
    )
    answer = llm.chat_with_tools([TOOL], chat_history=[*USER, asked.message, result], tool_choice="none")
    assert answer.message.content


@check
def tools_streamed() -> None:
    llm = model()
    *_, last = llm.stream_chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True)
    [call] = llm.get_tool_calls_from_response(last)
    weather(**call.tool_kwargs)


@check
async def agent() -> None:
    """The first request must call the tool; later ones are free."""
    made = FunctionAgent(tools=[TOOL], llm=model(), initial_tool_choice="get_weather", allow_parallel_tool_calls=False)
    answer = await made.run(QUESTION)
    assert [call.tool_name for call in answer.tool_calls] == ["get_weather"]
    assert answer.response.content is not None


@check
async def agent_by_prompt() -> str:
    """ReAct describes tools in the prompt and reads the calls out of the text. A small model may not follow."""
    from workflows.errors import WorkflowRuntimeError

    try:
        await ReActAgent(tools=[TOOL], llm=model(context_window=8192, max_tokens=30)).run(QUESTION, max_iterations=2)
    except (WorkflowRuntimeError, ValueError) as error:
        return f"the model did not follow the prompt: {type(error).__name__}: {error}"
    return ""


@check
def embeddings() -> None:
    model = OpenAILikeEmbedding(embedder(), api_base=URL, api_key=KEY)
    assert len(model.get_text_embedding_batch(["one", "two"])) == 2


@check
def errors() -> None:
    raised(openai.NotFoundError, lambda: model(NOBODY).chat(USER), NOBODY)
    raised(openai.BadRequestError, lambda: model(temperature=1.9, additional_kwargs={"top_p": 9}).chat(USER), "top_p")


run()

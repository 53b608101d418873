"""smolagents: the model alone, ToolCallingAgent and CodeAgent with a loop to the final answer, streams, errors."""

from __future__ import annotations

import json
from typing import Any

import openai
from smolagents import ChatMessage, CodeAgent, LogLevel, OpenAIModel, ToolCallingAgent, tool
from smolagents.utils import AgentGenerationError
from tour import KEY, MODEL, NOBODY, QUESTION, URL, WEATHER_SCHEMA, check, raised, run, weather

USER: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]


def model(name: str = MODEL, **fields: Any) -> OpenAIModel:
    own: Any = {"max_tokens": 60, "temperature": 0, "client_kwargs": {"max_retries": 0}}
    return OpenAIModel(name, api_base=URL, api_key=KEY, **own | fields)


@tool
def get_weather(city: str, days: int) -> str:
    """The weather forecast of a city.

    Args:
        city: The city.
        days: For how many days.
    """
    return weather("Oslo", days)


def short(agent: Any) -> Any:
    """Return the agent with a short system prompt. Its own has up to 4,400 tokens: too many for the tiny model."""
    agent.prompt_templates["system_prompt"] = "Solve the task with the tools, then call final_answer."
    return agent


@check
def chat() -> None:
    answer = model().generate(USER)
    assert isinstance(answer, ChatMessage)
    assert answer.content
    assert answer.token_usage
    assert answer.token_usage.output_tokens > 0


@check
def stream() -> None:
    pieces = list(model().generate_stream(USER))
    assert "".join(piece.content or "" for piece in pieces)
    assert pieces[-1].token_usage


@check
def structured() -> None:
    kind: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA, "strict": True}}
    weather(**json.loads(model().generate(USER, response_format=kind).content))


@check
def tools() -> None:
    answer = model().generate(USER, tools_to_call_from=[get_weather])
    assert answer.tool_calls
    assert answer.tool_calls[0].function.name == "get_weather"


@check
def tools_loop() -> str:
    """Every step must call a tool, and `final_answer` is one of them.

    The model may never choose it. Then the agent asks for the answer by itself after the last step.
    """
    agent = short(ToolCallingAgent(tools=[get_weather], model=model(), max_steps=3, verbosity_level=LogLevel.OFF))
    answer = agent.run(QUESTION)
    steps = [step for step in agent.memory.steps if getattr(step, "tool_calls", None)]
    assert steps, agent.memory.steps
    assert answer is not None
    return f"{len(steps)} steps"


@check
def tools_loop_streamed() -> None:
    agent = short(
        ToolCallingAgent(
            tools=[get_weather], model=model(), max_steps=2, stream_outputs=True, verbosity_level=LogLevel.OFF
        )
    )
    assert list(agent.run(QUESTION, stream=True))
    assert not [step for step in agent.memory.steps if isinstance(getattr(step, "error", None), AgentGenerationError)]


@check
def code_agent() -> str:
    """The model must write Python. A small one cannot, so the steps have errors of the code, and none of the server."""
    notes = []
    for structured_steps in (False, True):
        made = CodeAgent(
            tools=[get_weather],
            model=model(),
            max_steps=2,
            use_structured_outputs_internally=structured_steps,
            verbosity_level=LogLevel.OFF,
        )
        agent = short(made)
        assert agent.run(QUESTION) is not None
        errors = [step.error for step in agent.memory.steps if getattr(step, "error", None)]
        assert not [error for error in errors if isinstance(error, AgentGenerationError)], errors
        notes.append(f"{len(errors)} steps without valid code")
    return ", ".join(notes)


@check
def errors() -> None:
    raised(openai.NotFoundError, lambda: model(NOBODY).generate(USER), NOBODY)
    raised(openai.BadRequestError, lambda: model(temperature=9).generate(USER), "temperature")
    agent = ToolCallingAgent(tools=[], model=model(NOBODY), max_steps=1, verbosity_level=LogLevel.OFF)
    raised(AgentGenerationError, lambda: agent.run(QUESTION), NOBODY)


run()

"""LiteLLM: chat, streams, structured output, tools, text completion, responses, its router, and errors.

The model is `hosted_vllm/NAME` or `openai/NAME`; both speak OpenAI's API. Tours run each part with both.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel, ConfigDict
from tour import KEY, MODEL, NOBODY, QUESTION, URL, WEATHER, WEATHER_SCHEMA, check, embedder, raised, run, weather

litellm.telemetry = False
litellm.num_retries = 0
USER: Any = [{"role": "user", "content": QUESTION}]
PROVIDERS = ("openai", "hosted_vllm")


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Paris"]
    days: int


def options(provider: str = "openai", model: str = MODEL, **fields: Any) -> dict[str, Any]:
    own = {"model": f"{provider}/{model}", "api_base": URL, "api_key": KEY, "max_retries": 0}
    return own | {"messages": USER, "max_tokens": 80, "temperature": 0} | fields


@check
def chat() -> None:
    for provider in PROVIDERS:
        answer = litellm.completion(**options(provider, max_tokens=24))
        assert answer.choices[0].message.content
        assert answer.usage.total_tokens > 0


@check
async def chat_async() -> None:
    assert (await litellm.acompletion(**options(max_tokens=24))).choices[0].message.content


@check
def stream() -> None:
    for provider in PROVIDERS:
        chunks = list(litellm.completion(**options(provider, stream=True, stream_options={"include_usage": True})))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].message.content
        assert whole.usage.completion_tokens > 0


@check
def structured_pydantic() -> None:
    for provider in PROVIDERS:
        answer = litellm.completion(**options(provider, response_format=Trip))
        Trip.model_validate_json(answer.choices[0].message.content)


@check
def structured_json_schema() -> None:
    kind = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA, "strict": True}}
    weather(**json.loads(litellm.completion(**options(response_format=kind)).choices[0].message.content))


@check
def structured_json_object() -> None:
    answer = litellm.completion(**options(response_format={"type": "json_object"}))
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@check
def tools_loop() -> None:
    for provider in PROVIDERS:
        offered: Any = {"tools": [WEATHER], "parallel_tool_calls": False}
        asked = litellm.completion(**options(provider, tool_choice="required", **offered)).choices[0]
        assert asked.finish_reason == "tool_calls"
        [call] = asked.message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
        turns = [*USER, asked.message, result]
        answer = litellm.completion(**options(provider, messages=turns, tool_choice="none", **offered))
        assert answer.choices[0].message.content


@check
def tools_streamed() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    offered: Any = {"tools": [WEATHER], "parallel_tool_calls": False}
    chunks = list(litellm.completion(**options(tool_choice=named, stream=True, **offered)))
    [call] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    weather(**json.loads(call.function.arguments))


@check
def text_completion() -> None:
    own: Any = {"model": f"text-completion-openai/{MODEL}", "api_base": URL, "api_key": KEY, "max_tokens": 8}
    assert litellm.text_completion(prompt="one two", **own).choices[0].text


@check
def responses() -> None:
    own: Any = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}
    assert litellm.responses(input=QUESTION, max_output_tokens=24, **own).output


@check
def anthropic_messages_over_chat() -> None:
    """LiteLLM's own bridge: it takes Anthropic's messages and sends chat requests."""
    import asyncio

    own: Any = {"model": f"hosted_vllm/{MODEL}", "api_base": URL, "api_key": KEY}
    answer: Any = asyncio.run(litellm.anthropic.messages.acreate(messages=USER, max_tokens=24, **own))
    assert answer["content"][0]["text"]


@check
def router() -> None:
    own = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}
    made = litellm.Router(model_list=[{"model_name": "local", "litellm_params": own}], num_retries=0)
    assert made.completion(model="local", messages=USER, max_tokens=24).choices[0].message.content


@check
def embeddings() -> None:
    own: Any = {"model": f"openai/{embedder()}", "api_base": URL, "api_key": KEY}
    assert len(litellm.embedding(input=["one", "two"], encoding_format="float", **own).data) == 2


@check
def errors() -> None:
    def ask(**fields: Any) -> Any:
        return litellm.completion(**options(**fields))

    raised(litellm.NotFoundError, lambda: ask(model=NOBODY), NOBODY)
    raised(litellm.BadRequestError, lambda: ask(temperature=9), "temperature")
    raised(litellm.ContextWindowExceededError, lambda: ask(max_tokens=10**6), "maximum context length")


run()

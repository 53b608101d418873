"""ollama-python: chat, generate, streams, structured output, tools, the lists, errors; sync and async."""

from __future__ import annotations

import json
from typing import Any

import ollama
from tour import MODEL, NOBODY, QUESTION, ROOT, WEATHER_SCHEMA, check, embedder, raised, run, weather

client = ollama.Client(ROOT)
USER: Any = [{"role": "user", "content": QUESTION}]
LIMITS: Any = {"num_predict": 24, "temperature": 0, "num_ctx": 2048, "seed": 1}


def get_weather(city: str, days: int) -> str:
    """The weather forecast of a city.

    Args:
        city: The city.
        days: For how many days.
    """
    return json.dumps({"city": city, "days": days})


@check
def lists() -> None:
    names = [model.model for model in client.list().models]
    assert any(name and name.split(":")[0] == MODEL for name in names), names
    assert client.show(MODEL).modelinfo
    assert "completion" in (client.show(MODEL).capabilities or [])
    assert client.ps().models


@check
def chat() -> None:
    answer = client.chat(MODEL, USER, options=LIMITS)
    assert answer.message.content
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert answer.eval_count
    assert (answer.total_duration or 0) > 1000  # nanoseconds


@check
def name_with_a_tag() -> None:
    assert client.chat(f"{MODEL}:latest", USER, options=LIMITS).message.content


@check
async def chat_async() -> None:
    assert (await ollama.AsyncClient(ROOT).chat(MODEL, USER, options=LIMITS)).message.content


@check
def stream() -> None:
    pieces = list(client.chat(MODEL, USER, stream=True, options=LIMITS))
    assert "".join(piece.message.content or "" for piece in pieces)
    assert [piece.done for piece in pieces][-1]
    assert not any(piece.done for piece in pieces[:-1])
    assert pieces[-1].eval_count


@check
async def stream_async() -> None:
    answer = await ollama.AsyncClient(ROOT).chat(MODEL, USER, stream=True, options=LIMITS)
    assert "".join([piece.message.content or "" async for piece in answer])


@check
def generate() -> None:
    assert client.generate(MODEL, QUESTION, options=LIMITS).response
    assert client.generate(MODEL, QUESTION, system="Be brief.", options=LIMITS).response
    assert client.generate(MODEL, "one two", raw=True, options=LIMITS).response
    pieces = list(client.generate(MODEL, QUESTION, stream=True, options=LIMITS))
    assert "".join(piece.response or "" for piece in pieces)


@check
def structured() -> None:
    answer = client.chat(MODEL, USER, format=WEATHER_SCHEMA, options=LIMITS | {"num_predict": 60})
    weather(**json.loads(answer.message.content or ""))
    answer = client.chat(MODEL, USER, format="json", options=LIMITS | {"num_predict": 60})
    assert isinstance(json.loads(answer.message.content or ""), dict)
    made = client.generate(MODEL, QUESTION, format=WEATHER_SCHEMA, options=LIMITS | {"num_predict": 60})
    weather(**json.loads(made.response or ""))


@check
def tools_loop() -> str:
    """Ollama has no tool_choice, so a small model may answer without a call. The history with a call is sent anyway."""
    answer = client.chat(MODEL, USER, tools=[get_weather], options=LIMITS)
    calls = answer.message.tool_calls or []
    call: Any = {"function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}}
    turns = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_name": "get_weather", "content": get_weather("Oslo", 1)}]
    assert client.chat(MODEL, turns, tools=[get_weather], options=LIMITS).message
    return f"{len(calls)} calls"


@check
def thinking() -> None:
    """A model that cannot think accepts `think=False`."""
    assert client.chat(MODEL, USER, think=False, options=LIMITS).message.content


@check
def keep_alive() -> None:
    assert client.chat(MODEL, USER, keep_alive="5m", options=LIMITS).message.content


@check
def embed() -> None:
    assert len(client.embed(embedder(), ["one", "two"]).embeddings) == 2
    assert client.embeddings(embedder(), "one").embedding


@check
def errors() -> None:
    error = raised(ollama.ResponseError, lambda: client.chat(NOBODY, USER), NOBODY)
    assert isinstance(error, ollama.ResponseError)
    assert error.status_code == 404
    raised(ollama.ResponseError, lambda: list(client.chat(NOBODY, USER, stream=True)), NOBODY)
    raised(ollama.ResponseError, lambda: client.chat(MODEL, USER, options={"temperature": 9}), "temperature")


run()

"""llm: its Python interface and its command, with a model of extra-openai-models.yaml; both APIs of OpenAI."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llm
from tour import MODEL, NOBODY, QUESTION, URL, WEATHER_SCHEMA, check, raised, run, weather

HERE = Path(os.environ["HOME"]) / "llm"
HERE.mkdir(parents=True, exist_ok=True)
os.environ["LLM_USER_PATH"] = str(HERE)
ROW = {"model_name": MODEL, "api_base": URL, "supports_schema": True, "supports_tools": True}
ROWS = [
    {"model_id": "chat", **ROW},
    {"model_id": "responses", "responses": True, **ROW},
    {"model_id": "plain", "completion": True, "model_name": MODEL, "api_base": URL},
    {"model_id": "nobody", "model_name": NOBODY, "api_base": URL},
]
(HERE / "extra-openai-models.yaml").write_text(json.dumps(ROWS))  # JSON is YAML
LIMITS: Any = {"max_tokens": 24, "temperature": 0}


def get_weather(city: str, days: int) -> str:
    """The weather forecast of a city."""
    return json.dumps({"city": city, "days": days})


def command(*words: str) -> str:
    program = str(Path(sys.executable).with_name("llm"))
    return subprocess.run([program, *words], capture_output=True, text=True, check=True).stdout


@check
def chat() -> None:
    assert llm.get_model("chat").prompt(QUESTION, stream=False, **LIMITS).text()


@check
def stream() -> None:
    assert "".join(llm.get_model("chat").prompt(QUESTION, **LIMITS))


@check
def chat_async() -> None:
    async def ask() -> str:
        return await llm.get_async_model("chat").prompt(QUESTION, **LIMITS).text()

    assert asyncio.run(ask())


@check
def conversation() -> None:
    talk = llm.get_model("chat").conversation()
    assert talk.prompt(QUESTION, **LIMITS).text()
    assert talk.prompt("And of Norway?", **LIMITS).text()


@check
def structured() -> None:
    answer = llm.get_model("chat").prompt(QUESTION, schema=WEATHER_SCHEMA, max_tokens=60)
    weather(**json.loads(answer.text()))


@check
def tools_loop() -> str:
    """llm has no tool_choice, so a small model may answer without a call."""
    chain = llm.get_model("chat").conversation().chain(QUESTION, tools=[get_weather], options=LIMITS, chain_limit=4)
    chain.text()
    return f"{sum(len(each.tool_calls()) for each in chain.responses())} calls"


@check
def plain_completion() -> None:
    assert llm.get_model("plain").prompt("one two", max_tokens=8).text()


@check
def the_command() -> None:
    options = ["-o", "max_tokens", "24"]
    assert command("-m", "chat", QUESTION, *options).strip()
    assert command("-m", "chat", QUESTION, "--no-stream", *options).strip()
    found = command("-m", "chat", QUESTION, "--schema", json.dumps(WEATHER_SCHEMA), "-o", "max_tokens", "60")
    weather(**json.loads(found))


@check
def responses() -> None:
    assert llm.get_model("responses").prompt(QUESTION, stream=False, max_tokens=24).text()


@check
def errors() -> None:
    raised(Exception, lambda: llm.get_model("nobody").prompt(QUESTION).text(), NOBODY)
    try:
        command("-m", "nobody", QUESTION)
    except subprocess.CalledProcessError as error:
        assert NOBODY in error.stderr, error.stderr
    else:
        raise AssertionError("the command did not fail")


run()

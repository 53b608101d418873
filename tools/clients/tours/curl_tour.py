"""curl: chat, a stream, structured output, tools and errors, from a shell."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tour import MODEL, NOBODY, QUESTION, URL, WEATHER, WEATHER_SCHEMA, check, embedder, run, weather

USER = {"role": "user", "content": QUESTION}


def curl(path: str, body: Any = None, *options: str) -> str:
    """Return what curl prints. `-d` alone says that the body is a form; the server reads it as JSON all the same."""
    data = ["-d", json.dumps(body)] if body is not None else []
    ran = subprocess.run(["curl", "-sS", *options, f"{URL}{path}", *data], capture_output=True, text=True, check=True)
    return ran.stdout


def ask(*options: str, **fields: Any) -> str:
    body = {"model": MODEL, "messages": [USER], "max_tokens": 24, "temperature": 0} | fields
    return curl("/chat/completions", body, *options)


def message(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(**fields))["choices"][0]["message"]
    return found


@check
def models() -> None:
    assert MODEL in {model["id"] for model in json.loads(curl("/models"))["data"]}


@check
def chat() -> None:
    assert message()["content"]


@check
def stream() -> None:
    *chunks, last = [line.removeprefix("data: ") for line in ask("-N", stream=True).split("\n\n") if line]
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert last == "[DONE]"
    assert "".join(delta.get("content") or "" for delta in deltas)


@check
def structured() -> None:
    kind = {"type": "json_schema", "json_schema": {"name": "trip", "schema": WEATHER_SCHEMA}}
    weather(**json.loads(message(response_format=kind, max_tokens=60)["content"]))


@check
def tools_loop() -> None:
    offered = {"tools": [WEATHER], "max_tokens": 160, "parallel_tool_calls": False}
    asked = message(tool_choice="required", **offered)
    [call] = asked["tool_calls"]
    result = weather(**json.loads(call["function"]["arguments"]))
    answer = {"role": "tool", "tool_call_id": call["id"], "content": result}
    assert isinstance(message(messages=[USER, asked, answer], tool_choice="none", **offered)["content"], str)


@check
def compressed_body() -> None:
    body = json.dumps({"model": MODEL, "messages": [USER], "max_tokens": 4})
    packed = subprocess.run(["gzip", "-c"], input=body.encode(), capture_output=True, check=True).stdout
    command = ["curl", "-sS", f"{URL}/chat/completions", "-H", "content-encoding: gzip", "--data-binary", "@-"]
    ran = subprocess.run(command, input=packed, capture_output=True, check=True)
    assert json.loads(ran.stdout)["choices"]


@check
def embeddings() -> None:
    found = json.loads(curl("/embeddings", {"model": embedder(), "input": ["one", "two"]}))
    assert [each["index"] for each in found["data"]] == [0, 1]


@check
def errors() -> None:
    body, _, status = ask("-w", "\n%{http_code}", model=NOBODY).rpartition("\n")
    assert status == "404", status
    assert NOBODY in json.loads(body)["error"]["message"]
    assert json.loads(ask(temperature=9))["error"]["param"] == "temperature"
    broken = subprocess.run(
        ["curl", "-sS", f"{URL}/chat/completions", "-d", '{"model":'], capture_output=True, text=True, check=True
    )
    assert "JSON" in json.loads(broken.stdout)["error"]["message"]


run()

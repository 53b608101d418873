"""Arguments of required calls are valid under any schema, whatever the model writes: here its weights are random."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest

from tourkit.backends.base import Engine
from tourkit.grammar.check import validate
from tourkit.launch import Launch
from tourkit.server.api.generation import complete
from tourkit.server.api.model import Model
from tourkit.server.api.replies import ChatReply
from tourkit.server.api.requests import parse_chat

pytestmark = pytest.mark.starts

COUNT = 500 if os.environ.get("TOURKIT_EVERY_DOCUMENT") else 10


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[Engine]:
    from tourkit import backends

    loaded = backends.load(Launch(model="m", stack="llama_cpp", path=str(tiny_gguf), slots=1, context=4096, threads=1))
    yield loaded
    loaded.close()


def schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random schema. Its kinds are those that programs make from their types."""
    kinds = ["string", "integer", "number", "boolean", "enum", "format", "optional"]
    kind = chance.choice([*kinds, "array", "object", "object", "anyOf"] if depth < 3 else kinds)
    if kind == "object":
        return arguments(chance, depth + 1)
    if kind == "array":
        return {"type": "array", "items": schema(chance, depth + 1), "maxItems": chance.randint(1, 3)}
    if kind == "anyOf":
        return {"anyOf": [schema(chance, depth + 1), {"type": "null"}]}
    return {
        "string": {"type": "string", "maxLength": chance.randint(1, 20)},
        "integer": {"type": "integer", "minimum": -5, "maximum": chance.randint(5, 5000)},
        "number": {"type": "number"},
        "boolean": {"type": "boolean"},
        "enum": {"enum": chance.sample(["a", "b c", 'd"e', 1, None, True], chance.randint(1, 4))},
        "format": {"type": "string", "format": chance.choice(["date", "uuid", "email"])},
        "optional": {"type": ["string", "null"], "maxLength": 5},
    }[kind]


def arguments(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a random schema of an object."""
    names = chance.sample(["city", "n", "день", "from", "$id_", "a b"], chance.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: schema(chance, depth) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": chance.random() < 0.3,
    }


@pytest.mark.parametrize("seed", range(COUNT))
def test_the_arguments_of_a_required_call_follow_any_schema(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    tools = [{"name": f"f{i}", "parameters": arguments(chance)} for i in range(chance.randint(1, 3))]
    body = {
        "model": "tool",
        "messages": [{"role": "user", "content": "Call one."}],
        "tools": [{"type": "function", "function": tool} for tool in tools],
        "tool_choice": "required",
        "parallel_tool_calls": chance.random() < 0.5,
        "max_tokens": 700,
        "seed": seed,
    }

    async def ask() -> dict[str, Any]:
        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        http = HttpRequest({"type": "http", "headers": []}, receive)
        response = await complete(Model(engine), parse_chat(body), ChatReply("id", 0, "tool"), http)
        return dict(json.loads(bytes(response.body)))

    [choice] = asyncio.run(ask())["choices"]

    by_name = {tool["name"]: tool["parameters"] for tool in tools}
    assert (choice["message"]["content"], choice["finish_reason"]) in [(None, "tool_calls"), (None, "length")]
    for call in choice["message"]["tool_calls"]:
        found = call["function"]
        assert validate(by_name[found["name"]], json.loads(found["arguments"])) == []

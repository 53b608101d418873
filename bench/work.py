"""The work that bench/serving.py gives to each server: a schema, and the timing of each kind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prompts import documents
from servers import RefusedError, Server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["invoice", "notice", "report"]},
        "total": {"type": "number", "minimum": 0, "maximum": 1000000},
        "date": {"type": "string", "maxLength": 10},
        "people": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 4},
        "urgent": {"type": "boolean"},
    },
    "required": ["title", "kind", "total", "date", "people", "urgent"],
    "additionalProperties": False,
}


def by_schema(server: Server, schema: Any, *, strict: bool) -> dict[str, Any]:
    """Return the request field for a schema, in the form that the server reads."""
    if server.name == "llama_cpp.server":
        return {"type": "json_object", "schema": schema}
    return {"type": "json_schema", "json_schema": {"name": "record", "schema": schema, "strict": strict}}


def endless(server: Server) -> dict[str, Any]:
    """Return the options for text up to max_tokens. Random weights sometimes end a text early on llama-server."""
    return {"ignore_eos": True} if server.name.startswith("llama-server") else {}


def at_once(clients: int, jobs: list[Callable[[], Any]]) -> tuple[list[Any], float]:
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(lambda job: job(), jobs))
    return results, time.perf_counter() - started


def free_text(server: Server, clients: int, tokens: int, seed: int) -> float:
    """Return tokens per second of all clients together. The time for the prompts of 32 tokens counts too."""
    options = {"max_tokens": tokens, "temperature": 0.8, "seed": seed, **endless(server)}
    prompts = documents(clients, 8, 24, seed)
    answers, seconds = at_once(clients, [lambda prompt=prompt: server.chat(prompt, **options) for prompt in prompts])
    return sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds


def extraction(server: Server, clients: int, prompts: list[str], seed: int) -> tuple[float, float]:
    """Return requests per second and complete objects per second."""
    options = {
        "max_tokens": 200,
        "temperature": 0.8,
        "seed": seed,
        "response_format": by_schema(server, SCHEMA, strict=True),
    }

    def gives_object(prompt: str) -> bool:
        try:
            return isinstance(json.loads(server.chat(prompt, **options)["choices"][0]["message"]["content"]), dict)
        except (ValueError, RefusedError):  # llama-server answers 500 if the generated text is cut off
            return False

    whole, seconds = at_once(clients, [lambda prompt=prompt: gives_object(prompt) for prompt in prompts])
    return len(prompts) / seconds, sum(whole) / seconds


def voting(server: Server, prompt: str, *, schema: bool, seed: int) -> float:
    """Return the seconds for ten samples of one prompt. llama_cpp.server has no `n`, so it is asked ten times."""
    options: dict[str, Any] = {"max_tokens": 64, "temperature": 0.8, **endless(server)}
    if schema:
        options = {"max_tokens": 200, "temperature": 0.8, "response_format": by_schema(server, SCHEMA, strict=True)}
    alone = server.name == "llama_cpp.server"
    started = time.perf_counter()
    try:
        for i in range(10 if alone else 1):
            server.chat(prompt, seed=seed + i, **options, **({} if alone else {"n": 10}))
    except RefusedError as exc:
        if "peg-native" not in str(exc):  # llama-server's error for a cut-off object; the work was done
            raise
    return time.perf_counter() - started

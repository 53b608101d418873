"""Shared by all tours: the address of the server, the questions, and the loop that runs the checks.

It runs in the environment of the client, so it needs the standard library alone. A tour decorates functions with
`@check` and calls `run()` at its end. Each check prints one line of JSON: `check`, `result` (passed, failed or
skipped), `seconds` and `detail`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

ROOT = os.environ["TOURKIT_URL"]  # without /v1
URL = f"{ROOT}/v1"
MODEL = "brain"
KEY = "unused"  # most clients want one; the server asks for none
QUESTION = "Which city is the capital of France?"
NOBODY = "no-such-model"  # a model that the server does not have

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris", "Lima"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather forecast of a city.",
        "parameters": WEATHER_SCHEMA,
    },
}
CITIES = ("Oslo", "Paris", "Lima")

_checks: list[tuple[str, Callable[[], Any]]] = []


class Skip(Exception):
    """Raised by a check that cannot run; its message is the reason."""


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    """Make a function, also a coroutine, a check of this tour.

    Its name is the name of the check. What it returns is the detail of the check.
    """
    _checks.append((function.__name__.replace("_", " "), function))
    return function


def weather(city: str, days: int) -> str:
    """Return the answer of the tours' tool. Its arguments must have the right types."""
    assert city in CITIES, f"the city {city!r} is not in the schema"
    assert type(days) is int, f"days is {days!r}"  # a client that makes a schema from a type has no limits in it
    return json.dumps({"city": city, "rain": True})


def embedder() -> str:
    """Return the role of the embedding model. Raises Skip if the server has none."""
    with urllib.request.urlopen(f"{URL}/models") as answer:
        names = [model["id"] for model in json.load(answer)["data"]]
    if "embed" not in names:
        raise Skip("the server has no embedding model")
    return "embed"


def raised(error: type[BaseException], call: Callable[[], Any], *words: str) -> BaseException:
    """Return the error that `call` raises. It must be of the class `error` and have all `words` in its text."""
    try:
        result = call()
    except error as found:
        missing = [word for word in words if word not in str(found)]
        assert not missing, f"{missing} not in {found}"
        return found
    raise AssertionError(f"no {error.__name__} was raised; the result is {result!r}")


def run() -> None:
    """Run the checks in their order, or those whose names are arguments, and end with 1 if one failed."""
    wanted = sys.argv[1:]
    results = [_run(name, function) for name, function in _checks if not wanted or name in wanted]
    sys.stdout.flush()
    os._exit(1 if "failed" in results else 0)  # some clients leave threads that would keep the process


def _run(name: str, function: Callable[[], Any]) -> str:
    start, result, detail = time.monotonic(), "passed", ""
    try:
        said = function()
        detail = (asyncio.run(said) if inspect.iscoroutine(said) else said) or ""
    except Skip as reason:
        result, detail = "skipped", str(reason)
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what the check found
        result, detail = "failed", f"line {_line(error)}: {type(error).__name__}: {error}"
        if os.environ.get("TOUR_TRACEBACK"):
            traceback.print_exc()
    line = {"check": name, "result": result, "seconds": round(time.monotonic() - start, 2), "detail": detail}
    print(f"\n{json.dumps(line)}", flush=True)  # a client may have printed a part of a line
    return result


def _line(error: BaseException) -> int:
    """Return the last line of the tour itself that led to an error."""
    tour = os.path.realpath(sys.argv[0])
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == tour]
    return (lines and lines[-1]) or 0

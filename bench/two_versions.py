"""Compare this checkout with another one: `python bench/two_versions.py OTHER [--model FILE] [--rounds N]`.

OTHER is the folder of another checkout of tourkit. Both serve the same model at once, and one works while the other is
idle. In every round each server does each kind of work, and the order changes. It prints medians in ms, their spread,
and the median of the ratios of the pairs (new to old; above 1 is slower).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from portable_vs_native import weights

_PATH = "/v1/chat/completions"
_SLOTS = 4


@contextmanager
def serving(checkout: Path, model: Path) -> Iterator[str]:
    """Serve the model with the code of a checkout. Give the host and port."""
    command = [sys.executable, "-m", "tourkit", "serve", str(model), "--port", "0", "--slots", str(_SLOTS)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout)
    try:
        found = next(filter(None, (re.search(r"(http://\S+)/v1", line) for line in process.stdout or ())), None)
        if found is None:
            sys.exit(f"{checkout}: the server does not start")
        yield urlsplit(found[1]).netloc
    finally:
        process.terminate()
        process.communicate()


def body(number: int, **fields: Any) -> bytes:
    said = f"Note {number}: Anna Berg paid 129.50 euro for 3 chairs on 2026-03-04. Say what was bought."
    plain = {"model": "tool", "messages": [{"role": "user", "content": said}], "temperature": 0, "max_tokens": 24}
    return json.dumps(plain | fields).encode()


def schema(names: list[str]) -> dict[str, Any]:
    properties = {name: {"type": "string", "maxLength": 6} for name in names}
    made = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": made}}


def works(run: int) -> dict[str, Callable[[int], bytes]]:
    """Return the bodies of each kind of work by its name. Each gets the number of the round."""
    known = schema(["buyer", "item"])
    return {
        "free text, 24 tokens": body,
        "one token": lambda i: body(i, max_tokens=1),
        "a known schema, 24 tokens": lambda i: body(i, response_format=known),
        "a known schema, one token": lambda i: body(i, response_format=known, max_tokens=1),
        "a new schema, one token": lambda i: body(
            i, response_format=schema([f"f{i}_{j}_{run}" for j in range(6)]), max_tokens=1
        ),
    }


def milliseconds(connection: http.client.HTTPConnection, data: bytes) -> float:
    start = perf_counter()
    connection.request("POST", _PATH, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    taken = (perf_counter() - start) * 1000
    if answer.status != 200:
        sys.exit(f"status {answer.status}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the folder of the older checkout")
    parser.add_argument("--model", type=Path, help="a GGUF file; without it SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    model = (options.model or weights(here / "build/smollm2")).absolute()
    kinds = works(os.getpid())
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in kinds}
    with serving(options.other.absolute(), model) as old, serving(here, model) as new:
        for number in range(-2, options.rounds):  # two rounds to get warm
            for name, made in kinds.items():
                order = [(0, old), (1, new)] if number % 2 else [(1, new), (0, old)]
                for side, netloc in order:
                    with closing(http.client.HTTPConnection(netloc, timeout=120)) as connection:
                        taken = milliseconds(connection, made(number))
                    if number >= 0:
                        times[name][side].append(taken)
    print(f"{'':28} {'old ms':>22} {'new ms':>22}  new to old")
    for name, (before, after) in times.items():
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        more = statistics.median(b - a for a, b in zip(before, after, strict=True))
        print(f"{name:28} {shown(before):>22} {shown(after):>22}  {ratio:.3f} ({more:+.1f} ms)")


def shown(values: list[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(values):.1f} ({low:.1f}–{high:.1f})"


if __name__ == "__main__":
    main()

"""Measure what the trial process adds to a new constraint: pairs of one prepared here and one in the trial process.

Needs no model server. The two take turns, so that both see the same load of the machine. Prints medians in
milliseconds, the time of a known constraint and of a check, and the memory of the trial process.
Run: python bench/trial_overhead.py [FILE.gguf] [--pairs N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tourkit.backends.llama_cpp.model import LlamaModel
from tourkit.generation import Constraint
from tourkit.grammar.prepared import Manner
from tourkit.grammar.trial.client import Trial
from tourkit.grammar.trial.token_table import TokenTable

TINY = Path(__file__).resolve().parents[1] / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
PAUSE = 0.05  # seconds between two pairs
MANNER = Manner()


def small(number: int) -> Constraint:
    """An ordinary schema: three properties."""
    about = {"name": {"type": "string"}, "age": {"type": "integer", "minimum": number}, "ok": {"type": "boolean"}}
    return Constraint.json_schema({"type": "object", "properties": about, "required": ["name", "age"]})


def large(number: int) -> Constraint:
    """A schema of 60 properties with limits, formats and nested objects."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "pattern": f"^[a-z]{{1,{number + 2}}}$"},
        {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number", "maximum": number}}}},
        {"enum": ["red", "green", str(number)]},
    ]
    about = {f"p{i}": kinds[i % 3] for i in range(60)}
    return Constraint.json_schema({"type": "object", "properties": about, "required": list(about)[:10]})


async def measure(table: TokenTable, pairs: int) -> None:
    preparer = table.preparer()
    trial = Trial(lambda: table)
    began = time.perf_counter()
    await trial.start()
    print(f"start of the process: {1000 * (time.perf_counter() - began):.0f} ms")
    for name, make in (("small", small), ("large", large)):
        await compare(name, make, preparer.prepare, trial, pairs)
    known = small(0)
    await show("known constraint", lambda: trial.prepare(known, MANNER), pairs)
    text = json.dumps({"name": "Ann", "age": 31, "ok": True})
    await show("check of an answer", lambda: trial.check(known.source, text, may_repair=True), pairs)
    for pid in trial.pids:
        print(f"memory of process {pid}: {memory(pid)}")
    await trial.close()


async def compare(
    name: str, make: Callable[[int], Constraint], here: Callable[[Constraint, Manner], object], trial: Trial, pairs: int
) -> None:
    """Print the medians of both ways, and of their difference."""
    here(make(0), MANNER)
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        began = time.perf_counter()
        here(make(2 * number + 1), MANNER)
        middle = time.perf_counter()
        await trial.prepare(make(2 * number + 2), MANNER)
        times.append((1000 * (middle - began), 1000 * (time.perf_counter() - middle)))
        await asyncio.sleep(PAUSE)
    local, tried = (statistics.median(column) for column in zip(*times, strict=True))
    added = sorted(b - a for a, b in times)
    print(
        f"{name} schema, {pairs} pairs: here {local:.2f} ms, in the trial process {tried:.2f} ms, added "
        f"{statistics.median(added):.2f} ms (quartiles {added[pairs // 4]:.2f}, {added[3 * pairs // 4]:.2f})"
    )


async def show(name: str, do: Callable[[], Any], pairs: int) -> None:
    times = []
    for _ in range(pairs):
        began = time.perf_counter()
        await do()
        times.append(1000 * (time.perf_counter() - began))
    print(f"{name}: {statistics.median(times):.2f} ms")


def memory(pid: int) -> str:
    """Return the memory of a process and of its children, as /proc shows it."""
    status = Path(f"/proc/{pid}/smaps_rollup")
    if not status.exists():
        return "not shown on this system"
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()[1:])
    return ", ".join(f"{key} {int(lines[key].split()[0]) / 1024:.0f} MiB" for key in ("Rss", "Pss"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path, nargs="?", default=TINY)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    model = LlamaModel(options.gguf)
    table = TokenTable.of_tokenizer(model.grammar_tokenizer(), leading_space=model.starts_with_space)
    print(f"{options.gguf.name}: {len(table.tokens)} tokens", file=sys.stderr)
    asyncio.run(measure(table, options.pairs))


if __name__ == "__main__":
    main()

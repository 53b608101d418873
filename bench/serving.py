"""Serving beside its peers on one machine, in one run: tourkit, llama-server, llama-batched-bench.

`python bench/serving.py [--shape 205m] [--rounds 3] [--quick] [--json]`. Every row is the median of interleaved rounds
and its ratio to the peer; the servers run one at a time, each with the same model, slots, threads and prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build_llama_cpp
import shapes
from servers import Limits, RefusedError, Server, llama_server, tourkit

from tourkit.hardware import probe

LIMITS = Limits(slots=10, context=1536)  # llama-server refuses an n above its slots
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
FORMAT = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA, "strict": True}}


# --- prompts --------------------------------------------------------------------------------------------------------


def words(count: int, seed: int) -> str:
    """About `count` tokens of text: each word is one token of the made-up vocabulary."""
    rng = random.Random(seed)
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiouy"
    return " ".join("".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(2)) for _ in range(count))


def documents(count: int, shared: int, own: int, seed: int) -> list[str]:
    """Prompts that begin with the same `shared` tokens and go on with `own` of their own."""
    head = words(shared, 10_000 + shared)
    return [f"{head}\n{words(own, seed * 1000 + i)}" for i in range(count)]


# --- the work -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table: what was done, in which unit, and each peer's figures by round."""

    title: str
    unit: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)


def at_once(clients: int, jobs: list[Callable[[], Any]]) -> tuple[list[Any], float]:
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(lambda job: job(), jobs))
    return results, time.perf_counter() - started


def free_text(server: Server, clients: int, tokens: int, seed: int) -> float:
    prompts = documents(clients, 8, 24, seed)
    options: dict[str, Any] = {"max_tokens": tokens, "temperature": 0.8, "seed": seed}
    if server.name == "llama-server":
        options["ignore_eos"] = True
    jobs = [lambda prompt=prompt: server.chat(prompt, **options) for prompt in prompts]
    answers, seconds = at_once(clients, jobs)
    return sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds


def extraction(server: Server, clients: int, prompts: list[str], seed: int) -> tuple[float, float]:
    """Requests a second, and complete objects a second."""
    options = {"max_tokens": 200, "temperature": 0.8, "seed": seed, "response_format": FORMAT}

    def gives_object(prompt: str) -> bool:
        try:
            return isinstance(json.loads(server.chat(prompt, **options)["choices"][0]["message"]["content"]), dict)
        except (ValueError, RefusedError):  # llama-server answers 500 when what it generated is cut off
            return False

    whole, seconds = at_once(clients, [lambda prompt=prompt: gives_object(prompt) for prompt in prompts])
    return len(prompts) / seconds, sum(whole) / seconds


def voting(server: Server, prompt: str, by_schema: bool, seed: int) -> float:
    options: dict[str, Any] = {"n": 10, "max_tokens": 200 if by_schema else 64, "temperature": 0.8, "seed": seed}
    if by_schema:
        options["response_format"] = FORMAT
    elif server.name == "llama-server":
        options["ignore_eos"] = True
    started = time.perf_counter()
    try:
        server.chat(prompt, **options)
    except RefusedError as exc:
        if "peg-native" not in str(exc):  # its word for an object that was cut off: the work was done
            raise
    return time.perf_counter() - started


def measure(server: Server, rows: dict[str, Row], seed: int, scale: float) -> None:
    """One round of everything on a server."""

    def row(title: str, unit: str) -> Row:
        return rows.setdefault(title, Row(title, unit))

    def count(n: int) -> int:
        return max(2, int(n * scale))

    server.chat(words(16, seed), max_tokens=4)  # the first request pays for what is made once
    for clients in (1, 8):
        speed = free_text(server, clients, count(96), seed)
        row(f"free text, {clients} client{'s' * (clients > 1)}", "tokens/s").add(server.name, speed)
    for clients in (1, 8):
        prompts = documents(count(8 if clients == 1 else 24), 165, 66, seed + clients)
        requests, complete = extraction(server, clients, prompts, seed)
        title = f"schema extraction, {clients} client{'s' * (clients > 1)}"
        row(title, "requests/s").add(server.name, requests)
        row(f"{title}, complete", "objects/s").add(server.name, complete)
    requests, _ = extraction(server, 8, documents(count(64), 885, 60, seed + 50), seed)
    row("extraction, 885 shared tokens", "requests/s").add(server.name, requests)
    prompt = words(885, seed + 77)
    row("voting n = 10, free text", "seconds").add(server.name, voting(server, prompt, False, seed))
    row("voting n = 10, by schema", "seconds").add(server.name, voting(server, words(885, seed + 78), True, seed))
    row("time to first token, 1,000 tokens", "seconds").add(server.name, server.first_token(words(1000, seed + 99)))
    row("peak memory", "MiB").add(server.name, server.memory() / 2**20)


def ceiling(gguf: Path, binaries: Path) -> float:
    """Decode speed of llama-batched-bench with 8 sequences, tokens a second."""
    command = [str(binaries / "llama-batched-bench"), "-m", str(gguf), "-c", "4096", "-b", "512", "-ub", "512"]
    command += ["-npp", "32", "-ntg", "96", "-npl", "8", "-t", str(probe().threads), "--output-format", "jsonl"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(next(line for line in out.splitlines() if line.startswith("{")))["speed_tg"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="205m", choices=sorted(shapes.SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a quarter of the work")
    parser.add_argument("--binaries", type=Path, help="where llama-server is, if it is built already")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    binaries = given.binaries or build_llama_cpp.build()
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="tourkit-bench-") as folder:
        work = Path(folder)
        gguf = work / f"{given.shape}.gguf"
        shapes.write(shapes.SHAPES[given.shape], gguf)
        top = rows.setdefault("free text, 8 clients", Row("free text, 8 clients", "tokens/s"))
        for seed in range(given.rounds):
            top.add("ceiling", ceiling(gguf, binaries))
            for start in (lambda: tourkit(gguf, work, LIMITS), lambda: llama_server(gguf, binaries, LIMITS)):
                started = time.perf_counter()
                with start() as server:
                    row = rows.setdefault("start to ready", Row("start to ready", "seconds"))
                    row.add(server.name, time.perf_counter() - started)
                    measure(server, rows, seed + 1, 0.25 if given.quick else 1.0)
    report(list(rows.values()), as_json=given.json)


def report(rows: list[Row], *, as_json: bool) -> None:
    """The table: medians, and how many times better than the peer tourkit is."""
    table = []
    for row in rows:
        medians = {name: statistics.median(values) for name, values in row.figures.items()}
        ours, peer = medians["tourkit"], medians["llama-server"]
        better = peer / ours if row.unit in ("seconds", "MiB") else ours / peer
        table.append({"what": row.title, "unit": row.unit, **medians, "ratio": better})
    if as_json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'what':38} {'unit':10} {'tourkit':>9} {'llama-server':>13} {'ceiling':>9} {'ratio':>6}")
    for line in table:
        ceiling_text = f"{line['ceiling']:9.1f}" if "ceiling" in line else " " * 9
        figures = f"{line['tourkit']:9.2f} {line['llama-server']:13.2f} {ceiling_text} {line['ratio']:6.2f}"
        print(f"{line['what']:38} {line['unit']:10} {figures}")


if __name__ == "__main__":
    main()

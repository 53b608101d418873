"""Compare servers on one machine, in one run.

They are tourkit, llama-server with and without its n-gram speculation, llama_cpp.server, and llama-batched-bench as the
upper limit. `python bench/serving.py [--shape 205m] [--rounds 3] [--scale 1] [--json]`. All servers run at once, with
the same model, slots, threads and prompts; one works while the others are idle. In every round each server does each
kind of work, one after the other, and short work several times: if the machine is slow for a while, it is slow for all.
A ratio is the median of the ratios of these pairs. Every round starts the servers again, and another one is the first:
the place of its memory makes a process a few percent faster or slower as long as it lives, and the first is often the
slower one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import build_llama_cpp
import shapes
from prompts import documents, words
from servers import Limits, Server, llama_cpp_server, llama_server, tourkit
from work import extraction, free_text, voting

from tourkit.hardware.probe import probe
from tourkit.server.gateway.process import tuned

LIMITS = Limits(slots=10, context=1536)  # llama-server refuses an n above its slots
NGRAM = ("--spec-type", "ngram-simple")
PEER = "llama-server"
COLUMNS = ("tourkit", PEER, "llama-server, n-gram", "llama_cpp.server", "llama-batched-bench")


@dataclass
class Row:
    """One line of the table: the work, its unit, and the figures of each server, one per round."""

    title: str
    unit: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.figures.items()}

    def ratios(self, peer: str) -> list[float]:
        """Return how many times better tourkit is than the peer, one ratio per pair, lowest first."""
        pairs = zip(self.figures.get("tourkit", ()), self.figures.get(peer, ()), strict=False)
        less_is_better = self.unit in ("seconds", "ms", "MiB")
        return sorted(theirs / ours if less_is_better else ours / theirs for ours, theirs in pairs)

    def ratio_text(self, peer: str) -> str:
        """Return the median of the ratios with the lowest and highest; empty if there are none."""
        ratios = self.ratios(peer)
        return f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""


class Table:
    """The rows by title, in the order of their first figures."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, title: str, unit: str, name: str, value: float) -> None:
        print(f"{title}: {name}: {value:.4g} {unit}", file=sys.stderr, flush=True)
        self.rows.setdefault(title, Row(title, unit)).figures.setdefault(name, []).append(value)


Figures = dict[str, tuple[str, float]]  # title → unit, value


def health(server: Server, seed: int, scale: float) -> Figures:
    return {"GET /health": ("ms", server.round_trip("GET", "/health", times=max(20, int(80 * scale))))}


def one_token(server: Server, seed: int, scale: float) -> Figures:
    """Time a chat of one token, with its prompt in the KV cache: the HTTP round trip and one step of the model."""
    message = {"role": "user", "content": words(16, 7)}
    body = {"model": server.model, "messages": [message], "max_tokens": 1, "temperature": 0}
    took = server.round_trip("POST", "/v1/chat/completions", body, times=max(20, int(80 * scale)))
    return {"a chat of one cached token": ("ms", took)}


def first_token(server: Server, seed: int, scale: float) -> Figures:
    return {"time to first token, 1,000 tokens": ("seconds", server.first_token(words(1000, seed + 99)))}


def free(clients: int, server: Server, seed: int, scale: float) -> Figures:
    speed = free_text(server, clients, max(24, int(96 * scale)), seed)
    return {f"free text, {clients} client{'s' * (clients > 1)}": ("tokens/s", speed)}


def extract(clients: int, documents_: int, server: Server, seed: int, scale: float) -> Figures:
    prompts = documents(max(2, int(documents_ * scale)), 165, 66, seed + clients)
    requests, complete = extraction(server, clients, prompts, seed)
    title = f"schema extraction, {clients} client{'s' * (clients > 1)}"
    return {title: ("requests/s", requests), f"{title}, complete": ("objects/s", complete)}


def shared(server: Server, seed: int, scale: float) -> Figures:
    requests, _ = extraction(server, 8, documents(max(8, int(64 * scale)), 885, 60, seed + 50), seed)
    return {"64 documents, 885 shared tokens": ("requests/s", requests)}


def vote(schema: bool, server: Server, seed: int, scale: float) -> Figures:
    title = f"voting n = 10, {'by schema' if schema else 'free text'}"
    return {title: ("seconds", voting(server, words(885, seed + 77 + schema), schema=schema, seed=seed))}


def peak(server: Server, seed: int, scale: float) -> Figures:
    return {"peak memory": ("MiB", server.memory() / 2**20)}


WORK = [
    *(health, one_token, first_token, partial(free, 1)) * 3,
    *(partial(free, 8),) * 2,
    *(partial(extract, 1, 8), partial(extract, 8, 24), shared, partial(vote, False), partial(vote, True), peak),
]


def engine_alone(gguf: Path, binaries: Path, table: Table) -> None:
    """Compare eight sequences without HTTP with llama-batched-bench, and measure what a grammar adds to a step."""
    environment = tuned("llama_cpp")
    engine = [sys.executable, str(Path(__file__).with_name("engine_speed.py")), str(gguf)]
    ours = json.loads(subprocess.run(engine, capture_output=True, text=True, check=True, env=environment).stdout)
    command = [str(binaries / "llama-batched-bench"), "-m", str(gguf), "-c", "4096", "-b", "512", "-ub", "512"]
    command += ["-npp", "32", "-ntg", "96", "-npl", "8", "-t", str(probe().threads), "--output-format", "jsonl"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    title = "decoding, 8 sequences, no HTTP"
    table.add(title, "tokens/s", "tourkit", ours["tokens/s"])
    table.add(title, "tokens/s", "llama-batched-bench", float(theirs["speed_tg"]))
    table.add("a step of 8 under a grammar", "ms", "tourkit", ours["constrained step"])
    table.add("a step of 8 without one", "ms", "tourkit", ours["step"])


def starters(gguf: Path, binaries: Path) -> list[Callable[[], AbstractContextManager[Server]]]:
    return [
        partial(tourkit, gguf, LIMITS),
        partial(llama_server, gguf, binaries, LIMITS),
        partial(llama_server, gguf, binaries, LIMITS, *NGRAM, name="llama-server, n-gram"),
        partial(llama_cpp_server, gguf, LIMITS),
    ]


def one_round(
    start: dict[str, Callable[[], AbstractContextManager[Server]]], number: int, scale: float, table: Table
) -> None:
    """Give each kind of work to all servers, one after the other. The order of starts and of work alternates."""
    servers = []
    with ExitStack() as running:
        for name, starter in list(start.items())[:: 1 if number % 2 else -1]:
            started = time.perf_counter()
            servers.append(running.enter_context(starter()))
            servers[-1].chat(words(16, 1), max_tokens=1)
            table.add("start to first answer", "seconds", name, time.perf_counter() - started)
        for seed, work in enumerate(WORK, number * len(WORK)):  # new prompts in every round
            for server in servers if seed % 2 else servers[::-1]:
                share = scale / 8 if server.name == "llama_cpp.server" else scale  # less work is enough for it
                for title, (unit, value) in work(server, seed, share).items():
                    table.add(title, unit, server.name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="205m", choices=sorted(shapes.SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work, for example 0.25 for a quarter")
    parser.add_argument("--others-once", action="store_true", help="run the last two servers in the first round only")
    parser.add_argument("--only", nargs="+", choices=COLUMNS[:4], default=COLUMNS[:4], help="run only these servers")
    parser.add_argument("--binaries", type=Path, help="the folder of llama-server, if it is already built")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    binaries = given.binaries or build_llama_cpp.build()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="tourkit-bench-") as folder:
        gguf = Path(folder) / f"{given.shape}.gguf"
        shapes.write(shapes.SHAPES[given.shape], gguf)
        start = dict(zip(COLUMNS, starters(gguf, binaries), strict=False))
        for number in range(1, given.rounds + 1):
            engine_alone(gguf, binaries, table)
            wanted = [name for name in given.only if number == 1 or not given.others_once or name in COLUMNS[:2]]
            one_round({name: start[name] for name in wanted}, number, given.scale, table)
    report(list(table.rows.values()), as_json=given.json)


def report(rows: list[Row], *, as_json: bool) -> None:
    """Print the medians of every server, and the ratios to llama-server, llama_cpp.server and the upper limit."""
    if as_json:
        lines = [{"what": row.title, "unit": row.unit, **row.medians, "ratios": row.ratios(PEER)} for row in rows]
        print(json.dumps(lines, indent=2))
        return
    print("| work | " + " | ".join(COLUMNS) + " | ratio to llama-server |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        cells = [f"{row.medians[name]:.4g}" if name in row.figures else "" for name in COLUMNS]
        shown = [f"{row.title}, {row.unit}", *cells, row.ratio_text(PEER)]
        print("| " + " | ".join(shown) + " |")
    for peer in ("llama-batched-bench", "llama_cpp.server"):
        for row in rows:
            if text := row.ratio_text(peer):
                print(f"{row.title}: {text} of {peer}")


if __name__ == "__main__":
    main()

"""Measure what the gateway costs: requests through it, and the same requests to a worker directly, over TCP.

`python bench/gateway.py [--model FILE] [--pairs 9]`. Both sides run at the same time, with a worker of their own, and
are asked in turns. The worker that is asked directly listens on loopback. The other one gets its requests from the
gateway as always: over a Unix socket. It measures

1. the first token of one client, on new connections and on kept ones: the difference in milliseconds;
2. tokens a second of streams, for 1 and for 32 clients, each on a connection of its own: the ratio;
3. the processor time of the gateway for a request with an answer of two tokens, on a kept connection.

Figures 1 and 2 are medians over pairs of rounds. Each pair asks both sides; they take turns in going first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from launch_server import launch_server

from tourkit.hardware.probe import probe
from tourkit.launch import Launch
from tourkit.planning.plan import Placement
from tourkit.server.contract import SECRET_HEADER, Greeting, WorkerSpec
from tourkit.server.gateway.process import tuned

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
CLIENTS = 32
FIRSTS = 30  # requests of a round that measures the first token
TIMED = 500  # requests whose processor time is measured
LONG, SHORT = 256, 64  # tokens of an answer: of one client, of one of many
GOAL_FIRST, GOAL_RATE = 1.0, 0.95  # milliseconds, ratio
END = b"0\r\n\r\n"  # the last chunk of a stream
QUESTION = "Anna Petrova paid 1200 rubles on 2025-03-14. Write what happened."
SECRET = "bench"
NO_END = {"0": -100, "2": -100}  # the end tokens of the tiny model and of SmolLM2


@dataclass(frozen=True)
class Side:
    """A server. `headers`: more lines of a request. `process`: the id of the gateway's process."""

    name: str
    host: str
    port: int
    headers: str = ""
    process: int = 0

    def request(self, *, tokens: int, number: int = 0, keep: bool = True) -> bytes:
        """Return the bytes of a chat request for a stream of `tokens` tokens.

        `number`: makes the prompts differ. `keep`: the connection is used again.
        """
        content = f"{number}. {QUESTION}" if number else QUESTION
        body: dict[str, Any] = {"model": "tool", "messages": [{"role": "user", "content": content}], "stream": True}
        body |= {"max_tokens": tokens, "temperature": 0, "logit_bias": NO_END}
        data = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
        lines = [f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"]
        lines += [f"content-length: {len(data)}\r\n{self.headers}", "" if keep else "connection: close\r\n", "\r\n"]
        return "".join(lines).encode() + data


# --- the two sides ----------------------------------------------------------------------------------------------------


@contextmanager
def direct(launch: Launch, work: Path) -> Iterator[Side]:
    """Run a worker alone, as the gateway starts it, on a loopback port."""
    spec = WorkerSpec(launch, ("tool",), uds="", secret=SECRET, offline=True)
    command = [sys.executable, "-m", "tourkit.server.worker.process"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": tuned("llama_cpp")}
    with (work / "direct.log").open("w") as log, subprocess.Popen(command, stderr=log, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(spec.to_json())
        process.stdin.flush()
        host, _, port = Greeting.of_json(process.stdout.readline()).address.rpartition(":")
        with beats_read(process):
            yield Side("direct", host, int(port), f"{SECRET_HEADER}: {SECRET}\r\n")


@contextmanager
def beats_read(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Throw away the worker's beats, so that its pipe does not fill. At the end the worker's stdin is closed."""
    assert process.stdin is not None
    reading = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()
        reading.wait()


@contextmanager
def through_gateway(launch: Launch, work: Path) -> Iterator[Side]:
    with launch_server(Placement(("tool",), launch), log=work / "gateway.log") as server:
        address = urlsplit(server.url)
        yield Side("gateway", address.hostname or "", address.port or 0, process=server.process.pid)


# --- clients ----------------------------------------------------------------------------------------------------------


def connect(side: Side) -> socket.socket:
    sock = socket.create_connection((side.host, side.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def first_token(side: Side, kept: socket.socket | None) -> float:
    """Return the milliseconds until the first text. `kept`: the connection; None for a new one, whose time counts."""
    request = side.request(tokens=2, keep=kept is not None)
    start = time.perf_counter()
    sock = kept or connect(side)
    sock.sendall(request)
    got, took = b"", 0.0
    while not got.endswith(END):
        block = sock.recv(1 << 16)
        if not block:
            sys.exit(f"{side.name} ended the connection: {got.decode()}")
        got += block
        if not took and (b'"content":"' in got.replace(b'"content":""', b"")):
            took = time.perf_counter() - start
    if kept is None:
        sock.close()
    return took * 1000


async def answered(side: Side, request: bytes, tokens: int) -> None:
    """Send a request on a connection of its own and read the stream to its end. It must have `tokens` tokens."""
    reader, writer = await asyncio.open_connection(side.host, side.port, limit=1 << 22)
    writer.write(request)
    got = await reader.readuntil(END)
    assert b'"completion_tokens":%d,' % tokens in got, got
    writer.close()


async def rate(side: Side, clients: int, tokens: int) -> float:
    """Return tokens a second of answers that are asked for at the same time."""
    requests = [side.request(tokens=tokens, number=number + 1) for number in range(clients)]
    start = time.perf_counter()
    await asyncio.gather(*(answered(side, request, tokens) for request in requests))
    return clients * tokens / (time.perf_counter() - start)


# --- figures ----------------------------------------------------------------------------------------------------------


def firsts(sides: list[Side], *, keep: bool) -> dict[str, float]:
    """Return the median milliseconds of the first token on each side. The sides are asked in turns, one by one."""
    found: dict[str, list[float]] = {side.name: [] for side in sides}
    with ExitStack() as closing:
        kept = {side.name: closing.enter_context(contextlib.closing(connect(side))) for side in sides if keep}
        for _ in range(FIRSTS):
            for side in sides:
                found[side.name].append(first_token(side, kept.get(side.name)))
    return {name: statistics.median(times) for name, times in found.items()}


def rates(sides: list[Side], *, clients: int) -> dict[str, float]:
    tokens = LONG if clients == 1 else SHORT
    return {side.name: asyncio.run(rate(side, clients, tokens)) for side in sides}


def processor_time(side: Side, requests: int) -> float:
    """Return the milliseconds of processor time that the gateway takes for each of some requests, one by one."""
    with contextlib.closing(connect(side)) as kept:
        before = used(side.process)
        for _ in range(requests):
            first_token(side, kept)
        return (used(side.process) - before) * 1000 / requests


def used(process: int) -> float:
    """Return the seconds of processor time that a process has used, in steps of a hundredth (proc_pid_stat(5))."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Figure = tuple[str, Callable[[list[Side]], dict[str, float]], bool]  # title, measurement, whether it is a rate


FIGURES: list[Figure] = [
    ("first token, new connections, ms", partial(firsts, keep=False), False),
    ("first token, kept connections, ms", partial(firsts, keep=True), False),
    ("tokens/s, 1 client", partial(rates, clients=1), True),
    (f"tokens/s, {CLIENTS} clients", partial(rates, clients=CLIENTS), True),
]


def row(title: str, pairs: list[dict[str, float]], *, is_rate: bool) -> str:
    """Return a line of the table: medians of both sides, and the median of their ratios or differences with spread."""
    one, two = ([pair[name] for pair in pairs] for name in ("direct", "gateway"))
    compared = sorted(b / a if is_rate else b - a for a, b in zip(one, two, strict=True))
    middle = statistics.median(compared)
    holds = middle >= GOAL_RATE if is_rate else middle <= GOAL_FIRST
    goal = f"≥ {GOAL_RATE}" if is_rate else f"≤ {GOAL_FIRST:g}"
    spread = f"{compared[0]:.2f} to {compared[-1]:.2f}"
    medians = f"{statistics.median(one):.1f} | {statistics.median(two):.1f}"
    return f"| {title} | {medians} | **{middle:.2f}** ({spread}) | {goal}{'' if holds else ', missed'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY, help="a GGUF file; by default the tiny model")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=probe().threads)
    given = parser.parse_args()
    launch = Launch("bench", "llama_cpp", str(given.model), slots=CLIENTS, context=512, threads=given.threads)
    print(f"{given.model.name}, {given.threads} threads, {given.pairs} pairs", flush=True)
    print("| | direct | through the gateway | ratio or difference (lowest to highest) | goal |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        work = Path(name)
        sides = [running.enter_context(start(launch, work)) for start in (direct, through_gateway)]
        for title, measure, is_rate in FIGURES:
            measure(sides)  # a warm-up
            pairs = [measure(sides if number % 2 else sides[::-1]) for number in range(given.pairs)]
            print(row(title, pairs, is_rate=is_rate), flush=True)
        print(f"processor time of the gateway for a request: {processor_time(sides[1], TIMED):.2f} ms")


if __name__ == "__main__":
    main()

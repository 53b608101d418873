"""What hostile requests cost everybody else: `python bench/hostile.py [--model FILE] [--rounds N]`.

It serves the model and prints absolute figures, each beside the same request alone in the same run:
1. every hostile request by name (tests/hostile/cases.py): its answer, and a simple request one second later;
2. the first token of a simple request while eight dear constraints are prepared, and while eight abandoned ones end;
3. the tokens a second of a running stream meanwhile;
4. the first request under a new ordinary schema, and under a known one.
The memory of the worker and its children is read before and after. Run it on two versions to compare them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from portable_vs_native import weights

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.cases import Case, cases, chat, dear
from hostile.constraints import of_schema
from hostile.processes import memory
from serving import Serving, serve_command

_CHAT = "/v1/chat/completions"
_HANG_SECONDS = 150.0
_AT_ONCE = 8
_STREAM_TOKENS = 200


def connect(served: Serving) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=_HANG_SECONDS)


def ask(served: Serving, path: str, body: bytes | None = None) -> tuple[str, float]:
    """Return the status, or why there is none, and the seconds that the answer took."""
    start = time.perf_counter()
    try:
        with closing(connect(served)) as connection:
            connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            said = str(answer.status)
    except (OSError, http.client.HTTPException) as exc:
        said = type(exc).__name__
    return said, time.perf_counter() - start


def first_token(served: Serving) -> float:
    """Return the seconds until a simple streamed request has its first token."""
    start = time.perf_counter()
    with closing(connect(served)) as connection:
        connection.request("POST", _CHAT, chat(stream=True, max_tokens=1), {"content-type": "application/json"})
        for line in connection.getresponse():
            if b'"content":"' in line:
                break
        return time.perf_counter() - start


def stream_rate(served: Serving) -> float:
    """Return the tokens a second of one stream, from its first token to its last."""
    body = chat(stream=True, max_tokens=_STREAM_TOKENS, stream_options={"include_usage": True}, logit_bias=_no_end())
    times, tokens = [], 0
    with closing(connect(served)) as connection:
        connection.request("POST", _CHAT, body, {"content-type": "application/json"})
        for line in connection.getresponse():
            if b'"content":"' in line:
                times.append(time.perf_counter())
            if b'"completion_tokens"' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return (tokens - 1) / (times[-1] - times[0])


def _no_end() -> dict[str, int]:
    return {"2": -100, "0": -100}  # the ends of SmolLM2; for other models the stream may be shorter


@contextmanager
def sent(served: Serving, bodies: list[bytes], *, leave: bool) -> Iterator[None]:
    """Send the bodies at once. `leave`: hang up as soon as they are sent."""
    connections = [connect(served) for _ in bodies]
    for connection, body in zip(connections, bodies, strict=True):
        connection.request("POST", _CHAT, body, {"content-type": "application/json"})
    if leave:
        time.sleep(0.1)  # the server begins the work
        for connection in connections:
            connection.close()
    yield
    for connection in connections:
        connection.close()


def quiet(served: Serving) -> None:
    """Wait until a simple request is quick again, so that one measurement does not disturb the next."""
    best = min(first_token(served) for _ in range(3))
    while first_token(served) > best * 2:
        pass


def by_name(served: Serving, pid: int) -> None:
    alone = statistics.median(ask(served, _CHAT, chat())[1] for _ in range(9))
    print(f"\nA simple request of 32 tokens alone: {alone * 1000:.0f} ms")
    print(f"{'request':48} {'answer':>10} {'s':>7} {'then +ms':>9} {'MiB':>7}")
    for case in cases():
        said, seconds, later, grown = one_case(served, case, pid, alone)
        print(f"{case.name:48} {said:>10} {seconds:7.2f} {later * 1000:9.0f} {grown / 2**20:7.0f}", flush=True)


def one_case(served: Serving, case: Case, pid: int, alone: float) -> tuple[str, float, float, int]:
    before = memory(pid)
    answer: list[tuple[str, float]] = []
    thread = threading.Thread(target=lambda: answer.append(ask(served, case.path, case.body)))
    thread.start()
    time.sleep(1.0)
    _, seconds = ask(served, _CHAT, chat())
    thread.join()
    return *answer[0], seconds - alone, memory(pid) - before


def beside(title: str, unit: str, measure: Callable[[], float], load: Callable[[], Any], rounds: int) -> None:
    """Print the medians of a figure alone and under load, from interleaved pairs, with the spread."""
    alone, loaded = [], []
    for _ in range(rounds):
        alone.append(measure())
        with load():
            loaded.append(measure())
    print(
        f"{title}: alone {statistics.median(alone):.1f} {unit} ({min(alone):.1f} to {max(alone):.1f}), "
        f"meanwhile {statistics.median(loaded):.1f} {unit} ({min(loaded):.1f} to {max(loaded):.1f})",
        flush=True,
    )


def new_schemas(served: Serving, rounds: int) -> None:
    """Print what the first request under a new ordinary schema takes, and the second one."""
    first, second = [], []
    for number in range(rounds):
        names = [f"field_{number}_{i}_{os.getpid()}" for i in range(6)]
        schema = {
            "type": "object",
            "properties": {name: {"type": "string", "maxLength": 4} for name in names},
            "required": names,
            "additionalProperties": False,
        }
        body = chat(max_tokens=1, stream=True, **of_schema(schema))
        first.append(ask(served, _CHAT, body)[1] * 1000)
        second.append(ask(served, _CHAT, body)[1] * 1000)
    more = [one - two for one, two in zip(first, second, strict=True)]
    print(
        f"a new schema of six fields: {statistics.median(first):.1f} ms, known {statistics.median(second):.1f} ms; "
        f"the first takes {statistics.median(more):.1f} ms more ({min(more):.1f} to {max(more):.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; without it SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without-cases", action="store_true", help="leave out the requests by name")
    options = parser.parse_args()
    seeds = iter(range(10**9))

    def dear_ones() -> list[bytes]:
        return [chat(**dear(next(seeds))) for _ in range(_AT_ONCE)]

    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        model = options.model or weights(Path("build/smollm2"))
        with serve_command([str(model), "--context", "2048"], log) as served:
            [pid] = [each["pid"] for each in _health(served)["workers"].values()]
            first_token(served)
            before = memory(pid)
            new_schemas(served, options.rounds * 3)
            for leave, title in ((False, "tried"), (True, "abandoned")):
                load = lambda leave=leave: sent(served, dear_ones(), leave=leave)  # noqa: E731
                what = f"first token while {_AT_ONCE} dear constraints are {title}"
                beside(what, "ms", lambda: first_token(served) * 1000, load, options.rounds)
                quiet(served)
                what = f"tokens/s of a stream while {_AT_ONCE} dear constraints are {title}"
                beside(what, "tokens/s", lambda: stream_rate(served), load, max(3, options.rounds // 2))
                quiet(served)
            if not options.without_cases:
                by_name(served, pid)
            after = _health(served)["workers"].values()
            print(
                f"\nprocess {pid} → {[each['pid'] for each in after]}, restarts {[each['restarts'] for each in after]}"
            )
            print(f"memory {before / 2**20:.0f} → {memory(pid) / 2**20:.0f} MiB")
        print(f"the server's log: {len(log.read_text().splitlines())} lines")


def _health(served: Serving) -> Any:
    with closing(connect(served)) as connection:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())


if __name__ == "__main__":
    main()

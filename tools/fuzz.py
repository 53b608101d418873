"""Generated constraints and bodies against a running server: `python -m tools.fuzz [--seed N] [--count N]`.

It serves a model (`--model FILE`, or the tiny one with random weights), sends `--count` generated constraints and as
many bodies, four at once. It prints the seed, the slowest answers, the memory and every broken promise, and ends with 1
if there is one. The promises: no worker dies, no status of 500 or above but
503, no answer takes more than 15 s, and memory stays flat over the second half.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.bodies import bodies
from hostile.cases import chat
from hostile.constraints import constraints
from hostile.processes import memory
from serving import Serving, serve_command

from tools.random_gguf import write_random_gguf

_MOST_SECONDS = 15.0  # for one answer
_HANG_SECONDS = 120.0  # for a client to give up
_FLAT = 1.10  # how much the memory may grow over the second half
_AT_ONCE = 4
_SHOWN = 10
_CHAT = "/v1/chat/completions"


@dataclass
class Findings:
    """What the requests of one kind met. `broken`: a line for each broken promise."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, status: int, code: str, seconds: float, request: str) -> None:
        with self.lock:
            self.statuses[status] += 1
            self.codes[code] += 1
            self.seconds.append((seconds, request))
            if status >= 500 and status != 503:
                self.broken.append(f"status {status}: {request}")
            if seconds > _MOST_SECONDS:
                self.broken.append(f"{seconds:.1f} s: {request}")


def ask(served: Serving, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=_HANG_SECONDS)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def of_constraints(seed: int) -> Iterator[tuple[str, bytes]]:
    for fields in constraints(seed):
        yield _CHAT, chat(max_tokens=16, **fields)


def run(served: Serving, title: str, requests: Iterator[tuple[str, bytes]]) -> Findings:
    """Send the requests, four at once. Stop early if nobody answers any more."""
    found = Findings()
    gone = threading.Event()

    def one(request: tuple[str, bytes]) -> None:
        path, body = request
        if gone.is_set():
            return
        start = time.monotonic()
        try:
            status, answer = ask(served, path, body)
        except (OSError, http.client.HTTPException) as exc:
            with found.lock:
                found.broken.append(f"{type(exc).__name__}: {path} {body[:300]!r}")
            if served.process.poll() is not None:
                gone.set()
            return
        found.take(status, _code(answer), time.monotonic() - start, f"{path} {body[:300]!r}")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, _ in enumerate(pool.map(one, requests), 1):
            if number % 1000 == 0:
                print(f"{title}: {number} sent", file=sys.stderr, flush=True)
    return found


def _code(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "answered"


def state(served: Serving) -> dict[str, Any]:
    """Return of each worker the deaths so far, and the reason of the last one. A request may unload a worker."""
    workers = json.loads(ask(served, "/health")[1])["workers"]
    return {name: (each["restarts"], each["last_death"]) for name, each in workers.items()}


def size(served: Serving) -> int:
    """Return the memory of the worker and its children, in bytes. The model is loaded if it is not."""
    ask(served, _CHAT, chat())
    [worker] = json.loads(ask(served, "/health")[1])["workers"].values()
    return memory(worker["pid"])


def report(title: str, found: Findings) -> None:
    times = sorted(found.seconds, reverse=True)
    print(f"\n{title}: {sum(found.statuses.values())} answered")
    print(f"  statuses {dict(sorted(found.statuses.items()))}, codes {dict(found.codes.most_common(12))}")
    if times:
        print(f"  median {statistics.median(each for each, _ in times) * 1000:.1f} ms, slowest:")
    for seconds, request in times[:_SHOWN]:
        print(f"    {seconds:6.2f} s  {request[:160]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--count", type=int, default=14_000, help="constraints, and as many bodies")
    parser.add_argument("--model", type=Path, help="a GGUF file; without it the tiny model with random weights")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.count} of each")
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "tiny-random.gguf"
        if options.model is None:
            write_random_gguf(model)
        log = Path(name) / "log"
        with serve_command([str(model), "--context", "2048", "--offline"], log) as served:
            ok = _try_all(served, options.seed, options.count)
        lines = log.read_text(errors="replace").splitlines()
        traces = sum(line.startswith("Traceback") for line in lines)
        print(f"\nThe server's log has {len(lines)} lines and {traces} tracebacks. The last lines:")
        print("\n".join(f"  {line[:200]}" for line in lines[-_SHOWN:]))
    return 0 if ok and not traces else 1


def _try_all(served: Serving, seed: int, count: int) -> bool:
    """Run both kinds, in two halves each. Return whether every promise held."""
    ask(served, _CHAT, chat())  # the model has loaded when this is answered
    before, broken = state(served), []
    for title, requests in (("constraints", of_constraints(seed)), ("bodies", bodies(seed))):
        sizes = [size(served)]
        for half in (1, 2):
            found = run(served, f"{title}, half {half}", itertools.islice(requests, count // 2))
            report(f"{title}, half {half}", found)
            broken += [f"{title}: {line}" for line in found.broken]
            sizes.append(size(served))
            after = state(served)
            if after != before:
                broken.append(f"{title}: the worker was {before}, and now it is {after}")
                before = after
        print("  memory of the worker and its children: " + " → ".join(f"{each / 2**20:.0f} MiB" for each in sizes))
        if sizes[2] > sizes[1] * _FLAT:
            broken.append(f"{title}: memory grew from {sizes[1]} to {sizes[2]} bytes over the second half")
    print(f"\n{len(broken)} broken promises" + "".join(f"\n  {line[:400]}" for line in broken[:50]))
    return not broken


if __name__ == "__main__":
    sys.exit(main())

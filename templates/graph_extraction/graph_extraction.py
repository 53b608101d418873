"""Graph extraction: entities and relations from each document, and where the text names the entities.

When: news, reports, biographies; who leads, owns, supplies, founded whom or what, and where.
Cost: two calls per document (entities, then relations). Texts over CHUNK characters take two calls per chunk. The
second prompt begins with the whole first one, so the server computes the document once.
Edit: TYPES and RELATIONS (the model can use no others), the prompts, the limits, ROLE.
Run: `tourkit run graph_extraction --input documents.jsonl --output out.jsonl`, or, with plain Python,
`python graph_extraction.py documents.jsonl out.jsonl`.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tourkit.client import Client

ROLE = "graph"  # which model: a role, or a model id
THINKING = False  # True: a model that can think does so before it answers, which takes many tokens
TYPES = ("person", "organization", "place", "event", "product")
RELATIONS = {  # label: what it says about `from` and `to`
    "leads": "a person heads an organization",
    "works_for": "a person works for an organization",
    "founded": "a person founded an organization",
    "owns": "one organization owns or bought another",
    "part_of": "something is a part of something larger",
    "located_in": "something is in a place",
    "partner_of": "two organizations do something together",
    "supplies": "one organization delivers to another",
    "funds": "an organization pays for another",
    "produces": "an organization makes a product",
    "takes_part_in": "someone takes part in an event",
    "related_to": "a relation that none of the others names",
}
MAX_NODES = 8  # per chunk; limits make sure that the answer of a small model ends
MAX_NAME = 40  # characters
CHUNK = 3000  # characters of text per call: 1,000 to 1,400 tokens

SYSTEM = """You find entities and the relations between them in a text. Answer with JSON only.
The text stands between the lines `-----Text begins-----` and `-----Text ends-----`.
Copy each name letter by letter as the text writes it, in full, without quotation marks, each entity once.
Types of entities: {types}.
Relations, from one entity to another:
{relations}"""
NODES = """-----Text begins-----
{text}
-----Text ends-----
First step: list the most important entities as "nodes", each with "name" and "type"."""
EDGES = """Second step: list the relations the text states between these nodes: {"from": {"to": "label"}}.
"from" and "to" are names of nodes, in the order of the list. Leave out what the text does not state."""


# A document with `"form": "list"` is asked in the earlier form, for models that were trained with it (weights/tiny):
# the key of a name is "id", and the relations are a list. That form does not exclude repeated edges.
LIST_NODES = NODES.replace('"name"', '"id" (its name)')
LIST_EDGES = """\
Second step: list the relations the text states between these nodes as "edges", each with "from", "to" and
"label". No relation twice, none of a node to itself."""


def run(document: dict[str, Any], client: Client) -> dict[str, Any]:
    """Return the record of one document. Raises ClientError if the server fails."""
    text = document["text"]
    graph = Graph()
    for start, end in chunks(text, CHUNK):
        found, related = ask(text[start:end], client, as_list=document.get("form") == "list")
        graph.add(found, related)
    nodes = [{**node, "mentions": mentions(node, text)} for node in graph.nodes.values()]
    seen = {node["name"] for node in nodes if node["mentions"]}
    edges = [{**edge, "grounded": edge["from"] in seen and edge["to"] in seen} for edge in graph.edges]
    return {"id": document["id"], "ok": True, "nodes": nodes, "edges": edges, "dropped": graph.dropped}


def ask(text: str, client: Client, as_list: bool = False) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask the model about one chunk. Return its nodes, and edges whose ends can only be these nodes."""
    relations = "\n".join(f"- {label}: {meaning}" for label, meaning in RELATIONS.items())
    system = SYSTEM.replace("{types}", ", ".join(TYPES)).replace("{relations}", relations)
    key, first, second = ("id", LIST_NODES, LIST_EDGES) if as_list else ("name", NODES, EDGES)
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": first.replace("{text}", text)},
    ]
    found = client.structured(messages, nodes_schema(key), temperature=0, thinking=THINKING)["nodes"]
    nodes = [{"name": node[key], "type": node["type"]} for node in found]
    # The second step lists each entity once: then no edge can join two spellings of one entity.
    once = list({normal_name(node["name"]): node for node in reversed(nodes)}.values())[::-1]
    if len(once) < 2:
        return nodes, []
    listed = [{key: node["name"], "type": node["type"]} for node in once]
    messages += [
        {"role": "assistant", "content": json.dumps({"nodes": listed}, ensure_ascii=False)},
        {"role": "user", "content": second},
    ]
    schema = (edge_list_schema if as_list else edges_schema)([node["name"] for node in once])
    answer = client.structured(messages, schema, temperature=0, thinking=THINKING)
    return nodes, answer["edges"] if as_list else edges_of(answer)


def nodes_schema(key: str = "name") -> dict[str, Any]:
    name = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
    node = closed({key: name, "type": {"type": "string", "enum": list(TYPES)}}, [key, "type"])
    nodes = {"type": "array", "items": node, "maxItems": MAX_NODES}
    return {"title": "nodes", **closed({"nodes": nodes}, ["nodes"])}


def edges_schema(names: list[str]) -> dict[str, Any]:
    """Return the schema of {from: {to: label}}. Keys are unique: no pair twice, and no node with itself."""
    label = {"type": "string", "enum": list(RELATIONS)}
    pairs = {source: closed({target: label for target in names if target != source}) for source in names}
    return {"title": "edges", **closed(pairs)}


def edge_list_schema(names: list[str]) -> dict[str, Any]:
    end = {"type": "string", "enum": names}
    label = {"type": "string", "enum": list(RELATIONS)}
    edge = closed({"from": end, "label": label, "to": end}, ["from", "label", "to"])
    return {"title": "edges", **closed({"edges": {"type": "array", "items": edge, "maxItems": MAX_NODES}}, ["edges"])}


def closed(properties: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the schema of an object that has no other properties than these."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def edges_of(answer: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Return {from: {to: label}} as a list of edges."""
    return [
        {"from": source, "to": target, "label": label}
        for source, targets in answer.items()
        for target, label in targets.items()
    ]


class Graph:
    """Nodes by the normal form of their name, and edges between them. `dropped` lists the rest with the reason."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.edges: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []

    def add(self, nodes: list[dict[str, Any]], edges: list[dict[str, Any]]) -> None:
        for node in nodes:
            key = normal_name(node["name"])
            if not key or node["type"] not in TYPES:
                self.dropped.append({"node": node, "why": "unknown type" if key else "no name"})
                continue
            known = self.nodes.setdefault(key, {"name": node["name"], "type": node["type"], "aliases": []})
            if node["name"] not in (known["name"], *known["aliases"]):
                known["aliases"].append(node["name"])
        for edge in edges:
            if why := self._add_edge(edge):
                self.dropped.append({"edge": edge, "why": why})

    def _add_edge(self, edge: dict[str, Any]) -> str | None:
        source = self.nodes.get(normal_name(edge["from"]))
        target = self.nodes.get(normal_name(edge["to"]))
        if source is None or target is None:
            return "an end is no node"
        if edge["label"] not in RELATIONS:
            return "unknown relation"
        if source is target:
            return "from a node to itself"
        whole = {"from": source["name"], "to": target["name"], "label": edge["label"]}
        if whole in self.edges:
            return "said twice"
        self.edges.append(whole)
        return None


ARTICLES = {"the", "a", "an"}
LEGAL_FORMS = {"inc", "ltd", "llc", "plc", "corp", "co", "company", "gmbh", "ag", "sa", "nv", "bv", "&"}
LEGAL_FORMS |= {"ооо", "оао", "зао", "пао", "ао", "ип", "тоо", "муп", "фгуп", "нко"}


def normal_name(name: str) -> str:
    """Return a name without case, quotes, articles and legal forms: "ООО «Вектра»" and "Вектра" are one entity."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    words = re.sub(r"[«»„“”\"'’`.,;()]", " ", plain).split()
    core = list(words)
    while len(core) > 1 and core[0] in ARTICLES | LEGAL_FORMS:
        del core[0]
    while len(core) > 1 and core[-1] in LEGAL_FORMS:
        del core[-1]
    return " ".join(core)


def mentions(node: dict[str, Any], text: str) -> list[list[int]]:
    """Return where the text names the node: [start, end) in characters, sorted. Inflected forms are not found."""
    places: set[tuple[int, int]] = set()
    for name in (node["name"], *node["aliases"]):
        words = [re.sub("[её]", "[её]", re.escape(word), flags=re.IGNORECASE) for word in name.split()]
        if words:
            pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"
            places.update(match.span() for match in re.finditer(pattern, text, re.IGNORECASE))
    return [list(place) for place in sorted(places)]


def chunks(text: str, most: int) -> list[tuple[int, int]]:
    """Cut the text into [start, end) pieces of at most `most` characters, after a sentence if possible."""
    ends = [match.end() for match in re.finditer(r"[.!?…][»”\")]*\s+|\n+", text)] + [len(text)]
    pieces: list[tuple[int, int]] = []
    start = last = 0
    for end in ends:
        if end - start > most and last > start:
            pieces.append((start, last))
            start = last
        while end - start > most:  # one sentence longer than a chunk
            pieces.append((start, start + most))
            start += most
        last = end
    if start < len(text):
        pieces.append((start, len(text)))
    return [(a, b) for a, b in pieces if text[a:b].strip()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Extract a graph of entities and relations from each document.")
    parser.add_argument("input", type=Path, help="JSON Lines: id and text")
    parser.add_argument("output", type=Path, help="JSON Lines: one record per document, in the same order")
    parser.add_argument("--url", help="the server; default $TOURKIT_URL or http://127.0.0.1:8000")
    parser.add_argument("--model", default=ROLE, help=f"role or model id; default {ROLE}")
    parser.add_argument("--workers", type=int, default=8, help="documents at a time; default 8")
    args = parser.parse_args(argv)
    lines = args.input.read_text(encoding="utf-8").split("\n")
    documents = [json.loads(line) for line in lines if line.strip()]
    failed = 0
    with (
        Client(args.url, model=args.model) as client,
        ThreadPoolExecutor(args.workers) as pool,
        args.output.open("w", encoding="utf-8") as out,
    ):
        for record in pool.map(lambda document: record_of(document, client), documents):
            failed += not record["ok"]
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{len(documents)} documents, {failed} failed: {args.output}", file=sys.stderr)
    return 1 if failed else 0


def record_of(document: dict[str, Any], client: Client) -> dict[str, Any]:
    """Return the record of `run`, or a record with the error: no document is lost."""
    try:
        return run(document, client)
    except Exception as error:  # noqa: BLE001 - one bad document must not end the others
        return {
            "id": document.get("id"),
            "ok": False,
            "error": str(error) or repr(error),
            "type": type(error).__name__,
        }


if __name__ == "__main__":
    sys.exit(main())

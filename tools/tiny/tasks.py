"""Conversations of the six tasks. Each is a list of messages; the model learns to write the answers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny import prompts, schemas
from tools.tiny.arithmetic import problem
from tools.tiny.documents import Split, document
from tools.tiny.fields import KINDS
from tools.tiny.graphs import graph_text

_EXTRACT = prompts.template("json_extraction")
_GRAPH = prompts.template("graph_extraction")
_VOTE = prompts.template("self_consistency")

WEIGHTS = {  # by run: the shares of the tasks
    "first": {"json": 60, "graph": 12, "classify": 9, "repair": 3, "cite": 6, "arithmetic": 10},
    "last": {"json": 52, "graph": 14, "classify": 7, "repair": 4, "cite": 8, "arithmetic": 15},
    "graphs": {"json": 25, "graph": 50, "classify": 5, "repair": 4, "cite": 6, "arithmetic": 10},
}
_SHORT = ("Extract JSON.\nSchema:\n{schema}", "Schema:\n{schema}")

_COMPACT = ("JSON fields: {fields}", "Extract: {fields}")


@dataclass(frozen=True, slots=True)
class Phase:
    """The samples of one part of the training.

    Shares of the extraction samples: `drill` (one to three sentences, their fields, several turns), `compact` (a
    document with a short list of fields), `schema` (with a bare schema), `full` (with the whole prompt of a template).
    `blur`: share of sentences with one word changed. `run`: draw the tasks by the WEIGHTS of this run.
    """

    drill: float
    compact: float
    schema: float
    full: float
    blur: float = 0.0
    run: str = "first"


EARLY = Phase(0.65, 0.25, 0.06, 0.04)
MIDDLE = Phase(0.25, 0.30, 0.25, 0.20)
LAST = Phase(0.10, 0.10, 0.20, 0.60, blur=0.3, run="last")
GRAPHS = Phase(0.10, 0.10, 0.20, 0.60, blur=0.3, run="graphs")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. `messages` ends with the answer, `schema` is its schema, `about` is for scores and tests."""

    task: str
    lang: str
    messages: list[Message]
    schema: dict[str, Any] | None
    gold: Any
    about: dict[str, Any]


def dumps(value: Any) -> str:
    """Return JSON as the engine's grammar writes it: ", " and ": ", no escapes for letters."""
    return json.dumps(value, ensure_ascii=False)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def pick_lang(rng: Random) -> str:
    return "en" if rng.random() < 0.5 else "ru"


def json_sample(
    rng: Random, split: Split, *, lang: str, style: str = "full", rich: bool = True, turns: int = 1
) -> Sample:
    """Task (a), extraction. `style`: full is the prompt of templates/json_extraction; the others are short."""
    kind = rng.choice(list(KINDS))
    parts = schemas.plan(rng, kind, split)
    schema = schemas.schema(kind, parts, rich=rich, titled=rich and rng.random() < 0.4)
    if style == "compact":
        system = rng.choice(_COMPACT).replace("{fields}", schemas.brief(parts))
    else:
        system = _EXTRACT.SYSTEM if style == "full" else rng.choice(_SHORT)
        system = system.replace("{schema}", dumps(schema))
    messages = [_message("system", system)]
    for _ in range(turns):
        doc = document(rng, kind, lang, split)
        gold = schemas.answer(doc, parts)
        user = _EXTRACT.USER.replace("{text}", doc.text) if style == "full" else doc.text
        messages += [_message("user", user), _message("assistant", dumps(gold))]
    keys = [part.key for part in parts]
    about = {"kind": kind, "keys": keys, "lines": doc.lines, "names": doc.names, "text": doc.text, "document": doc}
    return Sample("json", lang, messages, schema, gold, about)


def drill_sample(rng: Random, split: Split, *, lang: str, turns: int) -> Sample:
    """Task (a) in its shortest form, with most learnt tokens: each turn has fields and the sentences."""
    messages: list[Message] = []
    lines: set[str] = set()
    names: set[str] = set()
    keys: set[tuple[str, tuple[str, ...]]] = set()
    for _ in range(turns):
        kind = rng.choice(list(KINDS))
        doc = document(rng, kind, lang, split, most=rng.choice([1, 1, 2, 3]))
        parts = schemas.plan(rng, kind, split, [field for field in KINDS[kind] if field.name in doc.evidence])
        asked = rng.choice(_COMPACT).replace("{fields}", schemas.brief(parts))
        gold = schemas.answer(doc, parts)
        messages += [_message("user", f"{asked}\n{doc.text}"), _message("assistant", dumps(gold))]
        lines |= doc.lines
        names |= doc.names
        keys.add((kind, tuple(part.key for part in parts)))
    about = {"lines": frozenset(lines), "names": frozenset(names), "schemas": frozenset(keys)}
    return Sample("drill", lang, messages, None, gold, about)


def graph_sample(rng: Random, split: Split, *, lang: str, full: bool) -> Sample:
    """Task (b): entities, then relations, as templates/graph_extraction asks."""
    graph = graph_text(rng, lang, split)
    relations = "\n".join(f"- {label}: {meaning}" for label, meaning in _GRAPH.RELATIONS.items())
    system = _GRAPH.SYSTEM.replace("{types}", ", ".join(_GRAPH.TYPES)).replace("{relations}", relations)
    messages = [_message("system", system)] if full else []
    user = _GRAPH.NODES.replace("{text}", graph.text)
    messages += [
        _message("user", user),
        _message("assistant", dumps({"nodes": list(graph.nodes)})),
        _message("user", _GRAPH.EDGES),
        _message("assistant", dumps(by_source(graph.edges))),
    ]
    names = [node["name"] for node in graph.nodes]
    gold = {"nodes": list(graph.nodes), "edges": list(graph.edges)}
    about = {"lines": graph.lines, "names": graph.names, "text": graph.text}
    return Sample("graph", lang, messages, _GRAPH.edges_schema(names), gold, about)


def by_source(edges: Iterable[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return edges as templates/graph_extraction asks for them: {from: {to: label}}."""
    answer: dict[str, dict[str, str]] = {}
    for edge in edges:
        answer.setdefault(edge["from"], {})[edge["to"]] = edge["label"]
    return answer


def classify_sample(rng: Random, split: Split, *, lang: str, turns: int = 1, short: bool = False) -> Sample:
    """Task (c): the kind of the document, or the value of its choice field, among given labels."""
    kind = rng.choice(list(KINDS))
    choices = [field for field in KINDS[kind] if field.type.startswith("enum:")]
    field = rng.choice(choices) if choices and rng.random() < 0.4 else None
    if field is not None:
        labels = field.type[5:].split(",")
    else:
        labels = [kind, *rng.sample([other for other in KINDS if other != kind], rng.randint(2, 5))]
    rng.shuffle(labels)
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    messages = [_message("system", prompts.CLASSIFY.replace("{labels}", ", ".join(labels)))]
    lines: set[str] = set()
    names: set[str] = set()
    for _ in range(turns):
        kind = kind if field is not None else rng.choice(labels)
        doc = document(rng, kind, lang, split, most=rng.choice([2, 3]) if short and field is None else 0)
        gold = {"label": kind if field is None else doc.facts[field.name]}
        messages += [_message("user", doc.text), _message("assistant", dumps(gold))]
        lines |= doc.lines
        names |= doc.names
    about = {"lines": frozenset(lines), "names": frozenset(names), "text": doc.text, "kind": kind}
    return Sample("classify", lang, messages, schema, gold, about)


def broken(text: str, rng: Random) -> str:
    """JSON with one or two of the faults that models and people make."""
    for _ in range(rng.choice([1, 1, 2])):
        fault = rng.randrange(7)
        if fault == 0:
            text = text.rstrip("}]") if rng.random() < 0.5 else text[:-1]
        elif fault == 1:
            text = text.replace('"', "'")
        elif fault == 2:
            text = text[:-1] + ("," if rng.random() < 0.5 else ", ") + text[-1]
        elif fault == 3:
            text = text.replace("null", "None").replace("true", "True").replace("false", "False")
        elif fault == 4 and '", "' in text:
            text = text.replace('", "', '" "', 1)
        elif fault == 5 and '": ' in text:
            key = text.split('"')[1] if '"' in text else ""
            text = text.replace(f'"{key}":', f"{key}:", 1)
        elif fault == 6:
            text = rng.choice(["Here it is: ", "```json\n", "JSON: "]) + text
    return text


def repair_sample(rng: Random, split: Split, *, lang: str) -> Sample:
    """Task (d): broken JSON in, whole JSON out."""
    kind = rng.choice(list(KINDS))
    parts = schemas.plan(rng, kind, split)
    doc = document(rng, kind, lang, split)
    gold = schemas.answer(doc, parts)
    messages = [
        _message("system", prompts.REPAIR),
        _message("user", broken(dumps(gold), rng)),
        _message("assistant", dumps(gold)),
    ]
    about = {"lines": doc.lines, "names": doc.names, "keys": [part.key for part in parts], "kind": kind}
    return Sample("repair", lang, messages, None, gold, about)


def cite_sample(rng: Random, split: Split, *, lang: str, turns: int = 1) -> Sample:
    """Task (e): a short answer and the number of its sentence; both are null if no sentence has the answer."""
    kind = rng.choice(list(KINDS))
    doc = document(rng, kind, lang, split)
    askable = [f for f in KINDS[kind] if f.labels["en"][0] and not f.type.startswith("list:") and f.type != "money"]
    numbered = "\n".join(f"[{n}] {sentence}" for n, sentence in enumerate(doc.sentences, 1))
    messages = [_message("system", prompts.CITE)]
    word = {"en": "Question", "ru": "Вопрос"}[lang]
    for index, field in enumerate(rng.sample(askable, turns)):
        value, place = doc.facts[field.name], doc.evidence.get(field.name)
        gold = {"answer": None if value is None else str(value), "source": None if place is None else place + 1}
        question = f"{word}: {rng.choice(field.labels[lang])}?"
        messages.append(_message("user", question if index else f"{numbered}\n{question}"))
        messages.append(_message("assistant", dumps(gold)))
    schema = {
        "type": "object",
        "properties": {
            "answer": {"type": ["string", "null"], "maxLength": 60},
            "source": {"type": ["integer", "null"]},
        },
        "required": ["answer", "source"],
        "additionalProperties": False,
    }
    about = {"lines": doc.lines, "names": doc.names, "text": doc.text, "kind": kind}
    return Sample("cite", lang, messages, schema, gold, about)


def arithmetic_sample(rng: Random, split: Split, *, lang: str, turns: int = 1) -> Sample:
    """Task (f), as templates/self_consistency asks it: reasoning first, then the bare number."""
    messages = [_message("system", _VOTE.SYSTEM)]
    for _ in range(turns):
        task = problem(rng, lang, split.lines)
        gold = {"reasoning": task.reasoning, "answer": str(task.answer)}
        messages += [
            _message("user", _VOTE.USER.replace("{text}", task.text)),
            _message("assistant", dumps(gold)),
        ]
    schema = _VOTE.answer_schema({"kind": "number"})
    return Sample("arithmetic", lang, messages, schema, gold, {"lines": task.lines, "names": frozenset()})


def sample(seed: int | str, index: int, phase: Phase = MIDDLE) -> Sample:
    """Return training sample number `index`. It is the same for the same seed and phase on every machine."""
    rng = Random(f"{seed}:{index}")
    split, lang = Split(blur=phase.blur), pick_lang(rng)
    weights = WEIGHTS[phase.run]
    task = rng.choices(list(weights), list(weights.values()))[0]
    styles = {"drill": phase.drill, "compact": phase.compact, "schema": phase.schema, "full": phase.full}
    style = rng.choices(list(styles), list(styles.values()))[0]
    if task == "json":
        if style == "drill":
            return drill_sample(rng, split, lang=lang, turns=rng.randint(3, 6))
        turns, rich = rng.choice([1, 2, 3]), style == "full" or rng.random() < 0.2
        return json_sample(rng, split, lang=lang, style=style, rich=rich, turns=turns)
    if task == "graph":
        return graph_sample(rng, split, lang=lang, full=style == "full")
    if task == "classify":
        return classify_sample(rng, split, lang=lang, turns=rng.randint(1, 4), short=style == "drill")
    if task == "repair":
        return repair_sample(rng, split, lang=lang)
    if task == "cite":
        return cite_sample(rng, split, lang=lang, turns=rng.randint(1, 4))
    return arithmetic_sample(rng, split, lang=lang, turns=rng.randint(1, 5))


def pieces(messages: list[Message]) -> list[tuple[str, bool]]:
    """Cut the text of a conversation into (piece, learnt). Only answers and the end mark after them are learnt."""
    result: list[tuple[str, bool]] = []
    for message in messages:
        if message["role"] == "assistant":
            result += [("<|start|>assistant\n", False), (message["content"] + "<|end|>", True), ("\n", False)]
        else:
            result.append((prompts.turn(message["role"], message["content"]), False))
    return result

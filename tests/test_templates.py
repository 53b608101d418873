"""The templates: their sample documents, their results for good and for useless answers, and copies of them."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from openai_stub import Answer, Refusal, minimal_instance, schema_of, serve
from template_names import NAMES

from tools.tiny.documents import Split
from tools.tiny.names import HELD
from tools.tiny.tasks import json_sample
from tourkit.client import Client
from tourkit.data import TEMPLATES
from tourkit.errors import LocalError, UsageError
from tourkit.manifest.models import ROLES
from tourkit.pipelines.batch import run_batch
from tourkit.pipelines.templates import available, copy, load_template, readme


def module(name: str) -> ModuleType:
    return sys.modules[load_template(name).run.__module__]


json_extraction = module("json_extraction")
graph_extraction = module("graph_extraction")
self_consistency = module("self_consistency")


def rows(name: str, file: str) -> list[dict[str, Any]]:
    text = (TEMPLATES / name / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def documents(name: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows(name, "documents.jsonl")}


def gold(name: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows(name, "gold.jsonl")}


def by_source(edges: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return edges as the second answer of graph_extraction has them: {from: {to: label}}."""
    answer: dict[str, dict[str, str]] = {}
    for edge in edges:
        answer.setdefault(edge["from"], {})[edge["to"]] = edge["label"]
    return answer


# --- sample documents and gold ---


@pytest.mark.parametrize("name", NAMES)
def test_there_are_thirty_documents_half_of_them_russian_each_with_gold(name: str) -> None:
    found, answers = rows(name, "documents.jsonl"), rows(name, "gold.jsonl")

    assert len(found) >= 30
    assert all(set(row) >= {"id", "lang", "kind", "text"} for row in found)
    assert {lang: sum(row["lang"] == lang for row in found) for lang in ("en", "ru")} == {
        "en": len(found) // 2,
        "ru": len(found) // 2,
    }
    assert [row["id"] for row in found] == [row["id"] for row in answers]
    assert len({row["id"] for row in found}) == len(found)
    assert len({row["text"] for row in found}) == len(found)


def test_json_gold_follows_its_schema_and_stands_in_its_text() -> None:
    answers = gold("json_extraction")
    for identity, document in documents("json_extraction").items():
        schema, data = json_extraction.schema_for(document), answers[identity]["data"]
        assert json_extraction.check(data, schema) == (True, None), identity
        found = json_extraction.grounded(data, schema, document["text"])
        loose = {pointer for pointer, occurs in found.items() if not occurs}
        # Values that the text states in words: "two dry suits", "admission is free".
        assert all(pointer.endswith(("/quantity", "/price/amount")) for pointer in loose), (identity, loose)


def test_the_four_kinds_have_eight_documents_or_more_in_both_languages() -> None:
    kinds: dict[str, list[str]] = {}
    for document in documents("json_extraction").values():
        kinds.setdefault(document["kind"], []).append(document["lang"])

    assert sorted(kinds) == ["event", "invoice", "lab_report", "notice"]
    assert all(len(langs) >= 8 and set(langs) == {"en", "ru"} for langs in kinds.values())


def test_graph_gold_stands_in_its_text_and_uses_the_templates_types_and_relations() -> None:
    answers, labels = gold("graph_extraction"), set()
    for identity, document in documents("graph_extraction").items():
        nodes, edges = answers[identity]["nodes"], answers[identity]["edges"]
        names = [node["name"] for node in nodes]
        jsonschema.validate({"nodes": nodes}, graph_extraction.nodes_schema())
        jsonschema.validate(by_source(edges), graph_extraction.edges_schema(names))
        assert len(graph_extraction.edges_of(by_source(edges))) == len(edges), identity
        assert all(graph_extraction.mentions({**node, "aliases": []}, document["text"]) for node in nodes), identity
        labels |= {edge["label"] for edge in edges}

    assert labels == set(graph_extraction.RELATIONS) - {"related_to"}


def test_self_consistency_gold_can_be_said_under_the_schema() -> None:
    answers = gold("self_consistency")
    for identity, document in documents("self_consistency").items():
        answer = answers[identity]["answer"]
        schema = self_consistency.answer_schema(document)
        jsonschema.validate({"reasoning": "", "answer": str(answer)}, schema)
        assert isinstance(answer, str) == (document["kind"] != "number"), identity


# --- schemas whose answers always end ---


def longest(schema: dict[str, Any]) -> int:
    """Return the characters of the longest compact instance. Fails if there is no limit."""
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    if kind == "object":
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(schema["properties"])
        return 2 + sum(len(key) + 4 + longest(part) for key, part in schema["properties"].items())
    if kind == "array":
        return 2 + int(schema["maxItems"]) * (1 + longest(schema["items"]))
    if kind == "string":
        return 2 + (max(len(str(value)) for value in schema["enum"]) if "enum" in schema else int(schema["maxLength"]))
    if kind == "integer":
        return max(len(str(schema["minimum"])), len(str(schema["maximum"])))
    assert kind == "boolean"  # a JSON number has no limit on its digits
    return 5


def schemas() -> list[Any]:
    files = sorted((TEMPLATES / "json_extraction" / "schemas").glob("*.json"))
    found = [pytest.param(json.loads(path.read_text(encoding="utf-8")), 600, id=path.stem) for path in files]
    for kind in ({"kind": "number"}, {"choices": ["yes", "no"]}, {"kind": "text"}):
        found.append(pytest.param(self_consistency.answer_schema(kind), 450, id=f"answer-{next(iter(kind))}"))
    found.append(pytest.param(graph_extraction.nodes_schema(), 700, id="nodes"))
    names = [str(index) + "x" * (graph_extraction.MAX_NAME - 1) for index in range(graph_extraction.MAX_NODES)]
    found.append(pytest.param(graph_extraction.edges_schema(names), 4000, id="edges"))
    found.append(pytest.param(graph_extraction.edge_list_schema(["x" * 40, "y"]), 1200, id="edge-list"))
    return found


@pytest.mark.parametrize(("schema", "most"), schemas())
def test_every_answer_is_bounded(schema: dict[str, Any], most: int) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert longest(schema) <= most


@pytest.mark.parametrize(("schema", "most"), schemas())
def test_the_grammar_library_takes_every_schema_as_it_is(schema: dict[str, Any], most: int) -> None:
    """In strict form: no rung of the relaxation ladder is needed."""
    llguidance = pytest.importorskip("llguidance")
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    assert llguidance.LLMatcher.validate_grammar_with_warnings(grammar) == (False, [])


# --- whole runs against the server ---

Oracle = Callable[[dict[str, Any], int], str]

# By template: the reply of a model that knows the gold answer. The schema is that of the request.
SAYS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "json_extraction": lambda right, schema: right["data"],
    "graph_extraction": lambda right, schema: (
        {"nodes": right["nodes"]} if schema["title"] == "nodes" else by_source(right["edges"])
    ),
    "self_consistency": lambda right, schema: {"reasoning": "It is so.", "answer": str(right["answer"])},
}


def test_the_model_that_knows_every_answer_knows_every_template() -> None:
    """If this fails, add a row to SAYS."""
    assert sorted(SAYS) == NAMES


def oracle(name: str) -> Oracle:
    """Return a model that knows the gold answer of every sample document."""
    texts = {row["text"]: row["id"] for row in rows(name, "documents.jsonl")}
    answers, says = gold(name), SAYS[name]

    def answer(body: dict[str, Any], index: int) -> str:
        prompt = body["messages"][1]["content"]
        right = answers[next(identity for text, identity in texts.items() if text in prompt)]
        return json.dumps(says(right, schema_of(body)), ensure_ascii=False)

    return answer


def run_all(name: str, out: Path, answer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of all sample documents, and their requests."""
    with serve(answer) as stub:
        run_batch(name, TEMPLATES / name / "documents.jsonl", out, client=Client(stub.url), concurrency=4)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()], stub.bodies


@pytest.mark.starts
def test_json_extraction_gives_what_the_model_says_in_one_call_a_document(tmp_path: Path) -> None:
    records, bodies = run_all("json_extraction", tmp_path / "out.jsonl", oracle("json_extraction"))

    right = gold("json_extraction")
    assert all(record["ok"] and record["validated"] for record in records)
    assert {record["id"]: record["data"] for record in records} == {k: v["data"] for k, v in right.items()}
    assert len(bodies) == len(records)
    assert {body["model"] for body in bodies} == {"fast"}


@pytest.mark.starts
def test_graph_extraction_gives_what_the_model_says_in_two_calls_a_document(tmp_path: Path) -> None:
    records, bodies = run_all("graph_extraction", tmp_path / "out.jsonl", oracle("graph_extraction"))

    for record, right in zip(records, gold("graph_extraction").values(), strict=True):
        assert [{"name": node["name"], "type": node["type"]} for node in record["nodes"]] == right["nodes"]
        assert [{k: edge[k] for k in ("from", "to", "label")} for edge in record["edges"]] == right["edges"]
        assert all(edge["grounded"] for edge in record["edges"])
        assert record["dropped"] == []
    assert len(bodies) == 2 * len(records)


@pytest.mark.starts
def test_self_consistency_gives_what_the_model_says_in_one_call_when_all_agree(tmp_path: Path) -> None:
    records, bodies = run_all("self_consistency", tmp_path / "out.jsonl", oracle("self_consistency"))

    right = gold("self_consistency")
    assert {record["id"]: record["answer"] for record in records} == {k: v["answer"] for k, v in right.items()}
    assert {(record["share"], record["samples"], record["spoiled"]) for record in records} == {(1.0, 4, 0)}
    assert {body["n"] for body in bodies} == {4}
    assert len(bodies) == len(records)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.starts
def test_a_model_that_understands_nothing_still_gives_a_record_a_document(name: str, tmp_path: Path) -> None:
    records, _ = run_all(
        name, tmp_path / "out.jsonl", lambda body, index: json.dumps(minimal_instance(schema_of(body)))
    )

    assert [record["id"] for record in records] == list(documents(name))
    assert all(record["ok"] for record in records)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [Answer('{"nodes": [', "length"), "I am sorry.", "[]", Refusal(400, "no")])
@pytest.mark.starts
def test_a_model_that_fails_gives_a_failure_a_document(name: str, answer: Any, tmp_path: Path) -> None:
    records, _ = run_all(name, tmp_path / "out.jsonl", lambda body, index: answer)

    assert [record["id"] for record in records] == list(documents(name))
    assert not any(record["ok"] for record in records)
    assert all(record["error"] for record in records)


# --- JSON extraction ---

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.starts
def test_an_answer_that_breaks_the_schema_is_asked_for_again_with_the_reason() -> None:
    answers = iter(['{"name": "Ann", "age": -1}', '{"name": "Ann", "age": 7}'])
    document = {"id": "x", "text": "Ann is 7.", "schema": PERSON}
    with serve(lambda body, index: next(answers)) as stub, Client(stub.url) as client:
        record = json_extraction.run(document, client)

    assert record["data"] == {"name": "Ann", "age": 7}
    assert (record["ok"], record["validated"]) == (True, True)
    assert record["grounded"] == {"/name": True, "/age": True}
    assert record["ungrounded"] == []
    assert "$.age: -1 is less than the minimum" in stub.texts()[1]
    assert stub.bodies[1]["messages"][:2] == stub.bodies[0]["messages"]


@pytest.mark.starts
def test_an_answer_that_breaks_the_schema_twice_is_a_failure_with_its_data() -> None:
    document = {"id": "x", "text": "Ann is 7.", "schema": PERSON}
    with serve(lambda body, index: '{"name": "Ann", "age": -1}') as stub, Client(stub.url) as client:
        record = json_extraction.run(document, client)

    assert record["ok"] is False
    assert record["data"] == {"name": "Ann", "age": -1}
    assert record["error"].startswith("the answer breaks the schema: $.age")
    assert len(stub.bodies) == 2


@pytest.mark.starts
def test_a_server_that_refuses_the_choices_is_asked_with_the_schema_itself() -> None:
    def answer(body: dict[str, Any], index: int) -> str | Refusal:
        return '{"name": "Ann", "age": 7}' if schema_of(body) == PERSON else Refusal(400, "too many choices")

    with serve(answer) as stub, Client(stub.url) as client:
        record = json_extraction.run({"id": "x", "text": "Ann is 7.", "schema": PERSON}, client)

    assert record["data"] == {"name": "Ann", "age": 7}
    assert "Ann" in schema_of(stub.bodies[0])["properties"]["name"]["enum"]


def test_a_kind_without_a_schema_names_the_kinds_there_are() -> None:
    with pytest.raises(ValueError, match=r"'recipe'.*event, invoice, lab_report, notice"):
        json_extraction.schema_for({"id": "x", "kind": "recipe", "text": ""})


@pytest.mark.starts
def test_braces_in_a_document_are_text() -> None:
    """Prompts are filled with replace(), not format(), because people put JSON examples into them."""
    document = {"id": "x", "text": "{schema} {0} {text}", "schema": PERSON}
    with serve(lambda body, index: '{"name": "{0}", "age": 0}') as stub, Client(stub.url) as client:
        json_extraction.run(document, client)

    assert "{schema} {0} {text}" in stub.bodies[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("leaf", "text", "occurs"),
    [
        ("Alice", "ask ALICE", True),
        ("ООО «Ёлка»", "счёт ооо «Елка» от", True),
        ("two  words", "two\nwords", True),
        ("Bob", "ask Alice", False),
        ("", "anything", False),
        ("1240.50", "1 240,50 руб.", True),
        ("1240.50", "EUR 1,240.50", True),
        ("1240.50", "1.240,50 EUR", True),
        ("900", "900 рублей", True),
        ("240", "1 240,50", True),  # a wrong match is accepted here, because digits may be grouped in any way
        ("5", "15 or 50", False),
        ("<0.5", "<0,5 ммоль/л", True),
        ("2026-03-05", "5 марта 2026 года", True),
        ("2026-03-05", "05.03.2026", True),
        ("2026-03-05", "6 March 2026", False),
        ("2024-03-18", "03.02.2024 18:41", False),
        ("09:00", "at 9:00", True),
        ("19:00", "at 9:00", False),
        (7, "seven", False),
        (7, "7 pieces", True),
        (2.5, "2,5 кг", True),
    ],
)
def test_evidence_compares_values_not_spellings(leaf: Any, text: str, occurs: bool) -> None:
    assert json_extraction.occurs(leaf, json_extraction.evidence_in(text)) is occurs


def test_evidence_has_every_text_and_number_but_no_choices() -> None:
    schema = {"properties": {"kind": {"enum": ["a"]}, "list": {"items": {"properties": {"x/y": {}}}}}}
    data = {"kind": "a", "list": [{"x/y": "one"}, {"x/y": None}], "yes": True, "extra": "two"}

    assert json_extraction.grounded(data, schema, "two") == {"/list/0/x~1y": False, "/extra": True}


ENGLISH = "January February March April May June July August September October November December".split()
CASES = (
    *("января январе январь", "февраля февралем февраль", "марта марту март", "апреля апреле апрель"),
    *("мая мае май", "июня июне июнь", "июля июлем июль", "августа августе август", "сентября сентябре сентябрь"),
    *("октября октябрю октябрь", "ноября ноябрём ноябрь", "декабря декабре декабрь"),
)
SHORT = "янв фев мар апр май июн июл авг сен окт ноя дек".split()


def spellings(day: date) -> list[str]:
    """Return ways to write a date that name its day, month and year."""
    d, m, y, two = day.day, day.month - 1, day.year, f"{day.year % 100:02}"
    english, short = ENGLISH[m], ENGLISH[m][:3]
    ordinal = f"{d}{'th' if 10 < d < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(d % 10, 'th')}"
    found = [
        f"{d} {english} {y}",
        f"{english} {d}, {y}",
        f"{english.upper()} {ordinal} {y}",
        f"the {ordinal} of {english}, {y}",
    ]
    found += [
        f"{d} {short}. {y}",
        f"{short} {d} {y}",
        f"{d}-{short}-{two}",
        f"{short}. {d}, '{two}",
        f"{d}/{short}/{y}",
    ]
    found += [f"{d} {case} {y} года" for case in CASES[m].split()] + [
        f"{d} {SHORT[m]}. {y} г.",
        f"{d}-го {SHORT[m]} {two} г.",
    ]
    found += [day.isoformat(), f"{y}/{day:%m/%d}", f"{day:%Y%m%d}", f"{day.isoformat()}T18:41", f"{day:%d.%m.%Y} 18:41"]
    found += [
        f"{day:%d.%m.%y}",
        f"{day:%m/%d/%Y}",
        f"{day:%m/%d/%y}",
        f"{d}.{m + 1}.{y}",
        f"{day:%d-%m-%Y}",
        f"{day:%d}. {day:%m}. {y}",
    ]
    return [*found, f"{y}: {english} {d}", f"с {d} {CASES[m].split()[0]} (в {y} году)"]


@pytest.mark.parametrize(
    "sentence", ["{}", "Room 7, on {}, at 18:30, for 12.50 EUR.", "Срок — {}; сумма 1 250,00 руб."]
)
def test_a_date_counts_as_found_in_every_spelling_and_no_other_day_does(sentence: str) -> None:
    random = Random(7)
    for _ in range(25):
        day = date(2000, 1, 1) + timedelta(days=random.randrange(20_000))
        for spelling in spellings(day):
            evidence = json_extraction.evidence_in(sentence.format(spelling))
            assert json_extraction.occurs(day.isoformat(), evidence), spelling
            # Digits alone may be day and month in both orders.
            assert evidence.dates <= {day.isoformat(), json_extraction.iso_date(day.year, day.day, day.month)}, spelling


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("12–14 June 2026", ["2026-06-12", "2026-06-14"]),
        ("с 28 мая по 2 июня 2026 года", ["2026-05-28", "2026-06-02"]),
        ("on 4 or 5 May 2026; register by 20 April", ["2026-04-20", "2026-05-04", "2026-05-05"]),
        ("2 March, reported in 2026", ["2026-03-02"]),
        ("NW-2041 of 3 February", []),  # no year
        ("30 February 2026, 31.04.2026", []),
        ("May 2026, 18.50 EUR, 10.11.12.13, 8 (000) 555-01-12, 4 marbles in 2026", []),
    ],
)
def test_dates_of_a_text(text: str, dates: list[str]) -> None:
    assert sorted(json_extraction.dates_in(json_extraction.normal(text))) == dates


def test_evidence_of_a_page_of_numbers_does_not_take_for_ever() -> None:
    assert len(json_extraction.numbers_in("1 2 3 4 5 6 7 8 9 " * 2000)) < 200


def test_the_gold_answers_can_be_said_under_what_the_documents_offer() -> None:
    answers = gold("json_extraction")
    for identity, document in documents("json_extraction").items():
        narrow = json_extraction.offered(json_extraction.schema_for(document), document["text"])
        jsonschema.validate(answers[identity]["data"], narrow)


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_the_answers_of_generated_documents_can_be_said_and_count_as_found(lang: str) -> None:
    """The schemas have all kinds of fields, with patterns and without; the texts all kinds of dates and amounts."""
    random = Random(lang)
    for _ in range(25):
        sample = json_sample(random, Split(names=HELD), lang=lang)
        text = sample.about["text"]
        jsonschema.validate(sample.gold, json_extraction.offered(sample.schema, text))
        assert all(json_extraction.grounded(sample.gold, sample.schema, text).values()), text


def offer(part: dict[str, Any], text: str) -> Any:
    """Return the choices that a document leaves to a field; None if the field stays as it is."""
    schema = {"type": "object", "properties": {"x": part}}
    narrow = json_extraction.offered(schema, text)["properties"]["x"]
    return None if narrow == part else narrow["enum"]


@pytest.mark.parametrize(
    ("part", "text", "choices"),
    [
        ({"type": "string", "format": "date"}, "4 May to 6 May 2026", ["2026-05-04", "2026-05-06"]),
        ({"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"}, "4 May 2026 and 7", ["2026-05-04"]),
        ({"type": "string", "format": "date"}, "tomorrow", None),
        ({"type": ["string", "null"], "format": "date"}, "tomorrow", [None]),
        ({"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"}, "at 9:30, closed from 7 pm", ["09:30", "19:00"]),
        ({"type": "string", "pattern": r"^\d+(\.\d\d)?$"}, "1 240,50 on 4 May 2026", ["0", "1240.50"]),
        ({"type": "string", "pattern": r"^[<>]?\d+(\.\d)?$"}, "<0,5 and 12.", ["0", "<0.5", "12"]),
        (
            {"type": ["string", "null"], "pattern": "^[^@ ]+@[^@ ]+$"},
            "Write to a@b.example.",
            ["a@b.example", "a@b.example.", None],
        ),
        ({"type": "string", "maxLength": 9}, "«Ёлка», Oslo.", ["«Ёлка»", "«Ёлка", "Ёлка»", "Ёлка", "Oslo", "Oslo."]),
        (
            {"type": "string", "maxLength": 11},
            "£1,240 on 4 May 2026",
            ["£1,240", "1240", "4 May", "May", "2026-05-04", "0"],
        ),
        ({"type": "string", "maxLength": 200}, "a summary", None),
        ({"type": "string"}, "any length", None),
        ({"type": "string", "format": "uri", "maxLength": 40}, "http://a.example", None),
        ({"type": "string", "enum": ["a"]}, "b", None),
        ({"type": "integer"}, "seven", None),
        ({"type": "string", "maxLength": 20}, "word " * 2 + " ".join(map(str, range(2000))), None),
    ],
)
def test_a_field_may_only_have_what_the_document_offers(part: dict[str, Any], text: str, choices: Any) -> None:
    found = offer(part, text)
    assert found == choices if choices is None or len(choices) < 6 else set(choices) <= set(found)


# --- graph extraction ---


def graph_of(document: dict[str, Any], *answers: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said = iter(answers)
    with serve(lambda body, index: json.dumps(next(said))) as stub, Client(stub.url) as client:
        record = graph_extraction.run(document, client)
    return record, stub.bodies


def node(name: str, kind: str = "organization") -> dict[str, str]:
    return {"name": name, "type": kind}


def edge(source: str, target: str, label: str = "owns") -> dict[str, str]:
    return {"from": source, "to": target, "label": label}


@pytest.mark.starts
def test_the_second_prompt_begins_with_the_first_and_lists_each_entity_once() -> None:
    nodes = [node("ООО «А»"), node("B"), node("А"), node("B", "place")]
    _, bodies = graph_of({"id": "x", "text": "A owns B."}, {"nodes": nodes}, by_source([edge("ООО «А»", "B")]))

    assert bodies[1]["messages"][:2] == bodies[0]["messages"]
    assert json.loads(bodies[1]["messages"][2]["content"]) == {"nodes": nodes[:2]}
    assert schema_of(bodies[1]) == graph_extraction.edges_schema(["ООО «А»", "B"])


def test_the_schema_of_edges_has_every_pair_once_and_no_node_with_itself() -> None:
    schema = graph_extraction.edges_schema(["A", "B", "C"])
    pairs = [(source, to) for source, inner in schema["properties"].items() for to in inner["properties"]]

    assert pairs == [("A", "B"), ("A", "C"), ("B", "A"), ("B", "C"), ("C", "A"), ("C", "B")]
    for answer in ({"A": {"A": "owns"}}, {"A": {"D": "owns"}}, {"D": {"A": "owns"}}, {"A": {"B": "eats"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(answer, schema)
    for answer in ({}, {"A": {"B": "owns"}, "B": {"A": "supplies"}}):
        jsonschema.validate(answer, schema)


@pytest.mark.starts
def test_a_document_can_ask_in_the_form_that_the_tiny_model_learnt() -> None:
    nodes = {"nodes": [{"id": "A", "type": "organization"}, {"id": "B", "type": "place"}]}
    edges = {"edges": [edge("A", "B", "located_in"), edge("A", "B", "located_in")]}
    record, bodies = graph_of({"id": "x", "text": "A is in B.", "form": "list"}, nodes, edges)

    assert [n["name"] for n in record["nodes"]] == ["A", "B"]
    assert [(e["from"], e["label"], e["to"]) for e in record["edges"]] == [("A", "located_in", "B")]
    assert json.loads(bodies[1]["messages"][2]["content"]) == nodes
    for body, answer in zip(bodies, (nodes, edges), strict=True):
        jsonschema.validate(answer, schema_of(body))


@pytest.mark.starts
def test_fewer_than_two_nodes_need_no_second_call() -> None:
    record, bodies = graph_of({"id": "x", "text": "A."}, {"nodes": [node("A")]})

    assert record["nodes"] == [{"name": "A", "type": "organization", "aliases": [], "mentions": [[0, 1]]}]
    assert record["edges"] == []
    assert len(bodies) == 1


@pytest.mark.starts
def test_what_an_unconstrained_server_makes_up_is_left_out_and_listed() -> None:
    nodes = [node("A"), node("B"), node("C", "dragon"), node(" «» "), node("«B»")]
    made_up = {"A": {"A": "owns", "B": "owns", "«B»": "owns", "D": "owns"}, "B": {"A": "eats"}}
    record, _ = graph_of({"id": "x", "text": "A B"}, {"nodes": nodes}, made_up)

    assert [(e["from"], e["to"], e["label"]) for e in record["edges"]] == [("A", "B", "owns")]
    assert [(d.get("node") or d["edge"], d["why"]) for d in record["dropped"]] == [
        (node("C", "dragon"), "unknown type"),
        (node(" «» "), "no name"),
        (edge("A", "A"), "from a node to itself"),
        (edge("A", "«B»"), "said twice"),
        (edge("A", "D"), "an end is no node"),
        (edge("B", "A", "eats"), "unknown relation"),
    ]


@pytest.mark.starts
def test_an_edge_whose_ends_are_not_in_the_text_is_flagged_not_dropped() -> None:
    nodes = {"nodes": [node("Вектра"), node("Nowhere", "place")]}
    record, _ = graph_of({"id": "x", "text": "Завод ВЕКТРА строят."}, nodes, {"Вектра": {"Nowhere": "located_in"}})

    assert record["edges"] == [{**edge("Вектра", "Nowhere", "located_in"), "grounded": False}]
    assert [n["mentions"] for n in record["nodes"]] == [[[6, 12]], []]


def test_mentions_are_character_offsets_of_whole_words() -> None:
    text = "🦊 Ёлка и елка,\u00a0Ёлкина; New\n York, Newark"

    for name, wanted in (("Елка", ["Ёлка", "елка"]), ("new york", ["New\n York"]), ("New", ["New"]), ("", [])):
        places = graph_extraction.mentions({"name": name, "aliases": []}, text)
        assert [text[start:end] for start, end in places] == wanted


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ООО «Вектра»", "Вектра", True),
        ("«Вектра», АО", "вектра", True),
        ("The Arden Institute", "arden institute", True),
        ("Halden Robotics, Inc.", "Halden Robotics", True),
        ("Ёлка", "Елка", True),
        ("Ａcme", "acme", True),
        ("The", "A", False),
        ("Co", "Inc", False),
        ("Halden Robotics", "Halden", False),
    ],
)
def test_one_entity_may_have_several_spellings(one: str, other: str, same: bool) -> None:
    assert (graph_extraction.normal_name(one) == graph_extraction.normal_name(other)) is same


@pytest.mark.starts
def test_a_long_text_is_read_in_chunks_and_equal_entities_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_extraction, "CHUNK", 30)
    text = "ООО «Вектра» купила «Стриж». Вектра наняла Ольгу Кит."
    record, bodies = graph_of(
        {"id": "x", "text": text},
        {"nodes": [node("ООО «Вектра»"), node("Стриж")]},
        {"ООО «Вектра»": {"Стриж": "owns"}},
        {"nodes": [node("Вектра"), node("Ольгу Кит", "person")]},
        {"Ольгу Кит": {"Вектра": "works_for"}},
    )

    assert len(bodies) == 4
    assert [(n["name"], n["aliases"]) for n in record["nodes"]] == [
        ("ООО «Вектра»", ["Вектра"]),
        ("Стриж", []),
        ("Ольгу Кит", []),
    ]
    assert [text[a:b] for a, b in record["nodes"][0]["mentions"]] == ["ООО «Вектра»", "Вектра", "Вектра"]
    assert record["edges"][1] == {**edge("Ольгу Кит", "ООО «Вектра»", "works_for"), "grounded": True}


@pytest.mark.parametrize(
    "text", ["", "One. Two! Три? «Да!» Four… five", "a" * 95, "x. " * 40, "Long " * 30 + ". End.", "\n\n"]
)
@pytest.mark.parametrize("most", [1, 10, 30, 1000])
def test_chunks_cover_the_text_in_order_and_in_size(text: str, most: int) -> None:
    pieces = graph_extraction.chunks(text, most)

    assert all(0 < end - start <= most for start, end in pieces)
    assert "".join("".join(text[a:b].split()) for a, b in pieces) == "".join(text.split())
    assert all(left[1] <= right[0] for left, right in pairwise(pieces))


def test_chunks_end_after_sentences() -> None:
    text = "One is here. Two is here. «Три!» Four."
    assert [text[a:b] for a, b in graph_extraction.chunks(text, 27)] == ["One is here. Two is here. ", "«Три!» Four."]


# --- self-consistency ---


@pytest.mark.parametrize(
    ("same", "form"),
    [
        (["42.", "42.0", "42", 42, 42.0, " 42 ", "+42", "４２"], "42"),
        (["1 200,5", "1,200.5", "1200.50", 1200.5, "1\u00a0200,5"], "1200.5"),
        (["1,200", "1 200", 1200, "1200."], "1200"),
        (["0,125", 0.125, "0.1250"], "0.125"),
        (["-3", "−3", -3, "-3.0"], "-3"),
        (["0", "-0", 0.0, -0.0], "0"),
        ([0.1 + 0.2, "0.3"], "0.3"),
        (["Monday", " monday. ", "MONDAY!"], "monday"),
        (["Ёж", "еж"], "еж"),
        ([True], "true"),
        ([None], "null"),
        (["1e999999999"], "1e999999999"),
        (["12 km"], "12 km"),
        (["1,2,3"], "1,2,3"),
    ],
)
def test_equal_answers_have_one_form(same: list[Any], form: str) -> None:
    assert {self_consistency.canonical(value) for value in same} == {form}


def test_different_answers_keep_different_forms() -> None:
    values = ["42", "43", "4.2", "-42", "1,2", "1,200", "forty-two", "yes", "no", True, False, None, "118", "181"]
    assert len({self_consistency.canonical(value) for value in values}) == len(values)


@pytest.mark.parametrize(("leader", "runner_up"), [(4, 0), (6, 1), (8, 2), (9, 3), (11, 4)])
def test_the_vote_is_sure_at_these_counts_and_not_one_before(leader: int, runner_up: int) -> None:
    """The counts at which the Beta rule stops at 0.95, from the closed form."""
    assert self_consistency.confidence(leader, runner_up) >= 0.95
    assert self_consistency.confidence(leader - 1, runner_up) < 0.95


def test_a_tie_is_a_toss() -> None:
    assert self_consistency.confidence(3, 3) == 0.5


@pytest.mark.parametrize(
    ("samples", "left", "stop"),
    [
        (["a"] * 4, 8, True),
        (["a"] * 3 + ["b"], 8, False),
        (["a"] * 7 + ["b"], 4, True),
        (["a"] * 6 + ["b"] * 2, 4, False),
        (["a"] * 6 + ["b"] * 2, 3, True),  # no other answer can overtake it
        (["42", "42.", 42, "42.0"], 8, True),
        ([], 8, False),
        ([{"x": 1, "y": "p"}] * 4, 8, True),
        ([{"x": 1, "y": "p"}] * 3 + [{"x": 1, "y": "q"}], 8, False),
        ([{"x": [1, 2]}, {"x": [2, 1]}, {"x": [2, 1]}, {"x": [1, 2]}], 8, True),
    ],
)
def test_when_sampling_stops(samples: list[Any], left: int, stop: bool) -> None:
    assert self_consistency.decided(samples, left) is stop


def sampled(document: dict[str, Any], answers: list[str | Answer]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said = iter(answers)
    with serve(lambda body, index: next(said)) as stub, Client(stub.url) as client:
        return self_consistency.run(document, client), stub.bodies


def say(answer: Any) -> str:
    return json.dumps({"reasoning": "…", "answer": answer}, ensure_ascii=False)


@pytest.mark.starts
def test_the_majority_wins_over_the_first_answer() -> None:
    answers = [say(a) for a in ("17", "42", "42.0", "42")] + [say("42")] * 4
    record, bodies = sampled({"id": "q", "kind": "number", "text": "?"}, answers)

    assert record == {
        "id": "q",
        "ok": True,
        "answer": 42,
        "share": 0.875,
        "votes": {"42": 7, "17": 1},
        "samples": 8,
        "voted": 8,
        "spoiled": 0,
        "late": False,
    }
    assert [body["n"] for body in bodies] == [4, 4]
    assert len({body["seed"] for body in bodies}) == 2


@pytest.mark.starts
def test_an_open_vote_ends_at_the_cap_with_its_share() -> None:
    answers = [say(a) for a in ("a", "b", "c", "d") * 3]
    record, bodies = sampled({"id": "q", "text": "?"}, answers)

    assert (record["samples"], record["share"], record["answer"]) == (12, 0.25, "a")
    assert len(bodies) == 3


@pytest.mark.starts
def test_spoiled_samples_have_no_vote_but_count_against_the_share() -> None:
    answers: list[str | Answer] = [Answer('{"reasoning": "so lo', "length"), "no", say("x" * 61)] + [say("yes")] * 9
    record, _ = sampled({"id": "q", "text": "?"}, answers)

    assert (record["answer"], record["votes"], record["spoiled"]) == ("yes", {"yes": 5}, 3)
    assert record["share"] == 0.625


@pytest.mark.starts
def test_choices_bind_the_answer() -> None:
    record, bodies = sampled({"id": "q", "text": "?", "choices": ["да", "нет"]}, [say("нет")] * 4)

    assert record["answer"] == "нет"
    assert schema_of(bodies[0])["properties"]["answer"]["enum"] == ["да", "нет"]
    assert bodies[0]["messages"][1]["content"] == "?\nPossible answers: да, нет"


CARD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "total": {"type": "string"},
        "city": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "total"],
    "additionalProperties": False,
}


def test_fields_of_an_object_are_voted_one_by_one() -> None:
    """No sample is right in all fields, but the vote is."""
    samples = [
        {"name": "Ann", "total": "118", "city": "Rome", "tags": ["a", "b"]},
        {"name": "ann", "total": "181", "tags": ["b", "A"]},
        {"name": "Bob", "total": "118.0", "city": "Rome", "tags": ["b"]},
        {"name": "Ann", "total": "118", "tags": ["c", "b"]},
    ]
    record = self_consistency.object_vote(samples[:3], CARD)

    assert record["answer"] == {"name": "Ann", "total": "118", "city": "Rome", "tags": ["a", "b"]}
    assert record["method"] == "fields"
    assert record["votes"]["/name"] == record["votes"]["/total"] == record["votes"]["/city"] == 0.667
    assert record["votes"]["/tags/1"] == 1.0


def test_a_missing_field_is_a_vote_and_an_item_needs_half_of_the_samples() -> None:
    samples = [
        {"name": "Ann", "total": "1", "tags": ["a", "b"]},
        {"name": "Ann", "total": "1", "tags": ["a", "c", "c"]},
        {"name": "Ann", "total": "1", "city": "Rome", "tags": ["d"]},
        {"name": "Ann", "total": "1", "tags": ["c"]},
    ]
    record = self_consistency.object_vote(samples, CARD)

    assert record["answer"] == {"name": "Ann", "total": "1", "tags": ["a", "c"]}
    assert record["votes"]["/city"] == 0.75


def test_items_that_are_objects_are_matched_by_their_name() -> None:
    values = [
        [{"test": "Iron", "value": "5"}, {"test": "Zinc", "value": "7"}],
        [{"test": "zinc", "value": "7"}, {"test": "iron", "value": "6"}],
        [{"test": "Iron", "value": "6"}],
    ]
    votes: dict[str, float] = {}

    assert self_consistency.consensus(values, "", votes) == [
        {"test": "Iron", "value": "6"},
        {"test": "Zinc", "value": "7"},
    ]
    assert votes["/0"] == 1.0


def test_parts_that_make_no_valid_whole_give_way_to_a_real_sample() -> None:
    """Each field has a majority, but together they break the schema: so the answer is a real sample, the medoid."""
    samples = [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}]
    assert self_consistency.object_vote(samples, {})["answer"] == {"a": 1, "b": 2}

    schema = {"enum": samples[:2]}
    record = self_consistency.object_vote([*samples[:2], {"a": 1, "b": 2}], schema)
    assert (record["method"], record["answer"] in samples) == ("medoid", True)


@pytest.mark.starts
def test_an_object_document_runs_from_samples_to_vote() -> None:
    said = [json.dumps({"name": "Ann", "total": "5", "tags": []})] * 4
    record, bodies = sampled({"id": "q", "text": "?", "schema": CARD}, list(said))

    assert record["answer"] == {"name": "Ann", "total": "5", "tags": []}
    assert (record["share"], record["samples"]) == (1.0, 4)
    assert schema_of(bodies[0]) == CARD


# --- listing and copying ---


def test_the_list_has_a_line_on_each_template_and_the_readme_has_the_rest() -> None:
    found = available()

    assert [each.name for each in found] == NAMES
    asked = {each.name: each.role for each in found}
    assert (
        asked.items() >= {"graph_extraction": "graph", "json_extraction": "fast", "self_consistency": "brain"}.items()
    )
    for each in found:
        assert each.role in ROLES
        assert 30 < len(each.summary) <= 100
        assert "\n" not in each.summary
        text = readme(each.name)
        assert text.startswith(f"# {each.name}\n")
        assert all(word in text for word in ("Cost", "Adapt", "Output", "Role"))


def test_an_unknown_template_is_wrong_usage(tmp_path: Path) -> None:
    for call in (lambda: readme("../tourkit"), lambda: copy("nothing", tmp_path)):
        with pytest.raises(UsageError, match=f"choose one of {', '.join(NAMES)}"):
            call()


def test_a_copy_has_the_files_and_nothing_that_python_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, dest = tmp_path / "shelf", tmp_path / "a" / "b"
    source = shelf / "json_extraction"
    shutil.copytree(TEMPLATES / "json_extraction", source, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for junk in ("__pycache__/json_extraction.cpython-311.pyc", "schemas/.notice.json.swp"):
        (source / junk).parent.mkdir(exist_ok=True)
        (source / junk).write_bytes(b"junk")
    monkeypatch.setattr("tourkit.pipelines.templates.TEMPLATES", shelf)

    written = copy("json_extraction", dest)

    assert {path.relative_to(dest) for path in written} == wanted
    assert {path for path in dest.rglob("*") if path.is_file()} == set(written)
    assert all(path.read_bytes() == (source / path.relative_to(dest)).read_bytes() for path in written)
    assert {Path("README.md"), Path("gold.jsonl"), Path("schemas/event.json")} <= wanted


def test_a_copy_does_not_overwrite_an_edited_one_unless_forced(tmp_path: Path) -> None:
    copy("self_consistency", tmp_path)
    edited = tmp_path / "self_consistency.py"
    edited.write_text("mine\n")
    (tmp_path / "README.md").unlink()

    with pytest.raises(
        UsageError, match=r"already holds documents\.jsonl, gold\.jsonl, self_consistency\.py: .*--force"
    ):
        copy("self_consistency", tmp_path)
    assert edited.read_text() == "mine\n"
    assert not (tmp_path / "README.md").exists()  # nothing is written if one file already exists

    copy("self_consistency", tmp_path, force=True)
    assert edited.read_text() != "mine\n"


def test_a_folder_that_cannot_be_written_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="choose another folder"):
        copy("self_consistency", tmp_path / "file" / "below")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [["-S"], []], ids=["standard library alone", "with site-packages"])
@pytest.mark.starts
def test_a_standalone_copy_runs_with_plain_python(name: str, options: list[str], tmp_path: Path) -> None:
    """-S hides site-packages: Python finds tourkit only in the copy, and no jsonschema."""
    written = copy(name, tmp_path, standalone=True)
    assert tmp_path / "tourkit" / "client.py" in written
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}

    with serve(oracle(name)) as stub:
        command = [sys.executable, "-E", "-s", *options, f"{name}.py", "documents.jsonl", "out.jsonl"]
        done = subprocess.run(
            [*command, "--url", stub.url, "--workers", "4"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    loose = sum(len(record.get("ungrounded", ())) for record in records)
    said = f", {loose} values not in their text" if name == "json_extraction" else ""
    assert done.stderr.strip() == f"{len(documents(name))} documents, 0 failed{said}: out.jsonl"
    assert [record["id"] for record in records] == list(documents(name))
    assert all(record["ok"] for record in records)
    if name == "json_extraction":
        assert {record["validated"] for record in records} == {not options}
        assert [record["data"] for record in records] == [right["data"] for right in gold(name).values()]


@pytest.mark.starts
def test_a_standalone_run_records_failures_and_takes_a_schema_file(tmp_path: Path) -> None:
    copy("json_extraction", tmp_path, standalone=True)
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    (tmp_path / "docs.jsonl").write_text('{"id": 1, "text": "Ann is 7."}\n\n{"id": 2}\n')

    with serve(lambda body, index: '{"name": "Ann", "age": 7}') as stub:
        command = [sys.executable, "-E", "json_extraction.py", "docs.jsonl", "out.jsonl", "--schema", "person.json"]
        done = subprocess.run([*command, "--url", stub.url], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert done.returncode == 1
    assert first["data"] == {"name": "Ann", "age": 7}
    assert (second["id"], second["ok"], second["type"]) == (2, False, "KeyError")


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_one_file_that_imports_what_a_copy_can_have(name: str) -> None:
    path = TEMPLATES / name / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    allowed = sys.stdlib_module_names | {"jsonschema", "orjson"}
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            assert {alias.name.split(".")[0] for alias in statement.names} <= allowed
        elif isinstance(statement, ast.ImportFrom):
            assert statement.module == "tourkit.client" or str(statement.module).split(".")[0] in allowed
    assert len(source.splitlines()) <= 400
    assert [file.name for file in path.parent.glob("*.py")] == [path.name]

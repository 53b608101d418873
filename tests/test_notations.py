"""Arguments that a family writes one by one: as JSON again, under a grammar, and for which schemas."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import pytest
from tool_runner import FAMILIES, ORDER, ToolRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.calling.forms import FAMILIES as FORMS
from tourkit.calling.forms import Form
from tourkit.calling.parameters import ArgumentStream, parameters_of
from tourkit.generation import Delta
from tourkit.grammar.check import validate
from tourkit.server.api.requests import parse_chat

pytest.importorskip("llguidance", reason="llguidance is not installed here")

SINGLY = [family.form for family in FORMS if family.form.notation is not None and not family.form.text_calls]
FORM = pytest.mark.parametrize("form", SINGLY, ids=[form.name for form in SINGLY])
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "short": {"type": "string", "minLength": 2, "maxLength": 5},
        "unit": {"enum": ["C", "F"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 3},
        "at": {"$ref": "#/$defs/at"},
        "note": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
    },
    "required": ["text", "unit", "n"],
    "$defs": {"at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
EVERY = {
    "text": 'Line "one",\n2 < 3: {a}\\ (ж)',
    "short": "ab",
    "unit": "C",
    "n": 7,
    "sure": True,
    "tags": ["a)", "b, c=1", "}"],
    "at": {"x": -1.5},
    "note": None,
}
FEW = {"text": "", "unit": "F", "n": 0}
BOTH = pytest.mark.parametrize("given", [EVERY, FEW], ids=["every", "few"])


def tool(schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def texts_of(schema: Any) -> list[str]:
    return [each.name for each in parameters_of(schema) or () if each.is_text]


@pytest.fixture
def made() -> Iterator[list[RunnerEngine]]:
    engines: list[RunnerEngine] = []
    yield engines
    for each in engines:
        each.close()


def called(made: list[RunnerEngine], form: Form, said: str, schema: Any = SCHEMA, **fields: Any) -> tuple[str, str]:
    """Return the text of the answer of a model that writes `said`, and the JSON of the arguments of its call."""
    engine = RunnerEngine(ToolRunner(form.name), "stand-in")
    made.append(engine)
    messages = [{"role": "user", "content": ORDER + said}]
    body = {"model": "tool", "messages": messages, "temperature": 0, "tools": [tool(schema)]}
    asked = engine.with_calls(parse_chat(body | fields).request)
    collected: list[Delta] = []
    arrived: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(asked, arrived.put)
    while not collected or collected[-1].finish is None:
        collected.append(arrived.get(timeout=60))
    assert collected[-1].error is None
    text = "".join(delta.text for delta in collected)
    stream = ArgumentStream(form.notation, texts_of(schema), form.end)  # type: ignore[arg-type]
    return text, stream.take(text.partition(form.head("f", first=True))[2])[1]


@FORM
@BOTH
def test_text_of_a_call_becomes_json_again_whatever_its_pieces_are(form: Form, given: dict[str, Any]) -> None:
    assert form.notation is not None
    text = form.notation.written(given) + form.end
    for size in (1, 3, len(text)):
        stream, held, found = ArgumentStream(form.notation, texts_of(SCHEMA), form.end), "", ""
        for start in range(0, len(text), size):
            held += text[start : start + size]
            taken, piece = stream.take(held)
            held, found = held[taken:], found + piece

        assert json.loads(found) == given
        assert stream.whole


@FORM
@BOTH
def test_a_model_may_write_what_its_family_writes(made: list[RunnerEngine], form: Form, given: dict[str, Any]) -> None:
    """Nested JSON is an exception: Gemma 4 quotes the strings in it in its own way, and gets quotes of JSON."""
    said = form.written([("f", json.dumps(given))])

    text, arguments = called(made, form, said, max_tokens=1500)

    assert text == said
    assert json.loads(arguments) == given


@FORM
@pytest.mark.parametrize("room", [200, 260, 320])
def test_a_call_that_must_end_is_closed_out_and_valid(made: list[RunnerEngine], form: Form, room: int) -> None:
    """The model writes a long text and never wants to end it."""
    said = form.written([("f", json.dumps({**EVERY, "text": "long " * 300}))])

    _, arguments = called(made, form, said, max_tokens=room, tool_choice="required")

    assert validate(SCHEMA, json.loads(arguments)) == []


@FORM
def test_a_model_that_would_not_call_makes_a_valid_call_if_it_must(made: list[RunnerEngine], form: Form) -> None:
    _, arguments = called(made, form, "No.", max_tokens=300, tool_choice="required", parallel_tool_calls=False)

    assert validate(SCHEMA, json.loads(arguments)) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {}, "b": {"$ref": "#/properties/a"}}},
        {"type": "object", "properties": {"a": {}}, "minProperties": 1},
        {"anyOf": [{"type": "object"}]},
    ],
)
def test_a_tool_whose_arguments_cannot_be_written_singly_is_called_in_the_generic_form(
    made: list[RunnerEngine], schema: Any
) -> None:
    engine = RunnerEngine(ToolRunner("qwen-xml"), "stand-in")
    made.append(engine)
    body = {"model": "tool", "messages": [{"role": "user", "content": "Q"}], "tools": [tool(schema)]}

    offer = parse_chat(body).request.offer

    assert parameters_of(schema) is None
    assert engine._texts._tools is not None
    assert engine._texts._tools.form(offer).name == "generic"


def test_every_notation_has_a_stand_in() -> None:
    assert {form.name for form in SINGLY} <= FAMILIES.keys()

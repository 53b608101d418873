"""A schema that llguidance refuses: rewritten with other keywords, or relaxed with the dropped parts named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grammars import Grammars

from tourkit.backends.llama_cpp import LlamaRunner
from tourkit.generation import Constraint
from tourkit.grammar.check import validate
from tourkit.grammar.ladder import rungs
from tourkit.grammar.negation import negate, other_than
from tourkit.grammar.prepared import Manner
from tourkit.grammar.regex_example import example
from tourkit.grammar.rewrites import GENERIC, KEYWORDS, ONE_OF, PATTERNS
from tourkit.grammar.schema_walk import resolve


@pytest.fixture(scope="module")
def runner(tiny_gguf: Path) -> Iterator[LlamaRunner]:
    runner = LlamaRunner(tiny_gguf, slots=1, context=256)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compiler(runner: LlamaRunner) -> Grammars:
    return Grammars(runner)


def accepts(runner: LlamaRunner, compiler: Grammars, schema: dict[str, Any], data: Any, **how: bool) -> bool:
    matcher = compiler.matcher(Constraint.json_schema(schema), Manner(**how))
    for token in runner.tokenize(json.dumps(data, ensure_ascii=False), add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept([token])
    return matcher.done or any(matcher.allows(token) for token in runner.eog)


def reads(pattern: str) -> bool:
    return "(?" not in pattern


AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
WORD = {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]}
CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (AB | {"not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}, {"a": 1, "b": 1}]),
    (AB | {"not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    (AB | {"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}, [{}], [{"a": 1}, {"b": 1}]),
    (AB | {"dependencies": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    (AB | {"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    (AB | {"dependentSchemas": {"a": {"required": ["b"]}}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    (AB | {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    (AB | {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    (AB | {"if": {"required": ["a"]}, "else": {"required": ["b"]}}, [{"a": 1}, {"b": 1}], [{}]),
    (
        {"type": "object", "properties": {"ab": {}}, "patternProperties": {"a": {"type": "null"}, "b": {}}},
        [{}, {"ab": None}, {"x": None}],
        [{"ab": 1}, {"a": 1}],
    ),
    (AB | {"oneOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"required": ["b"]}]}, [{"b": 1}], []),
    (AB | {"maxProperties": 1, "additionalProperties": False}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    (AB | {"maxProperties": 2}, [{"a": 1, "b": 1}], [{"a": 1, "b": 1, "c": 1}]),
    (AB | {"minProperties": 1}, [{"a": 1}, {"b": 1}], [{}]),
    (AB | {"unevaluatedProperties": False}, [{}, {"a": 1, "b": 1}], [{"c": 1}]),
    ({"type": ["string", "null", "integer"], "not": {"type": "null"}}, ["x", 1], [None]),
    ({"type": "string", "not": {"enum": ["no", "nor", "Ж"]}}, ["yes", "n", "nort", "", "жЖ"], ["no", "nor", "Ж"]),
    ({"enum": [1, "a", None], "not": {"enum": ["a"]}}, [1, None], ["a"]),
    ({"type": "integer", "not": {"enum": [3, 7]}}, [2, 4, 8], [3, 7]),
    ({"enum": [1, "a", "bb"], "not": {"pattern": "a"}, "contains": {}}, ["bb"], ["a", 1]),
    ({"type": "integer", "minimum": 1, "maximum": 9, "not": {"multipleOf": 2}}, [1, 9], [0, 2, 11]),
    ({"type": "integer", "not": {"minimum": 5}}, [4, -1], [5, 6]),
    ({"type": "string", "not": {"pattern": "^(id|name)$"}}, ["x", "named", "", "idid"], ["id", "name"]),
    ({"type": "boolean", "not": {"const": True}}, [False], [True]),
    ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, ["a", "c"], ["b", "d"]),
    ({"oneOf": [{"type": "string"}, {"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "number"}}}, ["x", 1], [None]),
    (WORD | {"properties": {"s": {"type": "string", "format": "country-code"}}}, [{"s": "x"}], [{"s": 1}]),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], [["x"]]),
    ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 3}}, [[3], [3, 1]], [[], [1]]),
    ({"type": "object", "propertyNames": {"enum": ["x", "y"]}}, [{"x": 1}], [{"z": 1}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]$"}}, [{"x": 1}], [{"xy": 1}]),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, [{"xy": 1}], [{"xyz": 1}]),
    ({"$schema": "https://example.org/dialect", "type": "integer"}, [1], ["x"]),
    ({"$ref": "#word", "definitions": {"w": {"$id": "#word", "type": "string"}}}, ["x"], [1]),
    ({"$id": "https://a.org/b", "$ref": "c", "$defs": {"c": {"$id": "c", "type": "null"}}}, [None], [1]),
    (
        AB | {"properties": {"b": {"not": {"type": "null"}}}, "dependencies": {"a": {"$ref": "#/properties/b/not"}}},
        [{"b": 1}],
        [{"a": 1}, {"b": None}],
    ),
    (AB | {"properties": {"a": {"not": {"$ref": "#/x/y"}}}, "x": {"y": {"type": "string"}}}, [{"a": 1}], [{"a": "s"}]),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=lambda value: json.dumps(value)[:100])
def test_a_keyword_the_grammar_lacks_is_said_in_another_way(
    runner: LlamaRunner, compiler: Grammars, schema: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    """The rewritten schema is still strict: nothing invalid is accepted, and the valid document can be written."""
    matcher = compiler.matcher(Constraint.json_schema(schema))

    assert (matcher.level, matcher.dropped) == ("strict", ())
    assert [data for data in valid if not accepts(runner, compiler, schema, data)] == []
    assert [data for data in invalid if accepts(runner, compiler, schema, data)] == []


@pytest.mark.parametrize(
    ("schema", "level", "dropped"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, KEYWORDS, ["/uniqueItems"]),
        ({"type": "string", "not": {"pattern": "x"}}, KEYWORDS, ["/not"]),
        ({"oneOf": [{"multipleOf": 3}, {"multipleOf": 5}], "type": "integer"}, ONE_OF, ["/oneOf"]),
        (
            {"type": "array", "items": {"type": "string", "pattern": "\\p{L}"}, "uniqueItems": True},
            KEYWORDS,
            ["/uniqueItems"],
        ),
        ({"type": "string", "format": "regex"}, KEYWORDS, ["/format"]),
        (
            {"type": "object", "properties": {"a/b": {"type": "string", "pattern": "^(?=x)"}}},
            PATTERNS,
            ["/properties/a~1b/pattern"],
        ),
        (
            {"type": "object", "patternProperties": {"a": {"type": "null"}, "b": False}},
            PATTERNS,
            ["/patternProperties"],
        ),
        (
            {"$ref": "#", "type": "object", "properties": {"a": {"type": "string"}}},
            GENERIC,
            [""],
        ),
    ],
    ids=str,
)
def test_what_no_rewrite_can_say_is_left_out_by_name(
    compiler: Grammars, schema: dict[str, Any], level: int, dropped: list[str]
) -> None:
    matcher = compiler.matcher(Constraint.json_schema(schema))

    assert matcher.level == ("generic" if level == GENERIC else "relaxed")
    assert list(matcher.dropped) == dropped
    assert any(rung.level == level and list(rung.dropped) == dropped for rung in rungs(schema, readable=reads))


KEYED = {"type": "object", "patternProperties": {"^x": {}}, "additionalProperties": False}
AT_LEAST_TWO = {"type": "object", "minProperties": 2}


@pytest.mark.parametrize(
    ("schema", "dropped"),
    [
        (AT_LEAST_TWO, ("/minProperties",)),
        (KEYED | {"minProperties": 2}, ("/minProperties",)),
        ({"type": "array", "items": AT_LEAST_TWO, "uniqueItems": True}, ("/items/minProperties", "/uniqueItems")),
        ({"type": "object", "minProperties": 1}, ()),
        (AT_LEAST_TWO | {"properties": {"a": {}}, "required": ["a"]}, ()),
        (AT_LEAST_TWO | {"properties": {"a": {}, "b": {}}, "required": ["a", "b"], "additionalProperties": False}, ()),
        ({"type": "object", "properties": {"minProperties": {"type": "integer"}}}, ()),
        (
            {"type": "object", "dependencies": {"a": AT_LEAST_TWO | {"required": []}}},
            ("/dependencies/a/minProperties",),
        ),
    ],
)
def test_a_number_of_keys_that_one_key_written_twice_may_meet_is_reported_as_not_enforced(
    compiler: Grammars, schema: dict[str, Any], dropped: tuple[str, ...]
) -> None:
    matcher = compiler.matcher(Constraint.json_schema(schema))

    assert matcher.dropped == dropped
    assert matcher.level == ("relaxed" if dropped else "strict")


def test_a_value_that_resembles_a_schema_is_no_schema(compiler: Grammars) -> None:
    """The unreadable pattern is data here, so the schema is not refused."""
    schema = {"type": "array", "items": {"enum": [{"pattern": "(a"}]}, "uniqueItems": True}

    assert compiler.matcher(Constraint.json_schema(schema)).dropped == ("/uniqueItems",)


def test_only_the_parts_that_are_in_the_way_are_left_out(runner: LlamaRunner, compiler: Grammars) -> None:
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}},
        "required": ["tags"],
    }

    assert compiler.matcher(Constraint.json_schema(schema)).dropped == ("/properties/tags/uniqueItems",)
    assert accepts(runner, compiler, schema, {"tags": ["a", "a"]})
    assert not accepts(runner, compiler, schema, {"tags": ["c"]})


def test_the_order_of_keys_is_that_of_the_schema(runner: LlamaRunner, compiler: Grammars) -> None:
    schema = {
        "type": "object",
        "properties": {"why": {"type": "string"}, "answer": {"type": "integer"}},
        "required": ["answer", "why"],
        "not": {"required": ["other"]},
    }

    assert accepts(runner, compiler, schema, {"why": "", "answer": 1})
    assert not accepts(runner, compiler, schema, {"answer": 1, "why": ""})


def test_a_rewrite_that_forbids_too_much_does_not_make_a_schema_impossible(compiler: Grammars) -> None:
    """`contains` is required of the first item. If the first item has another schema, the keyword is dropped."""
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "contains": {"type": ["string", "null"]}}
    other = {"allOf": [{"prefixItems": [{"const": 1}]}, {"contains": {"const": 2}}], "type": "array", "minItems": 2}

    assert compiler.matcher(Constraint.json_schema(schema)).level == "strict"
    assert compiler.matcher(Constraint.json_schema(other)).level == "relaxed"


def test_a_tighter_grammar_for_a_second_attempt_allows_valid_documents_only(
    runner: LlamaRunner, compiler: Grammars
) -> None:
    schema = {"type": "integer", "minimum": 1, "not": {"multipleOf": 7}}

    assert compiler.matcher(Constraint.json_schema(schema)).level == "relaxed"
    assert compiler.matcher(Constraint.json_schema(schema), Manner(tight=True)).level == "strict"
    assert accepts(runner, compiler, schema, 3, tight=True)
    assert not accepts(runner, compiler, schema, 14, tight=True)


TIGHT: list[tuple[dict[str, Any], Any, list[Any]]] = [
    (
        {"minItems": 2, "oneOf": [{"items": {"pattern": "a"}}, {"items": {"pattern": "a|c"}}]},
        ["c", "a"],
        [["a", "a"], [1, 2], {"x": 1}],
    ),
    ({"oneOf": [{"items": {"const": 1}}, {"contains": {"const": 2}}], "type": "array"}, [2, 1], [[3], [1, 3]]),
    (
        {
            "type": "object",
            "patternProperties": {"a": {"type": "null"}, "b": {}},
            "not": {"patternProperties": {"a": {"type": "string"}}},
        },
        {"a": None},
        [{}, {"ab": "x"}, {"a": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "valid", "others"), TIGHT, ids=lambda value: json.dumps(value)[:100])
def test_what_could_be_held_to_in_part_only_is_held_to_at_the_second_attempt(
    runner: LlamaRunner, compiler: Grammars, schema: dict[str, Any], valid: Any, others: list[Any]
) -> None:
    """The tighter grammar allows this valid document and no invalid one; it may forbid other valid ones."""
    assert not validate(schema, valid)
    assert compiler.matcher(Constraint.json_schema(schema)).level == "relaxed"
    assert compiler.matcher(Constraint.json_schema(schema), Manner(tight=True)).level == "strict"
    assert accepts(runner, compiler, schema, valid, tight=True)
    assert [data for data in others if accepts(runner, compiler, schema, data, tight=True)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": ["integer", "null"]},
        {"enum": ["a", 1, None, True]},
        {"const": [1]},
        {"required": ["a", "b"]},
        {"minimum": 2},
        {"exclusiveMaximum": 2},
        {"minLength": 2},
        {"maxItems": 1},
        {"minItems": 0},
        {"minProperties": 1},
        {"properties": {"a": {"type": "string"}, "b": True}},
        {"allOf": [{"type": "string"}, {"maxLength": 1}]},
        {"anyOf": [{"type": "string"}, {"minimum": 2}]},
        {"oneOf": [{"type": "string"}, {"maxLength": 1}]},
        {"not": {"type": "string"}},
        {"contains": {"type": "string"}},
        {"propertyNames": {"not": {"enum": ["a"]}}},
        {"patternProperties": {"^a": {"type": "string"}}},
        {"multipleOf": 2},
        {"pattern": "a"},
        {"pattern": "b|c"},
        {"pattern": "^(a|abc)$"},
        {"pattern": "^(?:x)"},
        {"pattern": "^a|c$"},
        {"pattern": "^$"},
        {"pattern": "[ab]"},
        {"items": {"type": "string"}},
        {"$ref": "#/$defs/x"},
        {"type": "string", "description": "remarks are nothing to negate", "title": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tight", [False, True])
def test_the_opposite_of_a_schema_allows_nothing_the_schema_allows(schema: dict[str, Any], tight: bool) -> None:
    values = [*("", "a", "abc"), *(0, 1, 1.5, 2, 3, -4), None, True, False, [], [1], ["a"], ["a", 1], [1, 2, 3]]
    values += [{}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": "x"}, {"abc": 1}]
    root = {"$defs": {"x": {"type": "string"}}}

    opposite = negate(schema, lambda reference: resolve(reference, root), tight=tight)

    if opposite is None:
        return
    for value in values:
        allowed = not validate(schema | root, value)
        opposed = not validate({"allOf": [opposite.schema]} | root, value)
        assert not (allowed and opposed), value
        assert not opposite.exact or allowed != opposed, value


@pytest.mark.parametrize("words", [["no"], ["a", "ab", "abc"], ["", "x"], ["a.b", "a\\c", "-", "]^"], ["да", "🙂"]])
def test_a_pattern_for_every_word_but_some(words: list[str]) -> None:
    pattern = re.compile(other_than(words))
    others = ["n", "nope", "b", "abcd", "axb", "\n", "д", " ", "🙂🙂", "a-", "^"]

    assert [word for word in words if pattern.search(word)] == []
    assert [word for word in [*others, *[""][: "" not in words]] if not pattern.search(word)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "^[a-z]+@[a-z]+\\.[a-z]{2,4}$",
        "^(a|b)*c$",
        "dashboard|report",
        "^\\d{4}-\\d{2}$",
        "[^a-c]x",
        "^$",
        "\\s\\S\\w\\W",
    ],
)
def test_an_example_matches_its_pattern(pattern: str) -> None:
    text = example(pattern)

    assert text is not None
    assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "^(?=a)b", "a{5000}", "\\p{L}"])
def test_a_pattern_without_a_short_example_has_none(pattern: str) -> None:
    assert example(pattern) is None

"""Documents are checked against the original schema, and rules repair what they can."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tourkit.grammar.check import validate
from tourkit.grammar.metaschema import metaschema_error
from tourkit.grammar.repair import repair

DRAFT4 = "http://json-schema.org/draft-04/schema#"


def test_an_error_is_one_line_with_the_pointer_to_the_place() -> None:
    schema = {"properties": {"a/b": {"items": {"type": "integer"}}}}

    errors = validate(schema, {"a/b": [1, "x\ny"]})

    assert len(errors) == 1
    assert errors[0].startswith("/a~1b/1: ")
    assert "\n" not in errors[0]


def test_a_long_error_is_cut() -> None:
    (error,) = validate({"type": "integer"}, "x" * 1000)

    assert (len(error), error[-1]) == (300, "…")


def test_a_valid_document_has_no_errors() -> None:
    assert validate({"type": "object", "required": ["a"]}, {"a": 1}) == []


def test_the_dialect_is_that_of_the_schema() -> None:
    """`exclusiveMinimum: true` means draft 4, with or without `$schema`. It means nothing in the newest dialect."""
    schema = {"type": "number", "minimum": 0, "exclusiveMinimum": True}

    assert validate({"$schema": DRAFT4, **schema}, 0)
    assert validate(schema, 0)
    assert not validate(schema, 1)


def test_a_format_that_needs_no_package_is_checked_and_others_are_annotations() -> None:
    assert validate({"format": "date"}, "2023-02-29")
    assert validate({"format": "email"}, "nobody")
    assert not validate({"format": "country-code"}, "nowhere")


def test_a_reference_out_of_the_document_is_an_error_and_fetched_never() -> None:
    errors = validate({"$ref": "http://127.0.0.1:9/schema.json"}, 1)

    assert len(errors) == 1
    assert "cannot be checked" in errors[0]


@pytest.mark.parametrize(
    "schema",
    [{"type": "strnig"}, {"$ref": "#"}, {"required": 5}, {"allOf": [{"$ref": "#/missing"}]}],
    ids=str,
)
def test_a_schema_that_cannot_be_checked_makes_no_document_valid(schema: dict[str, Any]) -> None:
    assert validate(schema, {})


def test_a_pattern_of_another_language_is_not_checked() -> None:
    assert validate({"type": "string", "pattern": "\\p{L}+"}, "x") == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strnig"}, "strnig"),
        ({"properties": {"a": {"minLength": "5"}}}, "/properties/a/minLength"),
        ({}, None),
    ],
    ids=str,
)
def test_what_is_no_schema_is_said_with_its_place(schema: dict[str, Any], says: str | None) -> None:
    problem = metaschema_error(schema)

    assert problem is None if says is None else says in str(problem)


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "broken", "repaired"),
    [
        ({"uniqueItems": True}, [1, 2, 1, 1.0, {"a": 1}, {"a": 1}], [1, 2, {"a": 1}]),
        ({"uniqueItems": True}, [1, True, 0, False], [1, True, 0, False]),
        (obj(a={}), {"a": 1, "b": 2}, {"a": 1}),
        (obj(a={}) | {"patternProperties": {"^x-": {}}}, {"a": 1, "x-b": 2, "c": 3}, {"a": 1, "x-b": 2}),
        ({"minimum": 1}, 0, 1),
        ({"maximum": 9.5}, 10.0, 9.5),
        ({"type": "integer", "exclusiveMinimum": 3}, 3, 4),
        ({"type": "integer", "exclusiveMaximum": 3}, 7, 2),
        ({"multipleOf": 5}, 13, 15),
        ({"multipleOf": 5, "minimum": 12}, 11, 15),
        ({"multipleOf": 5, "maximum": 14}, 13, 10),
        ({"allOf": [{"multipleOf": 2.5, "minimum": 2}, {"multipleOf": 7}]}, 3, 35),
        ({"allOf": [{"multipleOf": 2.5}, {"multipleOf": 7}]}, 2022.5, 2030.0),
        ({"multipleOf": 0.01}, 1.234, 1.23),
        ({"multipleOf": 2.5}, 2026.0, 2025.0),
        ({"multipleOf": 7}, 10**400, (10**400 + 3) // 7 * 7),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, " -7 ", -7),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "string"}, 12, "12"),
        ({"type": "boolean"}, "True", True),
        ({"type": ["null", "integer"]}, "null", None),
        ({"anyOf": [{"type": "integer", "maximum": 9}, {"type": "null"}]}, "12", 9),
        ({"maxLength": 3}, "abcdef", "abc"),
        ({"maxItems": 1}, [1, 2, 3], [1]),
        (obj(kind={"const": "note"}) | {"required": ["kind"]}, {}, {"kind": "note"}),
        (obj(kind={"enum": ["note"]}) | {"required": ["kind"]}, {}, {"kind": "note"}),
        ({"enum": ["Invoice", "note"]}, " invoice", "Invoice"),
        (obj(a={"items": obj(n={"type": "integer", "maximum": 5})}), {"a": [{"n": "7", "z": 0}]}, {"a": [{"n": 5}]}),
    ],
    ids=str,
)
def test_a_rule_repairs_what_it_can(schema: dict[str, Any], broken: Any, repaired: Any) -> None:
    before = copy.deepcopy(broken)

    result, lines = repair(schema, broken)

    assert (result, type(result)) == (repaired, type(repaired))
    assert validate(schema, result) == []
    assert bool(lines) is (result != before or type(result) is not type(before))
    assert broken == before, "the argument is left as it was"


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"type": "object", "required": ["a"]}, {}),
        (obj(a={"type": "string"}) | {"required": ["a"]}, {}),
        (obj(a={"enum": ["x", "y"]}) | {"required": ["a"]}, {}),
        ({"type": "integer"}, "twelve"),
        ({"type": "integer"}, 1.5),
        ({"minLength": 3}, "a"),
        ({"minItems": 2}, [1]),
        ({"pattern": "^a"}, "b"),
        ({"enum": ["a", "A"]}, " a"),
        ({"const": 1}, 2),
        ({"type": "number", "exclusiveMinimum": 0}, 0.0),
        ({"anyOf": [{"type": "integer"}, {"minLength": 3}]}, "a"),
    ],
    ids=str,
)
def test_no_content_is_invented(schema: dict[str, Any], data: Any) -> None:
    """A document that no rule can repair stays as it is and is still reported as invalid."""
    assert repair(schema, data) == (data, [])
    assert validate(schema, data)


def test_a_repair_says_what_was_done_and_where() -> None:
    _result, lines = repair(obj(n={"maximum": 5}), {"n": 7, "extra": 1})

    assert sorted(lines) == ["/n: lowered to the maximum", ": unknown keys left out"]


def test_a_number_too_large_to_be_checked_is_said_and_not_raised() -> None:
    errors = validate({"multipleOf": 0.5}, 10**400)

    assert len(errors) == 1
    assert "cannot be checked" in errors[0]
    assert repair({"multipleOf": 0.5}, 10**400) == (10**400, [])

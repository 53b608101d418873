"""The schemas inside a schema: found, rebuilt, and named by references."""

from __future__ import annotations

from typing import Any

import pytest

from tourkit.grammar.schema_walk import converted, pointer, resolve, walk

PART = {"minimum": 1}
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
SINGLES = (
    *("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains"),
    *("propertyNames", "unevaluatedProperties", "unevaluatedItems"),
)
PLACES: list[tuple[dict[str, Any], str]] = [
    *(({key: {"a/b": PART}}, f"/{key}/a~1b") for key in MAPS),
    *(({key: [True, PART]}, f"/{key}/1") for key in LISTS),
    *(({key: PART}, f"/{key}") for key in SINGLES),
]
KEPT: list[dict[str, Any]] = [
    *({key: {"type": "x"}} for key in ("const", "default", "example")),
    *({key: [{"type": "x"}]} for key in ("enum", "examples")),
    {"dependentRequired": {"type": ["properties"]}},
    {"dependencies": {"a": ["b"]}},
    {"additionalProperties": False},
]


@pytest.mark.parametrize(("schema", "at"), PLACES, ids=lambda value: str(value))
def test_a_schema_inside_another_is_found_and_rebuilt_by_its_pointer(schema: dict[str, Any], at: str) -> None:
    rebuilt = rebuilt_with(schema, lambda part, place: {"at": place} if part == PART else part)

    assert dict(walk(schema)) == {"": schema, at: PART}
    assert dict(walk(rebuilt))[at] == {"at": at}


@pytest.mark.parametrize("schema", KEPT, ids=str)
def test_what_only_resembles_a_schema_is_left_alone(schema: dict[str, Any]) -> None:
    def refuse(part: Any, at: str) -> Any:
        assert not isinstance(part, dict), at
        return part

    assert list(walk(schema)) == [("", schema)]
    assert rebuilt_with(schema, refuse) == schema


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"properties": {"enum": PART, "properties": {"properties": {"a": PART}}}}

    assert set(dict(walk(schema))) == {
        "",
        "/properties/enum",
        "/properties/properties",
        "/properties/properties/properties/a",
    }


def test_the_schemas_in_an_unknown_keyword_are_rebuilt_and_other_data_is_not() -> None:
    schema = {"x": {"y": {"type": "string"}, "ui": {"minimum": 1}}, "links": [{"type": "string"}]}

    assert rebuilt_with(schema, lambda part, at: at) == {**schema, "x": {"y": "/x/y", "ui": {"minimum": 1}}}
    assert "/x/y" in dict(walk(schema))


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("#", "root"),
        ("#/$defs/a~1b", "by pointer"),
        ("#/$defs/a%7E1b", "by pointer"),
        ("#/$defs/list/prefixItems/1", "by position"),
        ("#word", "by anchor"),
        ("named", "by id"),
        ("https://a.org/named#/not", "inside an id"),
        ("#/missing", None),
        ("data", None),
    ],
)
def test_a_reference_names_a_part_of_the_document(reference: str, found: str | None) -> None:
    root = {
        "title": "root",
        "examples": [{"$id": "data"}],
        "$defs": {
            "a/b": {"title": "by pointer"},
            "list": {"prefixItems": [True, {"title": "by position"}]},
            "w": {"$anchor": "word", "title": "by anchor"},
            "n": {"$id": "https://a.org/named", "title": "by id", "not": {"title": "inside an id"}},
        },
    }

    target = resolve(reference, root)

    assert (target and target["title"]) == found


def test_a_pointer_escapes_what_its_steps_hold() -> None:
    assert pointer(["a/b", 0, "c~d"]) == "/a~1b/0/c~0d"


def rebuilt_with(schema: dict[str, Any], convert: Any) -> dict[str, Any]:
    return {key: converted(key, value, "", convert) for key, value in schema.items()}

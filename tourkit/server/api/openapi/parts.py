"""Parts of JSON Schemas as plain data. The dialect is 2020-12, as in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

ANY: Schema = {}
NEVER: Schema = {"not": {}}
NULL: Schema = {"type": "null"}
FLAG: Schema = {"type": "boolean"}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """Return a reference to one of the document's schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(least: int = 0, most: int | None = None, *, about: str = "") -> Schema:
    """Return a string of `least` to `most` characters."""
    bounds = ({"minLength": least} if least else {}) | ({"maxLength": most} if most is not None else {})
    return {"type": "string"} | bounds | described(about)


def whole(low: int, high: int | None = None, *, about: str = "") -> Schema:
    """Return a whole number from `low` to `high`."""
    return {"type": "integer", "minimum": low} | ({"maximum": high} if high is not None else {}) | described(about)


def number(low: float, high: float, *, about: str = "") -> Schema:
    """Return a number from `low` to `high`."""
    return {"type": "number", "minimum": low, "maximum": high} | described(about)


def values(found: Iterable[Any], *, about: str = "") -> Schema:
    """Return one of these values."""
    return {"enum": list(found)} | described(about)


def array(items: Schema, least: int = 0, most: int | None = None, *, about: str = "") -> Schema:
    """Return a list of `least` to `most` items."""
    bounds = ({"minItems": least} if least else {}) | ({"maxItems": most} if most is not None else {})
    return {"type": "array", "items": items} | bounds | described(about)


def record(properties: dict[str, Schema], required: Iterable[str] = (), *, rest: Schema | bool = True) -> Schema:
    """Return an object. `rest`: what other properties may be; False for none."""
    found: Schema = {"type": "object", "properties": properties}
    if names := list(required):
        found["required"] = names
    return found if rest is True else found | {"additionalProperties": rest}


def whole_record(properties: dict[str, Schema], *, optional: Iterable[str] = ()) -> Schema:
    """Return an object with exactly these properties. All are there but those that are `optional`."""
    left_out = set(optional)
    return record(properties, [name for name in properties if name not in left_out], rest=False)


def any_of(*schemas: Schema, about: str = "") -> Schema:
    """Return one of several schemas."""
    return {"anyOf": list(schemas)} | described(about)


def nullable(schema: Schema) -> Schema:
    """Return a schema that also takes null."""
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], NULL]}
    return {"anyOf": [schema, NULL]} if schema else schema


def described(about: str) -> Schema:
    return {"description": about} if about else {}


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a route. `read`: the schema of each field that is read. `required`: fields that must be there.

    `rules`: between fields. `about`: what is refused that no schema can say. `named`: the fields that name a model.
    """

    read: Mapping[str, Schema]
    required: tuple[str, ...]
    rules: tuple[Schema, ...] = ()
    about: str = ""
    named: tuple[str, ...] = ("model",)


def if_then(condition: Schema, then: Schema, about: str) -> Schema:
    """Return a rule: what a body must be if it has something."""
    return {"if": condition, "then": then, "description": about}


def has(field: str, schema: Schema) -> Schema:
    """Return the schema of an object that has a field of this schema."""
    return {"properties": {field: schema}, "required": [field]}

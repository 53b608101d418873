"""Limits for a schema that sets none, so that a small model cannot ramble. Any document they allow is still valid.

Applied to the copy of the schema that generation follows, never to the one results are checked against.
"""

from __future__ import annotations

from typing import Any

MAX_LENGTH = 2000  # characters a string
MAX_ITEMS = 200
MAX_MAGNITUDE = 10**15  # whole numbers up to here are exact in a double; beyond 1e308 JSON parsers give infinity

_SCHEMA_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_SCHEMA_LISTS = ("anyOf", "oneOf", "prefixItems")
_FREE_OF = {
    "string": ("maxLength", "pattern", "format", "enum", "const"),
    "array": ("maxItems", "prefixItems", "enum", "const"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const"),
}


def bounded(schema: Any) -> Any:
    """A copy of `schema` with maxLength, maxItems, minimum and maximum where a plain type has no limit of its own."""
    if not isinstance(schema, dict):
        return schema
    limited = dict(schema)
    for key in _SCHEMA_MAPS:
        if isinstance(schema.get(key), dict):
            limited[key] = {name: bounded(part) for name, part in schema[key].items()}
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            limited[key] = [bounded(part) for part in schema[key]]
    for key in ("items", "additionalProperties"):
        if key in schema:
            limited[key] = bounded(schema[key])
    types = schema.get("type")
    names = types if isinstance(types, list) else [types]
    if "allOf" not in schema and "$ref" not in schema:
        for name, free_of in _FREE_OF.items():
            if name in names and not any(key in schema for key in free_of):
                limited |= _limits(name, schema)
    return limited


def _limits(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name == "string":
        return {"maxLength": max(MAX_LENGTH, schema.get("minLength", 0))}
    if name == "array":
        return {"maxItems": max(MAX_ITEMS, schema.get("minItems", 0))}
    return {"minimum": -MAX_MAGNITUDE, "maximum": MAX_MAGNITUDE}

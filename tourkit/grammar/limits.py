"""Limits for a schema that sets none, so that a small model cannot ramble. Any document they allow is still valid.

They apply to the copy of the schema that generation follows. Results are checked against the original.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

from tourkit.grammar.schema_walk import ANNOTATIONS, IN_PLACE, LISTS, converted, walk

MAX_LENGTH = 2000  # characters of a string
MAX_ITEMS = 200
MAX_MAGNITUDE = 10**15  # whole numbers up to this are exact in a double; JSON parsers read more than 1e308 as infinity
MAX_DECIMALS = 9  # of a number: small models write digits without end, and llguidance counts no more than ten

# Schemas in these keywords get limits. Schemas in `not` and `if` must not: a limit there would allow more documents.
# llguidance follows schemas in no other keywords.
_LIMITED = ("properties", "$defs", "definitions", "patternProperties", *LISTS, "items", "additionalProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NUMBERS = ("number", "integer")
_FREE_OF = {
    "string": ("maxLength", "pattern", "format", "enum", "const"),
    "array": ("maxItems", "prefixItems", "enum", "const"),
    "number": (*_BOUNDS, "multipleOf", "enum", "const"),
}
# An object with one of these keywords may need keys that its own `properties` do not name.
_OPEN_BESIDE = (
    *("additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "minProperties"),
    *("dependencies", "dependentRequired", *IN_PLACE),
)

# Keywords that are costly to compile. A part is written once in $defs if it has one of them and only plain keywords.
_COSTLY = (*_BOUNDS, "pattern", "format")
_SCALAR = ("type", "multipleOf", "minLength", "maxLength", *_COSTLY)
_PLAIN = ANNOTATIONS.union(_SCALAR)
_NAME = "tourkit-"

_DAYS = (
    "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
)
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = f"(?:{_YEAR}-(?:{_DAYS})|{_LEAP}-02-29)"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# llguidance's own formats also allow 29 February in any year, the year 0 and leap seconds. Checkers refuse these.
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


@dataclass(frozen=True, slots=True)
class _Whole:
    """Facts about the whole schema.

    `definitions`: definitions describe whole objects, because no allOf names them. `decimals`: the decimals of numbers
    may be limited. `once`: the parts that are written once in $defs, by their JSON text; None if a reference to $defs
    would lead elsewhere.
    """

    definitions: bool
    decimals: bool
    once: dict[str, tuple[str, dict[str, Any]]] | None


def bounded(schema: Any) -> Any:
    """Return a copy of `schema` with limits on plain types that set none, and without unnamed keys in objects.

    Numbers with limits and strings with a pattern or a format are written once, in $defs: each copy of them would cost
    a third of a millisecond to compile.
    """
    text = json.dumps(schema)
    # llguidance miscounts multiples of both a large and a fine step, and of a fine step in a range of one value.
    decimals = '"multipleOf"' not in text
    extends = '"$ref"' in text and _extends_by_reference(schema)
    whole = _Whole(not extends, decimals, {} if _has_one_base(schema, text) else None)
    limited = _bounded(schema, True, whole)
    if whole.once:
        limited["$defs"] = {**limited.get("$defs", {}), **dict(whole.once.values())}
    return limited


def _has_one_base(schema: Any, text: str) -> bool:
    """Return whether "#/$defs/…" means the same everywhere in a schema, and entries can be added to $defs."""
    if not isinstance(schema, dict) or not isinstance(schema.get("$defs", {}), dict) or _NAME in text:
        return False
    own = sum(isinstance(schema.get(key), str) for key in ("$id", "id"))
    return text.count('"$id": "') + text.count('"id": "') == own


def _bounded(schema: Any, alone: bool, whole: _Whole) -> Any:
    """Return a copy with limits. `alone`: no other schema describes this value.

    In allOf a schema is not alone: another part may name other keys.
    """
    if not isinstance(schema, dict):
        return schema
    limited = dict(schema)
    for key in _LIMITED:
        if isinstance(schema.get(key), list if key in LISTS else dict):
            convert = partial(_part, *_within(key, schema, alone, whole))
            limited[key] = converted(key, schema[key], "", convert)
    limited |= _limited_type(schema, whole.decimals and alone)
    if "pattern" not in schema and schema.get("format") in _FORMATS and schema.get("type") == "string":
        limited["pattern"] = _FORMATS[limited.pop("format")]
    if alone and _may_be_closed(schema):
        limited["additionalProperties"] = False
    return limited


def _within(key: str, schema: dict[str, Any], alone: bool, whole: _Whole) -> tuple[bool, _Whole]:
    """Return `alone` and `whole` for the schemas in a keyword, from those of the schema that has the keyword."""
    if key in ("$defs", "definitions"):
        return whole.definitions, whole
    if key in ("anyOf", "oneOf"):
        alone = alone and not any(beside in schema for beside in ("properties", "required", "allOf", "$ref"))
    if key == "oneOf":
        whole = replace(whole, once=None)  # references would hide from llguidance that the options differ
    return alone and key != "allOf", whole


def _part(alone: bool, whole: _Whole, schema: Any, _pointer: str) -> Any:
    """Return a part of a schema with its limits. If it is costly and plain, return a reference to it in $defs."""
    limited = _bounded(schema, alone, whole)
    if whole.once is None or not alone or not isinstance(limited, dict):
        return limited
    if not any(key in limited for key in _COSTLY) or not limited.keys() <= _PLAIN:
        return limited
    scalar = {key: limited[key] for key in _SCALAR if key in limited}
    name, _ = whole.once.setdefault(json.dumps(scalar), (f"{_NAME}{len(whole.once)}", scalar))
    return {"$ref": f"#/$defs/{name}"}


def _limited_type(schema: dict[str, Any], decimals: bool) -> dict[str, Any]:
    types = schema.get("type")
    names = types if isinstance(types, list) else [types]
    limits: dict[str, Any] = {}
    numeric = any(name in names for name in _NUMBERS) and "enum" not in schema and "const" not in schema
    if "allOf" in schema or "$ref" in schema:
        return _within_reach(schema) if numeric else limits
    for name, free_of in _FREE_OF.items():
        if name in names and not any(key in schema for key in free_of):
            limits |= _limits(name, schema)
    if numeric and "number" in names and decimals and not any(_is_finer(schema.get(key)) for key in _BOUNDS):
        limits["multipleOf"] = 10**-MAX_DECIMALS
    if numeric and "multipleOf" in schema:
        limits |= _within_reach(schema)
    return limits


def _within_reach(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the limits that a number lacks. Parsers lose the last digits of huge numbers: multiples become inexact."""
    low, high = (schema.get(a, schema.get(b)) for a, b in (_BOUNDS[::2], _BOUNDS[1::2]))
    limits = {} if low is not None else {"minimum": -MAX_MAGNITUDE}
    limits |= {} if high is not None else {"maximum": MAX_MAGNITUDE}
    beyond = any(isinstance(bound, int | float) and abs(bound) >= MAX_MAGNITUDE for bound in (low, high))
    return {} if beyond else limits


def _limits(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name == "string":
        return {"maxLength": max(MAX_LENGTH, schema.get("minLength", 0))}
    if name == "array":
        return {"maxItems": max(MAX_ITEMS, schema.get("minItems", 0))}
    return _within_reach(schema)


def _is_finer(bound: Any) -> bool:
    """Return whether a bound itself has more than MAX_DECIMALS decimals, or is infinite."""
    exponent = Decimal(str(bound)).as_tuple().exponent if isinstance(bound, float) else 0
    return not isinstance(exponent, int) or exponent < -MAX_DECIMALS


def _may_be_closed(schema: dict[str, Any]) -> bool:
    names = schema.get("properties")
    if not isinstance(names, dict) or not names or any(key in schema for key in _OPEN_BESIDE):
        return False
    return set(schema.get("required", ())) <= set(names)


def _extends_by_reference(schema: Any) -> bool:
    """Return whether some allOf names a definition: definitions are then parts of objects, not whole objects."""
    return any("$ref" in part and ("properties" in part or "/allOf/" in f"{at}/") for at, part in walk(schema))

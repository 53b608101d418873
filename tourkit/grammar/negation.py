"""The opposite of a JSON Schema, in keywords that a grammar can follow. Used to rewrite `not`, `oneOf` and `if`.

Every opposite is sound: the schema forbids everything it allows. `exact` says whether it is also complete.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tourkit.grammar.patterns import compiled
from tourkit.grammar.regex_example import example
from tourkit.grammar.schema_walk import NO_ASSERTIONS

TYPES = ("object", "array", "string", "number", "boolean", "null")
_MAX_DEPTH = 8
_MAX_VALUES = 64
_MAX_WORD = 100  # characters

Resolve = Callable[[str], Any]
Inner = Callable[[Any], "Negation | None"]


@dataclass(frozen=True, slots=True)
class Negation:
    """A schema that allows only what another forbids; all of it if `exact`."""

    schema: Any
    exact: bool = True


def negate(schema: Any, resolve: Resolve, *, tight: bool = False, depth: int = 0) -> Negation | None:
    """Return the opposite of `schema`, or None if no part of it can be expressed.

    `resolve` returns the schema that a `$ref` names, or None. `tight`: return an opposite even if it allows few
    documents; for a second attempt only.
    """

    def inner(part: Any) -> Negation | None:
        return negate(part, resolve, tight=tight, depth=depth + 1)

    if isinstance(schema, bool):
        return Negation(not schema)
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    keywords = {key: value for key, value in schema.items() if key not in NO_ASSERTIONS}
    if "$ref" in keywords and len(keywords) == 1:
        target = resolve(str(keywords["$ref"]))
        return None if target is None else inner(target)
    if "type" in keywords and "enum" in keywords:
        keywords["enum"] = [value for value in keywords["enum"] if type_of(value) in types_of(schema, resolve)]
        keywords.pop("type")
    parts = [_opposite(key, value, inner) for key, value in keywords.items()]
    if tight:
        parts = [part or _narrow(key, value, inner) for part, (key, value) in zip(parts, keywords.items(), strict=True)]
    known = [part for part in parts if part is not None]
    if parts and not known:
        return None
    exact = len(known) == len(parts) and all(part.exact for part in known)
    return Negation(any_of([part.schema for part in known]), exact)


def any_of(options: list[Any]) -> Any:
    """Return a schema for any of the options, as flat as possible."""
    options = [option for option in options if option is not False]
    if any(option is True or option == {} for option in options):
        return True
    if len(options) < 2:
        return options[0] if options else False
    return {"anyOf": options}


def _opposite(key: str, value: Any, inner: Inner) -> Negation | None:
    """Return the opposite of one keyword."""
    if key in _NUMERIC:
        return _opposite_limit(key, value)
    match key:
        case "not":
            return Negation(value)
        case "type":
            return _opposite_type([value] if isinstance(value, str) else value)
        case "required":
            return Negation(any_of([{"type": "object", "properties": {name: False}} for name in value]))
        case "const":
            return _opposite_values([value])
        case "enum":
            return _opposite_values(value)
        case "anyOf" | "allOf" | "oneOf":
            return _opposite_group(key, [inner(part) for part in value])
        case "properties":
            parts = {name: inner(part) for name, part in value.items()}
            options = [_having(name, part.schema) for name, part in parts.items() if part is not None]
            return Negation(any_of(options), all(part is not None and part.exact for part in parts.values()))
        case "pattern":
            return _opposite_pattern(str(value))
        case "contains":
            items = inner(value)
            return None if items is None else Negation({"type": "array", "items": items.schema}, items.exact)
        case "propertyNames":
            names = inner(value)
            if names is not None and isinstance(names.schema, dict) and set(names.schema) in ({"enum"}, {"const"}):
                wanted = names.schema.get("enum", [names.schema.get("const")])
                return Negation(any_of([_having(name, True) for name in wanted]), names.exact)
    return None


def _having(name: str, schema: Any) -> Any:
    """Return a schema for objects with this key; False if no value is possible for it."""
    return schema is not False and {"type": "object", "properties": {name: schema}, "required": [name]}


def _names(pattern: str) -> list[str]:
    """Return a few names that match a pattern."""
    short = example(pattern)
    if short is None:
        return []
    found = compiled(pattern)
    return [name for name in (short, f"{short}a", f"a{short}", f"{short}0") if found and found.search(name)]


def _narrow(key: str, value: Any, inner: Inner) -> Negation | None:
    """Return a small part of the opposite of a keyword: one way to break it."""
    if key == "patternProperties":
        parts = [(pattern, inner(part)) for pattern, part in value.items()]
        options = [_having(name, part.schema) for pattern, part in parts if part for name in _names(pattern)]
        return Negation(any_of(options), exact=False)
    if key == "pattern" and (words := _words(str(value))) is not None and all(words):
        firsts = "".join(sorted({_literal(word[0]) for word in words}))
        return Negation({"type": "string", "pattern": f"^[^{firsts}]*$"}, exact=False)
    if key == "multipleOf":
        return Negation({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": value}, exact=False)
    if key == "items" and (first := inner(value)) is not None and first.schema is not False:
        wrong = [[True] * before + [first.schema] for before in range(2)]  # wrong in the first item, or in the second
        options = [{"type": "array", "prefixItems": items, "minItems": len(items)} for items in wrong]
        return Negation(any_of(options), exact=False)
    return None


_NUMERIC = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}


def _opposite_pattern(pattern: str) -> Negation | None:
    """Return a schema for all strings except the words of the pattern; None if it is not whole words."""
    words = _words(pattern)
    if words is None or not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    return Negation({"type": "string", "pattern": other_than(words)})


def _words(pattern: str) -> list[str] | None:
    """Return the words of a pattern like `^(a|b)$` or `a|b`; None if it has more than words."""
    inner = pattern.removeprefix("^").removesuffix("$")
    anchored = inner != pattern
    grouped = re.fullmatch(r"\((?:\?:)?(.*)\)", inner)
    inner = grouped[1] if grouped else inner
    if anchored and not grouped and "|" in inner:  # in `^a|b$` each anchor belongs to one word
        return None
    return inner.split("|") if re.fullmatch(r"[\w |-]*", inner, re.ASCII) else None


def _opposite_limit(key: str, value: Any) -> Negation | None:
    kind, opposite, shift = _NUMERIC[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None  # draft 4's `exclusiveMinimum: true`
    if value + shift < 0 and shift:
        return Negation(False)
    return Negation({"type": kind, opposite: value + shift})


def _opposite_type(names: list[str]) -> Negation:
    others = [name for name in TYPES if name not in names]
    if "integer" in names and "number" in others:
        others.remove("number")  # the opposite has fractions, which no keyword can ask for
        return Negation({"type": others}, exact=False)
    return Negation({"type": others} if others else False)


def _opposite_group(key: str, parts: list[Negation | None]) -> Negation | None:
    known = [part for part in parts if part is not None]
    if key == "allOf":
        exact = len(known) == len(parts) and all(part.exact for part in known)
        return Negation(any_of([part.schema for part in known]), exact) if known else None
    if len(known) < len(parts):
        return None
    exact = key == "anyOf" and all(part.exact for part in known)  # oneOf also forbids values of two options
    return Negation({"allOf": [part.schema for part in known]}, exact)


def _opposite_values(values: list[Any]) -> Negation | None:
    if len(values) > _MAX_VALUES or any(isinstance(value, str) and len(value) > _MAX_WORD for value in values):
        return None
    kinds = {kind: [value for value in values if type_of(value) == kind] for kind in TYPES}
    options: list[Any] = [{"type": [kind for kind in TYPES if not kinds[kind]]}]
    if kinds["string"]:
        options.append({"type": "string", "pattern": other_than(kinds["string"])})
    if len(set(kinds["boolean"])) == 1:
        options.append({"enum": [not kinds["boolean"][0]]})
    if numbers := sorted(set(kinds["number"])):
        options.append({"type": "number", "exclusiveMaximum": numbers[0]})
        options.append({"type": "number", "exclusiveMinimum": numbers[-1]})
        options += [
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
            for low, high in itertools.pairwise(numbers)
        ]
    return Negation(any_of(options), exact=not kinds["object"] and not kinds["array"])


def other_than(words: list[str]) -> str:
    """Return a regular expression, without look-around, for every string except these."""
    return f"^{_other_than(sorted(set(words)))}$"


def _other_than(words: list[str]) -> str:
    firsts = sorted({word[0] for word in words if word})
    options = [_literal(first) + _other_than([word[1:] for word in words if word[:1] == first]) for first in firsts]
    outside = "".join(_literal(first) for first in firsts)
    options.append(f"[^{outside}][\\s\\S]*" if firsts else "[\\s\\S]+")
    return f"(?:{'|'.join(options)})" + ("" if "" in words else "?")


def _literal(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else letter


def type_of(value: Any) -> str:
    """Return JSON's name for the type of a value. A whole number is a "number" too."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def types_of(schema: Any, resolve: Resolve, depth: int = 0) -> frozenset[str]:
    """Return the types that a value of this schema may have; too many if in doubt."""
    every = frozenset(TYPES)
    if schema is False:
        return frozenset()
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return every
    found = every
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= frozenset("number" if name == "integer" else name for name in names)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        found &= frozenset(type_of(value) for value in values)
    if "$ref" in schema:
        target = resolve(str(schema["$ref"]))
        found &= every if target is None else types_of(target, resolve, depth + 1)
    for part in schema.get("allOf", ()):
        found &= types_of(part, resolve, depth + 1)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            found &= frozenset().union(*(types_of(part, resolve, depth + 1) for part in schema[key]))
    return found


def disjoint(one: Any, two: Any, resolve: Resolve, depth: int = 0) -> bool:
    """Return True if no value can be valid for both. A quick check: False may mean that it could not tell."""
    shared = types_of(one, resolve) & types_of(two, resolve)
    if not shared:
        return True
    one, two = (followed(schema, resolve) for schema in (one, two))
    if depth > _MAX_DEPTH or not isinstance(one, dict) or not isinstance(two, dict):
        return False
    values, others = fixed_values(one), fixed_values(two)
    if values is not None and others is not None:
        return not values & others
    return shared == {"object"} and (_keys_apart(one, two, resolve, depth) or _forbids(one, two) or _forbids(two, one))


def followed(schema: Any, resolve: Resolve) -> Any:
    """Return the schema at the end of a chain of references. Return a schema without a reference unchanged."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        schema = resolve(str(schema["$ref"]))
    return schema


def fixed_values(schema: dict[str, Any]) -> frozenset[str] | None:
    """Return the JSON texts of all values that `const` or `enum` allow; None if the schema has neither."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return frozenset(json.dumps(value, sort_keys=True) for value in values) if isinstance(values, list) else None


def _keys_apart(one: dict[str, Any], two: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    """Return whether both require a key whose values cannot agree."""
    keys = set(one.get("required", ())) & set(two.get("required", ()))
    mine, yours = one.get("properties", {}), two.get("properties", {})
    return any(disjoint(mine.get(key, True), yours.get(key, True), resolve, depth + 1) for key in sorted(keys))


def _forbids(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Return whether `one` forbids a key that `two` requires."""
    properties = one.get("properties", {})
    closed = one.get("additionalProperties") is False and not one.get("patternProperties")
    return any(properties[key] is False if key in properties else closed for key in two.get("required", ()))

"""A seeded generator of constraints: small and huge, right and wrong, cheap and made to hurt.

Each constraint is the fields that it adds to the body of a chat request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Fields = dict[str, Any]

_WORDS = ("name", "date", "total", "items", "Straße", "дата", "x" * 300, "", "a.b", "$ref", 'quote"d', "line\nbreak")
_NUMBERS = (
    *(0, 1, -1, 0.1, -0.0, 1e-300, 1e300, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64),
    *(10**40, 10**400, 0.30000000000000004, 99999999999999999999.5),
)
_COUNTS = (0, 1, 2, 3, 7, 60, 3999, 100_000, 2**31, 2**63, -1, 1.5)
_ATOMS = (
    "a",
    "b",
    "[a-z]",
    '[^"]',
    ".",
    "\\d",
    "\\w",
    "\\s",
    "é",
    "日",
    "\\u00e9",
    "\\x41",
    "[[:alpha:]]",
    "\\p{L}",
    "^",
    "$",
)
_LOOKS = (
    "(?=a)",
    "(?!a)",
    "(?<=a)",
    "(?<!a)",
    "\\1",
    "(?P<n>a)",
    "(?i)",
    "\\b",
    "\\A",
    "(?P=n)",
    "(",
    ")",
    "[",
    "*",
    "{2",
    "\\",
)
_FORMATS = ("date", "date-time", "email", "uuid", "ipv4", "regex", "uri", "hostname", "made-up", 7)
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null", "any", "nonsense", 3)
_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-04/schema",
    *("https://example.com/none", "", 7, [], {}),
)


def constraints(seed: int) -> Iterator[Fields]:
    """Yield constraints without end. The same seed gives the same ones."""
    rng = random.Random(seed)
    kinds: list[tuple[Callable[[random.Random], Fields], int]] = [
        (_schema_fields, 50),
        (lambda rng: {"regex": _regex(rng, rng.choice((2, 4, 8)))}, 20),
        (lambda rng: {"grammar": _lark(rng)}, 14),
        (lambda rng: {"grammar": _gbnf(rng)}, 6),
        (lambda rng: {"choice": _choice(rng)}, 5),
        (_long_fields, 5),
    ]
    makers, weights = zip(*kinds, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def _schema_fields(rng: random.Random) -> Fields:
    schema = _schema(rng, rng.choice((1, 2, 3, 4)))
    if isinstance(schema, dict) and rng.random() < 0.1:
        schema["$schema"] = rng.choice(_DIALECTS)
    return of_schema(schema)


def of_schema(schema: Any) -> Fields:
    """Return the field that asks for JSON of a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _schema(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.03:
        return rng.choice((True, False, {}, [], None, "string", 1))
    makers = (_object, _array, _string, _number, _values, _combined, _reference, _mixed)
    return rng.choice(makers)(rng, depth)


def _sub(rng: random.Random, depth: int) -> Any:
    return _schema(rng, depth - 1) if depth > 0 else rng.choice(({"type": "string"}, {"type": "integer"}, {}))


def _object(rng: random.Random, depth: int) -> Fields:
    names = rng.sample(_WORDS, rng.randint(0, 5))
    schema: Fields = {"type": "object", "properties": {name: _sub(rng, depth) for name in names}}
    options: Fields = {
        "required": rng.sample([*names, "missing"], rng.randint(0, len(names))),
        "additionalProperties": rng.choice((False, True, _sub(rng, depth))),
        "patternProperties": {_regex(rng, 2): _sub(rng, depth)},
        "propertyNames": {"pattern": _regex(rng, 2)},
        "minProperties": rng.choice(_COUNTS),
        "maxProperties": rng.choice(_COUNTS),
        "dependentRequired": {"name": ["date"]},
        "dependentSchemas": {"name": _sub(rng, depth)},
        "unevaluatedProperties": False,
    }
    return schema | _some(rng, options)


def _array(rng: random.Random, depth: int) -> Fields:
    options: Fields = {
        "items": _sub(rng, depth),
        "prefixItems": [_sub(rng, depth) for _ in range(rng.randint(0, 3))],
        "minItems": rng.choice(_COUNTS),
        "maxItems": rng.choice(_COUNTS),
        "uniqueItems": True,
        "contains": _sub(rng, depth),
        "minContains": rng.choice(_COUNTS),
        "unevaluatedItems": False,
    }
    return {"type": "array"} | _some(rng, options)


def _string(rng: random.Random, depth: int) -> Fields:
    options: Fields = {
        "pattern": _regex(rng, 3),
        "minLength": rng.choice(_COUNTS),
        "maxLength": rng.choice(_COUNTS),
        "format": rng.choice(_FORMATS),
    }
    return {"type": "string"} | _some(rng, options)


def _number(rng: random.Random, depth: int) -> Fields:
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    return {"type": rng.choice(("number", "integer"))} | _some(rng, {name: rng.choice(_NUMBERS) for name in names})


def _values(rng: random.Random, depth: int) -> Fields:
    values = [rng.choice((*_NUMBERS, *_WORDS, None, True, [1, [2]], {"a": {"b": 1}})) for _ in range(rng.randint(0, 6))]
    return rng.choice(({"enum": values}, {"const": values[0] if values else None}))


def _combined(rng: random.Random, depth: int) -> Fields:
    several = [_sub(rng, depth) for _ in range(rng.randint(0, 4))]
    choices: tuple[Fields, ...] = (
        {rng.choice(("anyOf", "oneOf", "allOf")): several},
        {"not": _sub(rng, depth), "type": "string"},
        {"if": _sub(rng, depth), "then": _sub(rng, depth), "else": _sub(rng, depth)},
    )
    return rng.choice(choices)


def _reference(rng: random.Random, depth: int) -> Fields:
    length = rng.choice((1, 3, 40))
    chain: Fields = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    chain[f"d{length}"] = rng.choice((_sub(rng, depth), {"$ref": "#/$defs/d0"}, {"$ref": "#"}, {"$ref": "#/nowhere"}))
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}, "of": {"type": "array", "items": {"$ref": "#"}}}}
    outside = {"$ref": "http://192.0.2.1/schema.json"}
    return rng.choice(({"$defs": chain, "$ref": "#/$defs/d0"}, tree, outside))


def _mixed(rng: random.Random, depth: int) -> Fields:
    types = rng.sample(_TYPES, rng.randint(1, 3))
    return _string(rng, depth) | _number(rng, depth) | {"type": types if rng.random() < 0.7 else types[0]}


def _some(rng: random.Random, options: Fields) -> Fields:
    return {name: value for name, value in options.items() if rng.random() < 0.35}


def _regex(rng: random.Random, depth: int) -> str:
    if depth <= 0 or rng.random() < 0.2:
        return rng.choice(_LOOKS if rng.random() < 0.1 else _ATOMS)
    inner = "".join(_regex(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    count = rng.choice((1, 2, 5, 30, 99, 1000, 9999, 900_000))
    forms = (inner, f"({inner})*", f"({inner})+", f"({inner})?", f"({inner}|{_regex(rng, depth - 2)})")
    repeats = (f"({inner}){{{count}}}", f"({inner}){{{count},}}", f"({inner}){{0,{count}}}", f"({inner}+)+")
    return rng.choice(forms if rng.random() < 0.75 else repeats)


def _lark(rng: random.Random) -> str:
    names = [f"r{i}" for i in range(rng.choice((1, 3, 8, 40)))]
    lines = [f"start: {_rule(rng, names, 2)}"]
    lines += [f"{name}: {_rule(rng, names, 2)}" for name in names]
    lines += [f"T{i}: /{_regex(rng, 3).replace('/', '')}/" for i in range(3)]
    if rng.random() < 0.2:
        lines.append(
            rng.choice(("%ignore /\\s+/", "%import common.INT", "%json {}", "x" * 5000, "start: start", "T0: T1"))
        )
    return "\n".join(lines)


def _rule(rng: random.Random, names: list[str], depth: int) -> str:
    leaf = (
        *names,
        "T0",
        "T1",
        "T2",
        '"a"',
        '""',
        '"日本"',
        '%json {"type": "object"}',
        "missing",
        "<[12]>",
        "<|im_end|>",
    )
    if depth <= 0:
        return rng.choice(leaf)
    parts = [_rule(rng, names, depth - 1) for _ in range(rng.randint(1, 3))]
    text = rng.choice((" ", " | ")).join(parts)
    return rng.choice((text, f"({text})*", f"({text})+", f"({text})?", f"({text}){{2,{rng.choice((3, 500, 10**6))}}}"))


def _gbnf(rng: random.Random) -> str:
    names = [f"r{i}" for i in range(rng.choice((1, 4)))]
    leaf = (*names, '"a"', "[a-z]", '[^"]', "missing", '"\\n"', "root")

    def alternatives() -> str:
        several = (" ".join(rng.choices(leaf, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3)))
        return " | ".join(f"({each}){rng.choice(('', '*', '+', '?', '{2,5}'))}" for each in several)

    return "\n".join(f"{name} ::= {alternatives()}" for name in ("root", *names))


def _choice(rng: random.Random) -> Any:
    texts = [rng.choice(_WORDS) + str(i) for i in range(rng.choice((1, 2, 50, 3000)))]
    return rng.choice((texts, texts, texts, [], [1], "text", [""], ["\ud83d"], ["a\u0000b"]))


def _long_fields(rng: random.Random) -> Fields:
    """Return one constraint of the shapes that are cheap to write and dear to prepare."""
    n = rng.choice((100, 1000, 4000))
    chain = "\n".join(f"r{i}: r{i + 1}" for i in range(n))
    schema: Any = {"type": "string"}
    for _ in range(min(n, 90)):
        schema = {"type": "array", "items": schema, "minItems": rng.choice((1, 2, 3))}
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": i} for i in range(n)}}
    shapes: tuple[Fields, ...] = (
        {"grammar": f"start: r0\n{chain}\nr{n}: /a/"},
        {"grammar": "start: T0\n" + "\n".join(f"T{i}: T{i + 1}" for i in range(n)) + f"\nT{n}: /a/"},
        of_schema(schema),
        of_schema(wide),
        of_schema({"enum": [f"value {i} {'x' * (i % 50)}" for i in range(n)]}),
        of_schema({"anyOf": [{"type": "string", "pattern": f"^a{{{i}}}b$"} for i in range(n)]}),
        {"regex": "(" + "|".join(f"word{i}" for i in range(n)) + "){5}"},
        {"regex": "(" * n + "a" + ")" * n},
        {"regex": f"(a?){{{n}}}a{{{n}}}"},
        {"choice": [json.dumps({"id": i, "text": "y" * (i % 90)}) for i in range(n)]},
    )
    return rng.choice(shapes)

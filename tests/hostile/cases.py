"""Requests that once ended, blocked or filled a worker, by name. Each is a path and the bytes of its body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hostile.constraints import of_schema

_CHAT, _TOKENIZE = "/v1/chat/completions", "/tokenize"
_LOWEST = -9223372036854775808  # −2⁶³: its negative is no 64-bit integer


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `statuses`: the answers that are right."""

    name: str
    path: str
    body: bytes
    statuses: tuple[int, ...] = (400,)


def chat(**fields: Any) -> bytes:
    """Return the body of a short chat request with more fields."""
    plain = {"model": "tool", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32, "temperature": 0}
    return json.dumps(plain | fields).encode()


def cases() -> list[Case]:
    """Return all cases. The bodies together take about 100 MB."""
    return [*_constraints(), *_bodies(), *_wrong_types()]


def dear(number: int) -> dict[str, Any]:
    """Return the fields of a constraint that takes long to prepare. Each number gives another one."""
    return of_schema(_alternatives(1500 + number % 200, first=number))


def _constraints() -> list[Case]:
    schemas: dict[str, tuple[Any, tuple[int, ...]]] = {
        "const at -2^63": ({"const": _LOWEST}, (400,)),
        "enum with -2^63": ({"enum": [1, _LOWEST]}, (400,)),
        "const at 2^63": ({"const": 2**63}, (400,)),
        "minimum and maximum at -2^63": ({"type": "integer", "minimum": _LOWEST, "maximum": _LOWEST}, (200, 400)),
        "pattern (a?){30}a{30}": ({"type": "string", "pattern": "(a?){30}a{30}"}, (200, 400)),
        "not (a+)+": ({"type": "string", "not": {"pattern": "^(a+)+$"}}, (200, 400)),
        "if (a+)+": (
            {"type": "string", "if": {"pattern": "^(a+)+$"}, "then": {"maxLength": 9}, "else": {"maxLength": 8}},
            (200, 400),
        ),
        "patternProperties (a+)+": (
            {"type": "object", "patternProperties": {"^(a+)+$": {"type": "integer"}}, "maxProperties": 2},
            (200, 400),
        ),
        "minItems 3999 nested three times": (_nested_items(3999, 3), (400,)),
        "a schema of 100 kB, 2,000 properties": (_wide(2000), (200, 400)),
        "a schema of 100 kB, 1,500 alternatives": (_alternatives(1500), (200, 400)),
        "$schema is a number": ({"$schema": 7, "type": "string", "maxLength": 5}, (200, 400)),
        "$schema is a list": ({"$schema": ["x"], "type": "string", "maxLength": 5}, (200, 400)),
        "an object that the repair cuts": (
            {"type": "object", "minProperties": 3, "maxProperties": 2, "additionalProperties": {"type": "boolean"}},
            (200, 400),
        ),
    }
    texts: dict[str, tuple[dict[str, str], tuple[int, ...]]] = {
        "a chain of 2,698 Lark rules": ({"grammar": _chain("r", 2698)}, (400,)),
        "a chain of 3,790 Lark terminals": ({"grammar": _chain("T", 3790)}, (400,)),
        "regex (a?){30}a{30}": ({"regex": "(a?){30}a{30}"}, (200, 400)),
        "regex 0a{9999}{9999}": ({"regex": "0a{9999}{9999}"}, (400,)),
        "regex 0x{900000}": ({"regex": "0x{900000}"}, (400,)),
        "a GBNF rule that is not defined": ({"grammar": "root ::= nobody"}, (400,)),
    }
    found = [Case(name, _CHAT, chat(**of_schema(schema)), statuses) for name, (schema, statuses) in schemas.items()]
    return found + [Case(name, _CHAT, chat(**fields), statuses) for name, (fields, statuses) in texts.items()]


def _bodies() -> list[Case]:
    said = {"role": "user", "content": "<|im_start|>" * 80_000}
    many = [{"role": ("user", "assistant")[i % 2], "content": "hi"} for i in range(49_999)]
    deep = b'{"model":"tool","metadata":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_001
    return [
        Case("30 MB to tokenize", _TOKENIZE, _prompt("word " * 6_000_000), (413,)),
        Case("15 MB to tokenize", _TOKENIZE, _prompt("word " * 3_000_000), (200, 400)),
        Case("metadata nested a million times", _CHAT, deep, (400,)),
        Case("an unknown key of 30 MB", _CHAT, chat(**{"k" * 30_000_000: 1}), (413,)),
        Case("an unknown key of 15 MB", _CHAT, chat(**{"k" * 15_000_000: 1})),
        Case("a model name of 15 MB", _CHAT, chat(model="m" * 15_000_000), (400, 404)),
        Case("80,000 control tokens", _CHAT, chat(messages=[said])),
        Case("49,999 messages", _CHAT, chat(messages=many)),
        Case("not JSON", _CHAT, b"{" * 100_000),
        Case("a text that no encoding can have", _CHAT, chat(messages=[{"role": "user", "content": "\ud800"}])),
    ]


def _wrong_types() -> list[Case]:
    fields: dict[str, dict[str, Any]] = {
        "a role that is a list": {"messages": [{"role": ["user"], "content": "x"}]},
        "a role that is an object": {"messages": [{"role": {"a": 1}, "content": "x"}]},
        "a logit_bias key of 5,000 digits": {"logit_bias": {"9" * 5000: 1}},
        "a temperature of 400 digits": {"temperature": 10**400},
        "a stop that is an object": {"stop": {"a": 1}},
        "n of 10^18": {"n": 10**18},
    }
    return [Case(name, _CHAT, chat(**each)) for name, each in fields.items()]


def _chain(name: str, length: int) -> str:
    lines = [f"start: {name}0", *(f"{name}{i}: {name}{i + 1}" for i in range(length))]
    return "\n".join([*lines, f"{name}{length}: /a/"])


def _nested_items(count: int, depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "minItems": count, "items": schema}
    return schema


def _wide(count: int) -> Any:
    return {"type": "object", "properties": {f"property{i}": {"type": "string", "maxLength": i} for i in range(count)}}


def _alternatives(count: int, first: int = 0) -> Any:
    numbers = range(first, first + count)
    return {
        "anyOf": [{"type": "object", "properties": {f"k{i}": {"const": i}}, "required": [f"k{i}"]} for i in numbers]
    }


def _prompt(text: str) -> bytes:
    return json.dumps({"model": "tool", "prompt": text}).encode()

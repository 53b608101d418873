"""A seeded generator of JSON values that a JSON Schema allows, and of such values with one part changed."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

_WORDS = ("a", "f1", "5", "look_up", "end\n", "привет", "🙂", "x y", "enable_thinking", '{"type": "object"}', "a" * 40)
_ANY = (None, True, False, 0, 1, -1, 1.5, 2.0, "", "x", "text", [], ["a"], [1], {}, {"a": 1}, {"type": "object"})
_USUAL = {"messages", "prompt"}  # fields that most bodies have, also if they are optional
_TRIES = 200


class Bodies:
    """Values of the schemas of one document. `components`: its named schemas."""

    def __init__(self, components: dict[str, Schema], seed: int) -> None:
        self._components = components
        self._chance = random.Random(seed)

    def validator(self, schema: Schema) -> Draft202012Validator:
        return Draft202012Validator(_in_python(schema | {"components": {"schemas": self._components}}))

    def valid(self, schema: Schema) -> Iterator[Any]:
        """Yield values that the schema allows, without end."""
        allowed = self.validator(schema)
        while True:
            yield next(value for _ in range(_TRIES) if allowed.is_valid(value := self._value(schema, 0)))

    def likely(self, schema: Schema) -> Iterator[Any]:
        """Yield such objects without checking them, so a few are not allowed. Each field is in one of them in turn."""
        names = itertools.cycle(schema.get("properties", {"": True}))
        while True:
            value, name = self._value(schema, 0), next(names)
            if name and name not in value:
                value[name] = self._value(schema["properties"][name], 1)
            yield value

    def changed(self, schema: Schema) -> Iterator[Any]:
        """Yield such values with one or two parts changed. About a half of them is still allowed."""
        for value in self.valid(schema):
            body = copy.deepcopy(value)
            for _ in range(self._chance.choice((1, 1, 2))):
                self._change(body)
            yield body

    def _change(self, body: Any) -> None:
        places = list(_places(body))
        if not places:
            return
        holder, key = self._chance.choice(places)
        if isinstance(holder, dict) and self._chance.random() < 0.2:
            del holder[key]
        elif isinstance(holder, dict) and self._chance.random() < 0.2:
            other = self._chance.choice(places)
            holder[other[1] if isinstance(other[1], str) else "x"] = copy.deepcopy(other[0][other[1]])
        else:
            holder[key] = copy.deepcopy(self._chance.choice(_ANY))

    def _value(self, schema: Schema | bool, depth: int) -> Any:
        if isinstance(schema, bool):
            return self._any()
        schema = self._flat(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._chance.choice(schema["enum"])
        kind = schema.get("type", "object" if "properties" in schema else None)
        if isinstance(kind, list):
            kind = self._chance.choice(kind)
        makers: dict[Any, Callable[[Schema, int], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda schema, depth: self._chance.random() < 0.5,
            "null": lambda schema, depth: None,
        }
        return makers[kind](schema, depth) if kind in makers else self._any()

    def _flat(self, schema: Schema) -> Schema:
        """Return a schema without references and alternatives: one of them is chosen."""
        schema = dict(schema)
        while True:
            if "$ref" in schema:
                schema = _merged(schema, self._components[schema.pop("$ref").rpartition("/")[2]])
            elif found := next((key for key in ("anyOf", "oneOf") if key in schema), None):
                schema = _merged(schema, self._chance.choice(schema.pop(found)))
            elif "allOf" in schema:
                for part in schema.pop("allOf"):
                    schema = _merged(schema, part if "if" not in part and "oneOf" not in part else {})
            else:
                return schema

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        required, found = schema.get("required", []), schema.get("properties", {})
        optional = [name for name, each in found.items() if name not in required and each != {"not": {}}]
        some = self._chance.sample(optional, min(len(optional), self._chance.choice((0, 1, 2, 4, 8))))
        some += [name for name in optional if name in _USUAL and name not in some and self._chance.random() < 0.7]
        made = {name: self._value(found.get(name, True), depth + 1) for name in [*required, *some]}
        rest = schema.get("additionalProperties", True)
        if rest is not False and depth < 3 and self._chance.random() < (0.1 if found else 0.8):
            name = self._chance.choice(("x", "5", "17", "something_new", "a"))
            made.setdefault(name, self._value(rest, depth + 1))
        return made

    def _array(self, schema: Schema, depth: int) -> list[Any]:
        least = schema.get("minItems", 1 if "contains" in schema else 0)
        most = min(schema.get("maxItems", 3), 3)
        items = schema.get("items", schema.get("contains", True))
        return [self._value(items, depth + 1) for _ in range(self._chance.randint(least, max(least, most)))]

    def _string(self, schema: Schema, depth: int) -> str:
        most = schema.get("maxLength", 2_000)
        if self._chance.random() < 0.05:
            return "x" * min(most, 2_000)
        return self._chance.choice(_WORDS if schema.get("minLength") else ("", *_WORDS))[:most]

    def _integer(self, schema: Schema, depth: int) -> int:
        low, high = schema.get("minimum", -5), schema.get("maximum", 2**20)
        return self._chance.choice((low, high, min(high, low + 1), self._chance.randint(low, min(high, max(low, 200)))))

    def _number(self, schema: Schema, depth: int) -> float:
        low, high = schema.get("minimum", schema.get("exclusiveMinimum", -10)), schema.get("maximum", 10)
        return self._chance.choice((low, high, self._chance.uniform(low, high)))

    def _any(self) -> Any:
        return copy.deepcopy(self._chance.choice(_ANY))


def _in_python(schema: Any) -> Any:
    """Return a schema with its patterns as Python has them. In JSON Schema `$` is the end of the text alone."""
    if isinstance(schema, list):
        return [_in_python(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    pattern = schema.get("pattern")
    more = {"pattern": re.sub(r"\$$", r"\\Z", pattern)} if isinstance(pattern, str) else {}
    return {key: _in_python(value) for key, value in schema.items()} | more


def _merged(one: Schema, other: Schema | bool) -> Schema:
    if isinstance(other, bool):
        return one
    made = one | other
    properties = dict(one.get("properties", {}))
    for name, schema in other.get("properties", {}).items():
        both = name in properties and isinstance(schema, dict) and isinstance(properties[name], dict)
        properties[name] = {"allOf": [properties[name], schema]} if both else schema
    required = [*one.get("required", []), *other.get("required", [])]
    return made | ({"properties": properties} if properties else {}) | ({"required": required} if required else {})


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every part of a value as the list or object that holds it, and its place there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 20)):
            yield value, key
            yield from _places(value[key])

"""Estimates the end of a document of a JSON Schema: short instances of the schema, its patterns, and samples of them.

They show how many tokens the end takes and what must be written. Nothing here is validated.
"""

from __future__ import annotations

import json
from typing import Any

from tourkit.grammar.regex_example import example
from tourkit.grammar.schema_walk import LISTS, resolve, walk

_text = json.JSONEncoder(ensure_ascii=False).encode
_MAX_DEPTH = 40
_MAX_TEXT = 4000  # characters of one string; values of one array
_MAX_SAMPLES, _MAX_SAMPLE = 64, 100  # number of texts; characters of one text
_SAMPLES = {
    "date-time": "2026-01-01T10:00:00Z",
    "date": "2026-01-01",
    "time": "10:00:00Z",
    "duration": "P1DT1H",
    "email": "abcdef@abc.de",
    "ipv4": "100.100.100.100",
    "ipv6": "1000:1000:1000:1000:1000:1000:1000:1000",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "https://abcd.ef",
}


def closing_texts(schema: Any) -> tuple[str, str]:
    """Return two texts that together are about as long as the rest of a document may be when the tokens run out.

    The first has all that is required. The second is the longest chain of optional parts that may have begun.
    """
    measure = _Measure(schema)
    return _text(measure.instance(schema, 0)), measure.begun(schema, 0)


def patterns(schema: Any) -> tuple[str, ...]:
    """Return the regular expressions that a schema has for strings and keys."""
    found: dict[str, None] = {}
    for _, part in walk(schema):
        if isinstance(part.get("pattern"), str):
            found[part["pattern"]] = None
        keys = part.get("patternProperties")
        found |= dict.fromkeys(keys) if isinstance(keys, dict) else {}
    return tuple(found)


def samples(schema: Any) -> tuple[str, ...]:
    """Return short matches of the schema's patterns and formats: texts that may be needed to end a string."""
    found: dict[str, None] = {}
    for _, part in walk(schema):
        text = _SAMPLES.get(str(part.get("format")))
        if isinstance(part.get("pattern"), str):
            text = example(part["pattern"])
        if text and len(text) <= _MAX_SAMPLE and text.isascii() and text.isprintable():
            found[text] = None
        if len(found) == _MAX_SAMPLES:
            break
    return tuple(found)


class _Measure:
    """Instances and texts of the parts of one schema. Each is made once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._instances: dict[int, Any] = {}
        self._begun: dict[int, str] = {}

    def instance(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None
        if id(schema) not in self._instances:
            self._instances[id(schema)] = None  # a schema that contains itself finds this
            self._instances[id(schema)] = self._instance(schema, depth + 1)
        return self._instances[id(schema)]

    def _instance(self, schema: dict[str, Any], depth: int) -> Any:
        if "$ref" in schema:
            return self.instance(resolve(str(schema["$ref"]), self._root), depth)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return max(schema["enum"], key=lambda value: len(str(value)))
        parts: list[Any] = [_of_type(schema, lambda part: self.instance(part, depth))]
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list):
                options = [self.instance(option, depth) for option in schema[keyword]]
                parts.append(max(options, key=lambda value: len(str(value)), default=None))
        if isinstance(schema.get("allOf"), list):
            parts += [self.instance(part, depth) for part in schema["allOf"]]
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part if isinstance(part, dict) else {}
        return merged if merged else max(parts, key=lambda value: 0 if value is None else len(str(value)))

    def begun(self, schema: Any, depth: int) -> str:
        """Return the longest text that optional parts of this schema add once they have begun."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return ""
        if id(schema) not in self._begun:
            self._begun[id(schema)] = ""
            texts = [self.begun(part, depth + 1) for part in self._required(schema)]
            for part in self._optional(schema):
                begun = _text(self.instance(part, depth))
                texts.append(f'"", {begun}{self.begun(part, depth + 1)}'[:_MAX_TEXT])
            self._begun[id(schema)] = max(texts, key=len, default="")
        return self._begun[id(schema)]

    def _required(self, schema: dict[str, Any]) -> list[Any]:
        properties = schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        parts = [part for key, part in named.items() if key in schema.get("required", ())]
        for keyword in LISTS:
            parts += schema[keyword] if isinstance(schema.get(keyword), list) else []
        if "$ref" in schema:
            parts.append(resolve(str(schema["$ref"]), self._root))
        return parts

    def _optional(self, schema: dict[str, Any]) -> list[Any]:
        parts = []
        for keyword in ("properties", "patternProperties"):
            named = schema.get(keyword)
            if isinstance(named, dict):
                parts += [part for key, part in named.items() if key not in schema.get("required", ())]
        items = schema.get("items")
        return [*parts, *(items if isinstance(items, list) else [items]), schema.get("additionalProperties")]


def _of_type(schema: dict[str, Any], instance: Any) -> Any:
    kind = schema.get("type", "object" if "properties" in schema or "required" in schema else "null")
    if isinstance(kind, list):
        kind = next((k for k in ("object", "array", "string", "number", "integer", "boolean") if k in kind), "null")
    if kind == "object":
        properties = schema.get("properties", {})
        return {key: instance(properties.get(key, {})) for key in schema.get("required", [])}
    if kind == "array":
        first = [instance(part) for part in schema.get("prefixItems", [])][: int(schema.get("minItems", 0))]
        items = schema.get("items", {})
        rest = min(int(schema.get("minItems", 0)), _MAX_TEXT) - len(first)
        return first + [instance(items[0] if isinstance(items, list) and items else items)] * max(0, rest)
    if kind == "string":
        return _string(schema)
    return {"integer": 100, "number": 100.5, "boolean": False}.get(str(kind))


def _string(schema: dict[str, Any]) -> str:
    sample = _SAMPLES.get(str(schema.get("format")), "")
    if "pattern" in schema:
        sample = example(str(schema["pattern"])) or "x" * 12
    return sample + "x" * min(int(schema.get("minLength", 0)) - len(sample), _MAX_TEXT)

"""Estimates the end of a document of a JSON Schema: short instances of the schema, its patterns, and samples of them.

They show how many tokens the end takes and what must be written. Nothing here is validated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tourkit.grammar.refusals import TOO_COMPLEX, refuse
from tourkit.grammar.regex_example import example
from tourkit.grammar.regex_syntax import HUGE
from tourkit.grammar.schema_walk import LISTS, References, own_patterns, walk

_text = json.JSONEncoder(ensure_ascii=False).encode
_MAX_DEPTH = 40
_MAX_LENGTH = 200_000  # characters of the shortest document; no context has room for more
_MAX_BEGUN = 4000  # characters of optional parts that have begun
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

    The first has all that is required. The second is the longest chain of optional parts that may have begun. Raises
    RequestError if the first would be longer than 200,000 characters; it is not built then.
    """
    measure = _Measure(schema)
    required = measure.instance(schema, 0)
    if required.length > _MAX_LENGTH:
        said = f"the schema is too complex: its shortest document has more than {_MAX_LENGTH} characters"
        refuse("response_format", said, TOO_COMPLEX)
    return _text(required.value), measure.begun(schema, 0)


def patterns(schema: Any) -> tuple[str, ...]:
    """Return the regular expressions that a schema has for strings and keys, without duplicates."""
    return tuple(dict.fromkeys(pattern for _, part in walk(schema) for pattern in own_patterns(part)))


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


@dataclass(frozen=True, slots=True)
class _Instance:
    """A short instance of a schema and the length of its JSON text, about. `value` is None if the text is too long."""

    value: Any
    length: int


def _short(value: Any) -> _Instance:
    """Return an instance whose text is known to be short enough to be built."""
    return _Instance(value, len(_text(value)))


_NULL = _short(None)


class _Measure:
    """Instances and texts of the parts of one schema. Each is made once."""

    def __init__(self, root: Any) -> None:
        self._resolve = References(root)
        self._instances: dict[int, _Instance] = {}
        self._begun: dict[int, str] = {}

    def instance(self, schema: Any, depth: int) -> _Instance:
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return _NULL
        if id(schema) not in self._instances:
            self._instances[id(schema)] = _NULL  # a schema that contains itself finds this
            self._instances[id(schema)] = self._instance(schema, depth + 1)
        return self._instances[id(schema)]

    def _instance(self, schema: dict[str, Any], depth: int) -> _Instance:
        if "$ref" in schema:
            return self.instance(self._resolve(str(schema["$ref"])), depth)
        if "const" in schema:
            return _short(schema["const"])
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return _short(max(schema["enum"], key=lambda value: len(str(value))))
        parts = [_of_type(schema, lambda part: self.instance(part, depth))]
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list):
                options = [self.instance(option, depth) for option in schema[keyword]]
                parts.append(_longest(options, _MAX_LENGTH))
        if isinstance(schema.get("allOf"), list):
            parts += [self.instance(part, depth) for part in schema["allOf"]]
        objects = [part for part in parts if isinstance(part.value, dict)]
        if any(part.length > _MAX_LENGTH for part in parts) or not any(part.value for part in objects):
            return _longest(parts, HUGE)
        merged: dict[str, Any] = {}
        for part in objects:
            merged |= part.value
        return _limited(merged, sum(part.length for part in objects))

    def begun(self, schema: Any, depth: int) -> str:
        """Return the longest text that optional parts of this schema add once they have begun."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return ""
        if id(schema) not in self._begun:
            self._begun[id(schema)] = ""
            texts = [self.begun(part, depth + 1) for part in self._required(schema)]
            for part in self._optional(schema):
                optional = self.instance(part, depth)
                begun = "x" * _MAX_BEGUN if optional.length > _MAX_BEGUN else _text(optional.value)
                texts.append(f'"", {begun}{self.begun(part, depth + 1)}'[:_MAX_BEGUN])
            self._begun[id(schema)] = max(texts, key=len, default="")
        return self._begun[id(schema)]

    def _required(self, schema: dict[str, Any]) -> list[Any]:
        properties = schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        parts = [part for key, part in named.items() if key in schema.get("required", ())]
        for keyword in LISTS:
            parts += schema[keyword] if isinstance(schema.get(keyword), list) else []
        if "$ref" in schema:
            parts.append(self._resolve(str(schema["$ref"])))
        return parts

    def _optional(self, schema: dict[str, Any]) -> list[Any]:
        parts = []
        for keyword in ("properties", "patternProperties"):
            named = schema.get(keyword)
            if isinstance(named, dict):
                parts += [part for key, part in named.items() if key not in schema.get("required", ())]
        items = schema.get("items")
        return [*parts, *(items if isinstance(items, list) else [items]), schema.get("additionalProperties")]


def _longest(options: list[_Instance], limit: int) -> _Instance:
    """Return the longest instance that is no longer than `limit`; if there is none, the shortest of all."""
    within = [option for option in options if option.length <= limit]
    if within:
        return max(within, key=lambda option: 0 if option.value is None and option is _NULL else option.length)
    return min(options, key=lambda option: option.length, default=_NULL)


def _limited(value: Any, length: int) -> _Instance:
    return _Instance(value if length <= _MAX_LENGTH else None, min(length, HUGE))


def _of_type(schema: dict[str, Any], instance: Callable[[Any], _Instance]) -> _Instance:
    kind = schema.get("type", "object" if "properties" in schema or "required" in schema else "null")
    if isinstance(kind, list):
        kind = next((k for k in ("object", "array", "string", "number", "integer", "boolean") if k in kind), "null")
    if kind == "object":
        properties = schema.get("properties", {})
        parts = {key: instance(properties.get(key, {})) for key in schema.get("required", [])}
        length = 2 + sum(len(_text(key)) + part.length + 4 for key, part in parts.items())
        return _limited({key: part.value for key, part in parts.items()}, length)
    if kind == "array":
        return _array(schema, instance)
    if kind == "string":
        return _string(schema)
    value = {"integer": 100, "number": 100.5, "boolean": False}.get(str(kind))
    return _NULL if value is None else _short(value)


def _array(schema: dict[str, Any], instance: Callable[[Any], _Instance]) -> _Instance:
    least = int(schema.get("minItems", 0))
    first = [instance(part) for part in schema.get("prefixItems", [])][: max(0, least)]
    items = schema.get("items", {})
    item = instance(items[0] if isinstance(items, list) and items else items)
    rest = max(0, least - len(first))
    length = 2 + sum(part.length + 2 for part in first) + rest * (item.length + 2)
    if length > _MAX_LENGTH:
        return _limited(None, length)
    return _Instance([part.value for part in first] + [item.value] * rest, length)


def _string(schema: dict[str, Any]) -> _Instance:
    sample = _SAMPLES.get(str(schema.get("format")), "")
    if "pattern" in schema:
        sample = example(str(schema["pattern"])) or "x" * 12
    missing = int(schema.get("minLength", 0)) - len(sample)
    return _limited(None, missing) if missing > _MAX_LENGTH else _short(sample + "x" * missing)

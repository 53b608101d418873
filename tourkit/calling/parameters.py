"""Arguments that are written one by one, not as a JSON object: the tools that allow it, and JSON made of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[\w$.-]{1,100}")
_NOTES = {"title", "description", "$schema", "$id", "$comment", "default", "examples", "strict", "deprecated"}
_OBJECT = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"} | _NOTES
_TEXT = {"type", "minLength", "maxLength"}
_WORDS = re.compile(r"[^<>|\r\n]+")
_REFERENCE = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')
_SCALAR = re.compile(r"[A-Za-z0-9+.-]*")
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Notation:
    """How a form writes arguments one by one: begin NAME middle VALUE end, and `between` between two of them.

    A string is written as it is, with `quote` before and after it. If `quote` is None, it is a JSON string. Other
    values are JSON. `python`: true and false are written as Python has them.
    """

    begin: str
    middle: str
    end: str
    between: str = ""
    quote: str | None = None
    python: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts."""
        return (self.begin, self.middle, self.end, self.between, self.quote or "")

    def written(self, arguments: Mapping[str, Any]) -> str:
        """Return arguments as the model would write them."""
        each = [f"{self.begin}{name}{self.middle}{self._value(value)}{self.end}" for name, value in arguments.items()]
        return self.between.join(each)

    def _value(self, value: Any) -> str:
        if isinstance(value, str) and self.quote is not None:
            return f"{self.quote}{value}{self.quote}"
        if self.python and isinstance(value, bool):
            return str(value)
        return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool.

    `is_text`: its value is one of the `options`, or if there are none, any string from `shortest` to `longest`
    characters. A value of another parameter is written as JSON.
    """

    name: str
    required: bool
    is_text: bool = False
    is_boolean: bool = False
    options: tuple[str, ...] = ()
    shortest: int = 0
    longest: int | None = None


def parameters_of(schema: Any) -> tuple[Parameter, ...] | None:
    """Return the parameters of a tool from the JSON Schema of its arguments.

    None if the arguments cannot be written one by one: the schema says more than which parameters there are, a part of
    it refers to another parameter, or a name has unusual characters.
    """
    if not isinstance(schema, dict) or not schema.keys() <= _OBJECT or _REFERENCE.search(json.dumps(schema)):
        return None
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or not set(required) <= properties.keys():
        return None
    if not all(_NAME.fullmatch(name) and isinstance(about, dict) for name, about in properties.items()):
        return None
    return tuple(_parameter(name, about, name in required) for name, about in properties.items())


def _parameter(name: str, schema: dict[str, Any], required: bool) -> Parameter:
    kind, keys, options = schema.get("type"), schema.keys() - _NOTES, schema.get("enum")
    if keys <= {"type", "enum"} and options and kind in (None, "string") and _are_words(options):
        return Parameter(name, required, is_text=True, options=tuple(options))
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
    if kind == "string" and keys <= _TEXT and all(type(each) is int for each in (shortest, longest or 0)):
        return Parameter(name, required, is_text=True, shortest=max(0, shortest), longest=longest)
    return Parameter(name, required, is_boolean=kind == "boolean" and keys <= {"type"})


def _are_words(options: Any) -> bool:
    """Whether these are strings of one line that no quote or tag can be a part of."""
    return isinstance(options, list) and all(isinstance(each, str) and _WORDS.fullmatch(each) for each in options)


class ArgumentStream:
    """Take the text of the arguments of one call, and return it as JSON as soon as it is final.

    `texts`: the names of the parameters whose values are strings as they are. `stop`: the text after the arguments.
    `whole`: it has come.
    """

    def __init__(self, notation: Notation, texts: Sequence[str], stop: str) -> None:
        self._notation = notation
        self._texts = frozenset(texts)
        self._stop = stop.lstrip(_SPACE)
        self._count = 0
        self._value: _Text | _Json | None = None  # the value that is being written
        self.whole = False

    def take(self, text: str) -> tuple[int, str]:
        """Return how many characters are done, and the new JSON text."""
        done, made = 0, ""
        while True:
            took, piece = self._name(text[done:]) if self._value is None else self._value.take(text[done:])
            done, made = done + took, made + piece
            if self._value is not None and self._value.whole:
                self._value = None
            elif self.whole or not took:
                return done, made

    def _name(self, text: str) -> tuple[int, str]:
        """Read from the end of a value to the next one, or to the end of the arguments."""
        rest = text.lstrip(_SPACE)
        if rest.startswith(self._stop):
            self.whole = True
            return len(text) - len(rest), "}" if self._count else "{}"
        if not rest or self._stop.startswith(rest):
            return 0, ""
        notation = self._notation
        before = (notation.between.strip(_SPACE) if self._count else "") + notation.begin
        name, middle, _ = rest.removeprefix(before.strip(_SPACE)).lstrip(_SPACE).partition(notation.middle)
        if not middle:
            return 0, ""
        self._value = self._begun(name)
        self._count += 1
        opening = "{" if self._count == 1 else ", "
        took = text.index(name + middle) + len(name + middle)
        return took, f"{opening}{json.dumps(name, ensure_ascii=False)}: "

    def _begun(self, name: str) -> _Text | _Json:
        quote = self._notation.quote
        if quote is None or name not in self._texts:
            return _Json(self._notation.end)
        return _Text(quote, quote + self._notation.end)


class _Text:
    """A string as it is. `opening`: stands before it. `closing`: ends it."""

    def __init__(self, opening: str, closing: str) -> None:
        self._opening = opening
        self._closing = closing
        self._is_open = False
        self.whole = False

    def take(self, text: str) -> tuple[int, str]:
        """Return how many characters are done, and the new JSON text."""
        if not self._is_open:
            if not text or self._opening not in text:
                return 0, ""
            self._is_open = True
            took = text.index(self._opening) + len(self._opening)
            rest, made = self.take(text[took:])
            return took + rest, '"' + made
        said, mark, _ = text.partition(self._closing)
        if mark:
            self.whole = True
            return len(said) + len(mark), _escaped(said) + '"'
        sure = len(text) - begun(text, self._closing)
        return sure, _escaped(text[:sure])


class _Json:
    """A JSON value. `end`: stands after it."""

    def __init__(self, end: str) -> None:
        self._end = end
        self._scan = Scan()
        self._has_ended = False
        self.whole = False

    def take(self, text: str) -> tuple[int, str]:
        """Return how many characters are done, and the new JSON text."""
        if self._has_ended:
            self.whole = text.startswith(self._end)
            return (len(self._end), "") if self.whole else (0, "")
        if not self._scan.has_begun and text and text[0] not in '{["':
            scalar = _SCALAR.match(text)
            assert scalar is not None
            if scalar.end() == len(text):  # it may go on
                return 0, ""
            self._has_ended = True
            return scalar.end(), _PYTHON.get(scalar[0], scalar[0])
        taken = self._scan.take(text)
        self._has_ended = self._scan.whole
        return taken, text[:taken]


class Scan:
    """Follow one JSON object, array or string to its end. `whole`: its last character has come."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.has_begun = self.whole = False

    def take(self, text: str) -> int:
        """Follow a text and return how many of its characters belong to the value."""
        for at, char in enumerate(text):
            if not self.has_begun and char in _SPACE:
                continue
            self.has_begun = True
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            if self._depth == 0 and not self._in_string:
                self.whole = True
                return at + 1
        return len(text)


def begun(text: str, marker: str) -> int:
    """Return how many characters at the end of a text are the beginning of a marker."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]

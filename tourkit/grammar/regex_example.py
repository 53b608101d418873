"""A short text that matches a regular expression. It shows how long a match is and how to end one that has begun."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tourkit.grammar.patterns import compiled, is_linear

_MAX_TEXT = 2000  # characters


@lru_cache(maxsize=1024)
def example(pattern: str) -> str | None:
    """Return a short match of a pattern; None if Python or RE2 cannot read the pattern, or no short match is found."""
    from re import _parser  # type: ignore[attr-defined]

    if not is_linear(pattern):
        return None
    try:
        text = _text(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError, ValueError):
        return None
    found = compiled(pattern)
    return text if found and len(text) <= _MAX_TEXT and found.search(text) else None


def _text(parsed: Any) -> str:
    made = ""
    for operation, argument in parsed:
        made += _part(str(operation), argument)
        if len(made) > _MAX_TEXT:
            raise ValueError("the shortest match is long")
    return made


def _part(operation: str, argument: Any) -> str:
    match operation:
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return "b" if argument == ord("a") else "a"
        case "ANY":
            return "a"
        case "IN":
            return _member(argument)
        case "BRANCH":
            return min((_text(option) for option in argument[1]), key=len)
        case "SUBPATTERN":
            return _text(argument[-1])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, _most, repeated = argument
            if least > _MAX_TEXT:
                raise ValueError("the shortest match is long")
            return _text(repeated) * least if least else ""
        case "ATOMIC_GROUP":
            return _text(argument)
    return ""  # anchors and look-around match no characters


def _member(members: list[Any]) -> str:
    """Return one character of a character class."""
    negated = str(members[0][0]) == "NEGATE"
    for letter in "a0A-_ ./:@#x1Bz":
        inside = any(_has(str(kind), value, letter) for kind, value in members)
        if inside != negated:
            return letter
    for kind, value in members:
        if str(kind) == "LITERAL":
            return chr(value)
        if str(kind) == "RANGE":
            return chr(value[0])
    return "a"


def _has(kind: str, value: Any, letter: str) -> bool:
    match kind:
        case "LITERAL":
            return bool(ord(letter) == value)
        case "RANGE":
            return bool(value[0] <= ord(letter) <= value[1])
        case "CATEGORY":
            name = str(value)
            found: bool = letter.isdigit() if "DIGIT" in name else letter.isspace()
            if "WORD" in name:
                found = letter.isalnum() or letter == "_"
            return found != ("NOT" in name)
    return False

"""Refuses constraints that are too large or too deep, by what their text says, before anything is built from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tourkit.generation import Constraint
from tourkit.grammar.lark_syntax import embedded, measures
from tourkit.grammar.patterns import is_linear
from tourkit.grammar.refusals import TOO_COMPLEX, refuse
from tourkit.grammar.regex_syntax import size
from tourkit.grammar.schema_walk import own_patterns, walk

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
MAX_SCHEMA = 1_000_000  # characters of a schema, or of a choice
_MAX_TEXT = {"choice": MAX_SCHEMA, "regex": 100_000, "grammar": 200_000}  # characters
_MAX_NESTING = 100  # llguidance and Python's own JSON parser fail a little above this
# Characters of a regular expression with its repeats written out, and of one string of a choice. llguidance takes 2 µs
# for each of them in each step of a text that is forced, such as `a{20000}`.
MAX_REPEATED = 20_000
_MAX_RULES = 2_000
_MAX_CHAIN = 200  # rules that name one another in a row; llguidance follows them on the stack
_MAX_EMBEDDED = 100  # JSON values in a grammar
_TOO_FAR = 2.0**63  # llguidance reads numbers as doubles, and computes with whole numbers of 64 bits


def check_text(constraint: Constraint) -> None:
    """Refuse a regex, a choice or a grammar that is empty or too large."""
    kind, source = constraint.kind, constraint.source
    most = _MAX_TEXT.get(kind, MAX_SCHEMA)
    if not source.strip() or len(source) > most:
        refuse(kind, f"the {kind} is empty or over {most} characters", "invalid_grammar")
    if kind == "regex" and (why := too_large(source)):
        refuse(kind, f"the regex is too complex: {why}", TOO_COMPLEX)
    if kind == "grammar":
        _check_grammar(source)


def too_large(pattern: str) -> str:
    """Return why a regular expression is too large to be followed; "" if it is not."""
    if len(pattern) > _MAX_TEXT["regex"]:
        return f"it has {len(pattern)} characters, at most {_MAX_TEXT['regex']}"
    length, nesting = size(pattern)
    if nesting > _MAX_NESTING:
        return f"its groups are nested {nesting} levels deep, at most {_MAX_NESTING}"
    if length > MAX_REPEATED + len(pattern):
        return f"its repeats stand for more than {MAX_REPEATED} characters"
    return ""


def _check_grammar(source: str) -> None:
    found = measures(source)
    why = ""
    if found.rules > _MAX_RULES:
        why = f"it has {found.rules} rules, at most {_MAX_RULES}"
    elif found.chain > _MAX_CHAIN:
        why = f"{found.chain} of its rules name one another in a row, at most {_MAX_CHAIN}"
    elif found.nesting > _MAX_NESTING:
        why = f"its groups are nested {found.nesting} levels deep, at most {_MAX_NESTING}"
    elif found.largest > MAX_REPEATED + len(source):
        why = f"the repeats of a terminal stand for more than {MAX_REPEATED} characters"
    for number, value in enumerate(embedded(source)):
        if why or number == _MAX_EMBEDDED:
            why = why or f"it has more than {_MAX_EMBEDDED} JSON values"
            break
        why = _embedded_fault(value)
    if why:
        refuse("grammar", f"the grammar is too complex: {why}", TOO_COMPLEX)


def _embedded_fault(schema: Any) -> str:
    """Return why a JSON Schema inside a grammar is refused; "" if it is not."""
    if schema is None:
        return "the JSON after % cannot be read"
    if _depth(schema) > _MAX_NESTING:
        return f"its JSON is nested more than {_MAX_NESTING} levels deep"
    for _, part in walk(schema):
        far = [part[key] for key in BOUNDS if is_far(part.get(key))] + [*_far_values(part)]
        if far:
            return f"the number {far[0]} is not within ±2^63"
        if isinstance(part.get("pattern"), str) and (why := too_large(part["pattern"])):
            return why
    return ""


def parsed(source: str) -> Any:
    """Parse a schema. Refuse it if it is too large, nested too deeply, or has a value that is too large a number."""
    if len(source) > MAX_SCHEMA:
        refuse("response_format", f"the schema has {len(source)} characters: at most {MAX_SCHEMA}", "invalid_schema")
    try:
        schema = json.loads(source)
    except RecursionError:
        schema = None
    except ValueError as exc:
        refuse("response_format", f"the schema is not JSON: {exc}", "invalid_schema")
    brackets = source.count("{") + source.count("[")  # a quick check that clears most schemas
    if schema is None or (brackets > _MAX_NESTING and _depth(schema) > _MAX_NESTING):
        refuse("response_format", f"the schema is nested more than {_MAX_NESTING} levels deep", "invalid_schema")
    for at, part in walk(schema):
        for number in _far_values(part):
            said = f"the schema cannot be enforced: {at or '/'}: the value {number} is not within ±2^63"
            refuse("response_format", said, "unsupported_schema")
    return schema


def unfollowed(schema: Any) -> str:
    """Return why a schema is not even tried: a bound too far away, or a pattern that no grammar follows; "" if none."""
    for at, part in walk(schema):
        for key in BOUNDS:
            if is_far(part.get(key)):
                return f"{at}/{key}: {part[key]} is not within ±2^63"
        for pattern in own_patterns(part):
            if why := too_large(pattern):
                return f"{at or '/'}: a pattern is too complex: {why}"
            if not is_linear(pattern):
                return f"{at or '/'}: the pattern {pattern[:100]!r} has look-around, a back-reference or a long repeat"
    return ""


def is_far(value: Any) -> bool:
    """Return whether a JSON value is a number that is at or beyond ±2⁶³ once it is a double, or no number (NaN)."""
    if not isinstance(value, int | float):
        return False
    try:
        return not abs(float(value)) < _TOO_FAR
    except OverflowError:
        return True


def _far_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the numbers of `const` and `enum` that are at or beyond ±2⁶³."""
    left = [schema[key] for key in ("const", "enum") if key in schema]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        elif is_far(value):
            yield value


def _depth(value: Any, limit: int = _MAX_NESTING + 1) -> int:
    """Return the nesting depth of a JSON value; stop counting at `limit`."""
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(child, limit - 1) for child in children), default=0)

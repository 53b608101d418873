"""Checks a JSON value against the user's own schema, and a schema against its dialect. Fetches nothing.

Patterns are searched by RE2, in linear time. Those that it cannot read are searched by `re`, which may take any time.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

from tourkit.errors import one_line
from tourkit.grammar.key_patterns import with_literal_keys
from tourkit.grammar.metaschema import described, dialect_of, registry
from tourkit.grammar.patterns import compiled

_MAX_ERRORS = 10
_FORMATS = ("date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid")  # those that jsonschema checks by itself


def validate(schema: Any, data: Any) -> list[str]:
    """Return the errors of `data` under `schema`, one line each with a JSON pointer; none if it is valid.

    Fetches nothing.
    """
    errors, problem = validation_errors(schema, data)
    return [*([problem] if problem else []), *(described(error) for error in errors)]


def validation_errors(schema: Any, data: Any) -> tuple[list[Any], str | None]:
    """Return the first errors of `data`, at most 10, as jsonschema gives them; and why the check failed, or None."""
    return _checked_each(schema, [data], _MAX_ERRORS)[0]


def valid_among(schema: Any, values: list[Any]) -> list[Any]:
    """Return those of the values that are valid under the schema."""
    checked = _checked_each(schema, values, 1)
    return [value for value, found in zip(values, checked, strict=True) if found == ([], None)]


def _checked_each(schema: Any, values: list[Any], most: int) -> list[tuple[list[Any], str | None]]:
    """Return for each value its first errors, at most `most`; and why its check failed, or None."""
    validator = None

    def errors(value: Any) -> Iterator[Any]:
        nonlocal validator
        if validator is None:
            spelled, keys = with_literal_keys(schema, values)
            validator = _validator(json.dumps(spelled)), keys
        for error in validator[0].iter_errors(value):
            for literal, pattern in validator[1].items():
                error.message = error.message.replace(repr(literal), repr(pattern))
            yield error

    return [_collected(errors(value), most) for value in values]


def _collected(errors: Iterator[Any], most: int) -> tuple[list[Any], str | None]:
    """Return the first errors, and why there could not be more, or None."""
    from jsonschema.exceptions import UnknownType
    from referencing.exceptions import Unresolvable

    found: list[Any] = []
    try:
        for error in errors:
            found.append(error)
            if len(found) == most:
                break
    except (Unresolvable, RecursionError) as exc:
        return found, f": the schema cannot be checked: {one_line(str(exc) or type(exc).__name__)}"
    except (UnknownType, re.error, TypeError, AttributeError, ValueError) as exc:
        return found, f": the schema is malformed and cannot be checked: {one_line(str(exc))}"
    except OverflowError as exc:
        return found, f": the value cannot be checked: {exc}"
    return found, None


@functools.lru_cache(maxsize=64)
def _validator(source: str) -> Any:
    """Return a validator for a schema given as JSON text."""
    from jsonschema import FormatChecker

    schema = json.loads(source)
    formats = FormatChecker(_FORMATS)
    formats.checks("regex")(lambda text: not isinstance(text, str) or readable(text))
    return _checking(dialect_of(schema))(schema, registry=registry(), format_checker=formats)


@functools.cache
def _checking(dialect: Any) -> Any:
    """Return the validator class of a dialect that searches patterns as this module does."""
    from jsonschema.validators import extend

    return extend(dialect, {"pattern": _pattern})  # type: ignore[no-untyped-call]


def readable(pattern: str) -> bool:
    """Return whether RE2 or Python can read this pattern."""
    return compiled(pattern) is not None


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    """Check the keyword `pattern`. A pattern that nothing can read is skipped."""
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "string") and (found := compiled(pattern)) and not found.search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")

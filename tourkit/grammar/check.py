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
from tourkit.grammar.patterns import compiled
from tourkit.grammar.schema_walk import pointer

_MAX_ERRORS = 10
_FORMATS = ("date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid")  # those that jsonschema checks by itself


def validate(schema: Any, data: Any) -> list[str]:
    """Return the errors of `data` under `schema`, one line each with a JSON pointer; none if it is valid.

    Fetches nothing.
    """
    errors, problem = validation_errors(schema, data)
    return [*([problem] if problem else []), *(_described(error) for error in errors)]


def metaschema_error(schema: Any) -> str | None:
    """Return in one line why `schema` is no JSON Schema of its dialect; None if it is one."""
    error = _best_metaschema_error(_dialect(schema), schema)
    return None if error is None else _described(error)


def _best_metaschema_error(dialect: Any, schema: Any) -> Any:
    """Return the most telling error of `schema` under the dialect's metaschema, or None."""
    from jsonschema.exceptions import best_match

    try:
        return best_match(_validator(json.dumps(dialect.META_SCHEMA)).iter_errors(schema))
    except RecursionError:
        return None  # nested too deeply to check: treated as valid


def _dialect(schema: Any) -> Any:
    """Return the validator class of `$schema`; without `$schema`, of the newest dialect that accepts the schema."""
    import jsonschema
    from jsonschema.validators import validator_for

    newest = jsonschema.Draft202012Validator
    if isinstance(schema, dict) and isinstance(schema.get("$schema"), str):
        return validator_for(schema, default=newest)
    for dialect in (newest, jsonschema.Draft7Validator, jsonschema.Draft4Validator):
        if _best_metaschema_error(dialect, schema) is None:
            return dialect
    return newest


@functools.lru_cache(maxsize=64)
def _validator(source: str) -> Any:
    """Return a validator for a schema given as JSON text."""
    from jsonschema import FormatChecker
    from jsonschema.validators import validator_for

    schema = json.loads(source)
    if _is_metaschema(schema):
        return _checking(validator_for(schema))(schema, registry=_registry())
    formats = FormatChecker(_FORMATS)
    formats.checks("regex")(lambda text: not isinstance(text, str) or readable(text))
    return _checking(_dialect(schema))(schema, registry=_registry(), format_checker=formats)


def _registry() -> Any:
    """Return the registry of all references that can be followed: the dialects' own schemas. Nothing is fetched."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    return REGISTRY


@functools.cache
def _checking(dialect: Any) -> Any:
    """Return the validator class of a dialect that searches patterns as this module does."""
    from jsonschema.validators import extend

    return extend(dialect, {"pattern": _pattern})  # type: ignore[no-untyped-call]


def _is_metaschema(schema: Any) -> bool:
    name = schema.get("$id", schema.get("id", "")) if isinstance(schema, dict) else ""
    return isinstance(name, str) and "json-schema.org/" in name


def readable(pattern: str) -> bool:
    """Return whether RE2 or Python can read this pattern."""
    return compiled(pattern) is not None


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    """Check the keyword `pattern`. A pattern that nothing can read is skipped."""
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "string") and (found := compiled(pattern)) and not found.search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def validation_errors(schema: Any, data: Any) -> tuple[list[Any], str | None]:
    """Return the first errors of `data`, at most 10, as jsonschema gives them; and why the check failed, or None."""
    from jsonschema.exceptions import UnknownType
    from referencing.exceptions import Unresolvable

    found: list[Any] = []
    try:
        spelled, keys = with_literal_keys(schema, data)
        for error in _validator(json.dumps(spelled)).iter_errors(data):
            for literal, pattern in keys.items():
                error.message = error.message.replace(repr(literal), repr(pattern))
            found.append(error)
            if len(found) == _MAX_ERRORS:
                break
    except (Unresolvable, RecursionError) as exc:
        return found, f": the schema cannot be checked: {one_line(str(exc) or type(exc).__name__)}"
    except (UnknownType, re.error, TypeError, AttributeError, ValueError) as exc:
        return found, f": the schema is malformed and cannot be checked: {one_line(str(exc))}"
    except OverflowError as exc:
        return found, f": the value cannot be checked: {exc}"
    return found, None


def _described(error: Any) -> str:
    return one_line(f"{pointer(error.absolute_path)}: {error.message}")

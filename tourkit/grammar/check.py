"""Checks a JSON value against the user's own schema, and a schema against its dialect. Fetches nothing."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tourkit.errors import one_line
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
    if isinstance(schema, dict) and "$schema" in schema:
        return validator_for(schema, default=newest)
    for dialect in (newest, jsonschema.Draft7Validator, jsonschema.Draft4Validator):
        if _best_metaschema_error(dialect, schema) is None:
            return dialect
    return newest


@functools.lru_cache(maxsize=256)
def _validator(source: str) -> Any:
    """Return a validator for a schema given as JSON text.

    It fetches no reference and skips patterns that Python cannot read.
    """
    from jsonschema import FormatChecker
    from jsonschema.validators import extend, validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    schema = json.loads(source)
    dialect = validator_for(schema) if _is_metaschema(schema) else _dialect(schema)
    made: Any = extend(dialect, {"pattern": _if_readable(dialect.VALIDATORS["pattern"])})  # type: ignore[no-untyped-call]
    # A metaschema's format "regex" refuses patterns that Python cannot read, so its formats are not checked.
    formats = None if _is_metaschema(schema) else FormatChecker(_FORMATS)
    return made(schema, registry=REGISTRY, format_checker=formats)


def _is_metaschema(schema: Any) -> bool:
    name = schema.get("$id", schema.get("id", "")) if isinstance(schema, dict) else ""
    return isinstance(name, str) and "json-schema.org/" in name


def readable(pattern: str) -> bool:
    """Return whether Python can read this pattern."""
    return compiled_pattern(pattern) is not None


def _if_readable(rule: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Wrap the rule of a keyword that holds a pattern: skip it if Python cannot read the pattern."""

    def checked(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        return iter(()) if compiled_pattern(pattern) is None else rule(validator, pattern, instance, schema)

    return checked


@functools.lru_cache(maxsize=1024)
def compiled_pattern(pattern: str) -> re.Pattern[str] | None:
    """Compile a regular expression; return None if Python cannot read it."""
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None


def validation_errors(schema: Any, data: Any) -> tuple[list[Any], str | None]:
    """Return the first errors of `data`, at most 10, as jsonschema gives them; and why the check failed, or None."""
    from jsonschema.exceptions import UnknownType
    from referencing.exceptions import Unresolvable

    found: list[Any] = []
    try:
        for error in _validator(json.dumps(schema)).iter_errors(data):
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

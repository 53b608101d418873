"""A JSON value against its schema, as the user wrote it. Fetches nothing."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_MAX_ERRORS = 10
_MAX_LINE = 300  # characters
_FORMATS = ("date", "email", "idn-email", "ipv4", "ipv6", "regex", "uuid")  # those jsonschema checks by itself


def validate(schema: Any, data: Any) -> list[str]:
    """Why `data` does not meet `schema`, a line each with its JSON pointer; empty when it does. Fetches nothing."""
    errors, problem = errors_of(schema, data)
    return [*([problem] if problem else []), *(_said(error) for error in errors)]


def metaschema_error(schema: Any) -> str | None:
    """Why `schema` is not a JSON Schema of its dialect, in one line; None when it is one."""
    error = _misuse(_dialect(schema), schema)
    return None if error is None else _said(error)


def _misuse(dialect: Any, schema: Any) -> Any:
    """The error that says best why this is no schema of the dialect, or None."""
    from jsonschema.exceptions import best_match

    try:
        return best_match(_validator(json.dumps(dialect.META_SCHEMA)).iter_errors(schema))
    except RecursionError:
        return None  # too deep to look at: not known to be wrong


def _dialect(schema: Any) -> Any:
    """The validator class of `$schema`; without one, the newest dialect in which it is a schema at all."""
    import jsonschema
    from jsonschema.validators import validator_for

    newest = jsonschema.Draft202012Validator
    if isinstance(schema, dict) and "$schema" in schema:
        return validator_for(schema, default=newest)
    for dialect in (newest, jsonschema.Draft7Validator, jsonschema.Draft4Validator):
        if _misuse(dialect, schema) is None:
            return dialect
    return newest


@functools.lru_cache(maxsize=256)
def _validator(source: str) -> Any:
    """A validator for a schema as JSON text. Never fetches a reference; skips patterns Python cannot read."""
    from jsonschema import FormatChecker
    from jsonschema.validators import extend, validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    schema = json.loads(source)
    dialect = validator_for(schema) if _is_metaschema(schema) else _dialect(schema)
    rules = {key: _if_readable(rule) for key, rule in dialect.VALIDATORS.items() if key == "pattern"}
    made: Any = extend(dialect, rules)  # type: ignore[no-untyped-call]
    # A schema may hold patterns Python cannot read: those of its dialect are not held against it.
    formats = None if _is_metaschema(schema) else FormatChecker(_FORMATS)
    return made(schema, registry=REGISTRY, format_checker=formats)


def _is_metaschema(schema: Any) -> bool:
    name = schema.get("$id", schema.get("id", "")) if isinstance(schema, dict) else ""
    return isinstance(name, str) and "json-schema.org/" in name


def readable(pattern: str) -> bool:
    """Can Python read this pattern?"""
    return compiled_pattern(pattern) is not None


def _if_readable(rule: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def checked(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
        return iter(()) if compiled_pattern(pattern) is None else rule(validator, pattern, instance, schema)

    return checked


@functools.lru_cache(maxsize=1024)
def compiled_pattern(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None


def errors_of(schema: Any, data: Any) -> tuple[list[Any], str | None]:
    """The first errors, and why the check itself failed, if it did."""
    from jsonschema.exceptions import UnknownType
    from referencing.exceptions import Unresolvable

    found: list[Any] = []
    try:
        for error in _validator(json.dumps(schema)).iter_errors(data):
            found.append(error)
            if len(found) == _MAX_ERRORS:
                break
    except (Unresolvable, RecursionError) as exc:
        return found, f": the schema cannot be checked: {_line(str(exc) or type(exc).__name__)}"
    except (UnknownType, re.error, TypeError, AttributeError, ValueError) as exc:
        return found, f": the schema is not one that can be checked: {_line(str(exc))}"
    except OverflowError as exc:
        return found, f": the value cannot be checked: {exc}"
    return found, None


def _said(error: Any) -> str:
    return _line(f"{pointer(error.absolute_path)}: {error.message}")


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"


def pointer(path: Any) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)

"""Checks a JSON Schema against its dialect, and finds out which dialect it is written in. Fetches nothing."""

from __future__ import annotations

import functools
from typing import Any

from tourkit.errors import one_line
from tourkit.grammar.schema_walk import pointer

_NEWEST = "https://json-schema.org/draft/2020-12/"


def metaschema_error(schema: Any) -> str | None:
    """Return in one line why `schema` is no JSON Schema of its dialect; None if it is one."""
    error = _judged(schema)[1]
    return None if error is None else described(error)


def dialect_of(schema: Any) -> Any:
    """Return the validator class of `$schema`; without `$schema`, of the newest dialect that accepts the schema."""
    return _named(schema) or _judged(schema)[0]


def described(error: Any) -> str:
    """Return an error of jsonschema in one line, with a JSON pointer to its place."""
    return one_line(f"{pointer(error.absolute_path)}: {error.message}")


def registry() -> Any:
    """Return the registry of all references that can be followed: the dialects' own schemas. Nothing is fetched."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    return REGISTRY


def _named(schema: Any) -> Any:
    """Return the validator class of `$schema`, the newest one if it is unknown; None if there is no `$schema`."""
    import jsonschema
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict) or not isinstance(schema.get("$schema"), str):
        return None
    return validator_for(schema, default=jsonschema.Draft202012Validator)


def _judged(schema: Any) -> tuple[Any, Any]:
    """Return the validator class of a schema and its most telling error under the metaschema, or None."""
    import jsonschema

    if named := _named(schema):
        return named, _best_error(named, schema)
    newest = jsonschema.Draft202012Validator
    error = _best_error(newest, schema)
    if error is not None:
        for older in (jsonschema.Draft7Validator, jsonschema.Draft4Validator):
            if _best_error(older, schema) is None:
                return older, None
    return newest, error


def _best_error(dialect: Any, schema: Any) -> Any:
    """Return the most telling error of `schema` under the dialect's metaschema, or None."""
    from jsonschema.exceptions import best_match

    try:
        return best_match(_metaschema(dialect).iter_errors(schema))
    except RecursionError:
        return None  # nested too deeply to check: treated as valid


@functools.cache
def _metaschema(dialect: Any) -> Any:
    """Return a validator for schemas of a dialect.

    The newer metaschemas are spread over files that refer to one another through `$dynamicRef`. Their rules are joined
    here: so a check takes a tenth of the time. Formats are not checked: "regex" refuses patterns of other languages.
    """
    rules = dialect.META_SCHEMA
    if "$dynamicAnchor" in rules:
        files = [
            registry().contents(f"https://json-schema.org/draft/2020-12/{part['$ref']}") for part in rules["allOf"]
        ]
        joined = {key: value for key, value in rules.items() if key not in ("allOf", "$dynamicAnchor", "$vocabulary")}
        for key in ("properties", "$defs"):
            joined[key] = {name: rule for part in (*files, rules) for name, rule in part.get(key, {}).items()}
        rules = _static(joined)
    return dialect(rules, registry=registry())


def _static(rules: Any) -> Any:
    """Return rules of a metaschema in which references to the dialect in use name the root."""
    if isinstance(rules, list):
        return [_static(rule) for rule in rules]
    if not isinstance(rules, dict):
        return rules
    if rules.get("$dynamicRef") == "#meta":
        return {"$ref": "#"} | {key: _static(rule) for key, rule in rules.items() if key != "$dynamicRef"}
    return {key: _static(rule) for key, rule in rules.items()}

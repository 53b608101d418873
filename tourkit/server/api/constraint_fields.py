"""The fields that constrain the text: response_format, our extras, and the names that other servers have."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tourkit.errors import RequestError
from tourkit.generation import Constraint
from tourkit.server.api import limits
from tourkit.server.api.json_text import load

# Of each field, the kind of its constraint. vLLM has the names that begin with guided_, llama.cpp has json_schema.
_FIELDS = {
    "regex": "regex",
    "grammar": "grammar",
    "choice": "choice",
    "json_schema": "json",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
# Of vLLM's structured_outputs: the kinds, and the fields that choose one of vLLM's libraries.
STRUCTURED = {"json": "json", "regex": "regex", "choice": "choice", "grammar": "grammar", "json_object": "json_object"}
WITHOUT_EFFECT = ("disable_fallback", "backend", "_backend", "_backend_was_auto")


def constraint_of(body: dict[str, Any]) -> Constraint | None:
    """Return the constraint on the text of an answer; None if there is none. Raises RequestError."""
    found = [("response_format", _response_format(body.get("response_format")))]
    found += [(key, _read(kind, body.get(key), key)) for key, kind in _FIELDS.items()]
    found.append(("structured_outputs", _structured_outputs(body.get("structured_outputs"))))
    given = [(name, constraint) for name, constraint in found if constraint is not None]
    if len(given) > 1:
        names = " and ".join(name for name, _ in given)
        raise RequestError(
            f"give only one of response_format, regex, grammar and choice: this request has {names}",
            param="response_format",
        )
    return given[0][1] if given else None


def _read(kind: str, value: Any, where: str) -> Constraint | None:
    """Return the constraint of one field; None if its value is null. `where`: the field."""
    readers: dict[str, Callable[[Any, str], Constraint | None]] = {
        "json": _json,
        "json_object": _json_object,
        "choice": _choice,
        "regex": lambda value, where: Constraint("regex", _text(value, where)),
        "grammar": lambda value, where: Constraint("grammar", _text(value, where)),
    }
    return None if value is None else readers[kind](value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where} must be a non-empty string", param=where)
    return value


def _choice(value: Any, where: str) -> Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise RequestError(f"{where} must be a list of non-empty strings", param=where)
    limits.CHOICES.check(len(value), where)
    return Constraint("choice", json.dumps(value, ensure_ascii=False))


def _json_object(value: Any, where: str) -> Constraint | None:
    if not isinstance(value, bool):
        raise RequestError(f"{where} must be true or false", param=where)
    return Constraint.json_object() if value else None


def _json(value: Any, where: str) -> Constraint:
    """Return the constraint of a schema. It may be text, as vLLM takes it."""
    if isinstance(value, str):
        try:
            value = load(value.encode())
        except RequestError as exc:
            raise RequestError(f"{where}: {exc}", param=where, code=exc.code) from exc
    return _schema(value, where, where)


def _schema(schema: Any, where: str, param: str) -> Constraint:
    if not isinstance(schema, dict):
        raise RequestError(f"{where} must be a JSON Schema object", param=param)
    for key in ("$schema", "$id"):
        if not isinstance(schema.get(key, ""), str):
            raise RequestError(f"{where}: {key} must be a string", param=param, code="unsupported_schema")
    return Constraint.json_schema(schema)


def _structured_outputs(value: Any) -> Constraint | None:
    """Return the constraint of vLLM's field."""
    name = "structured_outputs"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be an object", param=name)
    given = {key: each for key, each in value.items() if each is not None and each is not False}
    for key in given:
        if key not in STRUCTURED and key not in WITHOUT_EFFECT:
            raise RequestError(
                f"{name} takes {', '.join(STRUCTURED)}", param=f"{name}.{key}", code="unsupported_parameter"
            )
    kinds = {key: kind for key, kind in STRUCTURED.items() if key in given}
    found = [_read(kind, given[key], f"{name}.{key}") for key, kind in kinds.items()]
    if len(found) != 1:
        raise RequestError(f"{name} must have exactly one of {', '.join(STRUCTURED)}", param=name)
    return found[0]


def _response_format(value: Any) -> Constraint | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp and other servers take a schema here
        where = "response_format.schema"
        return Constraint.json_object() if schema is None else _schema(schema, where, where)
    if kind != "json_schema":
        raise RequestError(
            "response_format.type must be text, json_object or json_schema", param="response_format.type"
        )
    holder = value.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, dict) else None
    return _schema(schema, "response_format.json_schema.schema", "response_format.json_schema")

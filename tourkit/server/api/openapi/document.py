"""The whole OpenAPI document of one server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tourkit import __version__
from tourkit.server.api import limits
from tourkit.server.api.dialects import dialect_of
from tourkit.server.api.openapi import answers, messages, ollama, reports, request_parts, responses
from tourkit.server.api.openapi.bodies import BODIES, body_schema
from tourkit.server.api.openapi.operations import OPERATIONS, Operation
from tourkit.server.api.openapi.parts import COUNT, TEXT, Schema, ref, text, values, whole_record

_ABOUT = (
    "OpenAI's API and others for local models. A path also works without /v1 and with a slash at the end. `HEAD` works "
    "where `GET` does, and `OPTIONS` gives the methods of a path. A body may be compressed with gzip or deflate. "
    "Whole bodies have limits: {bytes:,} bytes, {levels} levels of lists and objects."
)
_IN_PATH = re.compile(r"{(\w+)}")
_PLAIN = "text/plain"
_JSON = "application/json"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
_OF_EVERY_ANSWER = {
    "x-request-id": (TEXT, "The id of the request: the client's, or a new one."),
    "openai-processing-ms": (COUNT, "Milliseconds until the answer began."),
}
_OF_MODELS = {
    "x-tourkit-model": (TEXT, "The model, the quant and the stack that answered."),
    "x-tourkit-constraint": (TEXT, "How far a schema was enforced."),
    "x-tourkit-emulated": (TEXT, "The fields that tourkit served itself, because the stack does not support them."),
    "x-tourkit-ignored": (TEXT, "The fields that do nothing for this model."),
}
_RETRY = {"retry-after": (COUNT, "Seconds.")}
_ALWAYS = {*_OF_EVERY_ANSWER, "x-tourkit-model", "retry-after"}
_RETRIED = (429, 503)


def document(names: Mapping[str, tuple[str, ...]], *, needs_key: bool) -> dict[str, Any]:
    """Return the document. `names`: the roles and model ids for each kind of models: text, embed, rerank; "" for all.

    A route that none of them answers is left out. `needs_key`: whether requests need a key.
    """
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        if operation.answers and names and not names.get(operation.answers):
            continue
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, names, needs_key=needs_key)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "tourkit",
            "version": __version__,
            "description": _ABOUT.format(bytes=limits.BODY.most, levels=limits.DEPTH.most),
        },
        "paths": paths,
        "components": {"schemas": schemas()},
    }
    if needs_key:
        found["components"]["securitySchemes"] = _SCHEMES
        found["security"] = [{scheme: []} for scheme in _SCHEMES]
    return found


def schemas() -> dict[str, Schema]:
    """Return the schemas that other schemas refer to, by their names."""
    modules = (request_parts, answers, reports, responses, messages, ollama)
    return {name: schema for module in modules for name, schema in module.SCHEMAS.items()}


def _operation(
    path: str, operation: Operation, names: Mapping[str, tuple[str, ...]], *, needs_key: bool
) -> dict[str, Any]:
    served = names.get(operation.answers, ())
    if tag := dialect_of(path).tag:
        served = tuple(name for each in served for name in (each, each + tag))
    model = _name(served)
    found: dict[str, Any] = {"operationId": operation.id, "summary": operation.about}
    in_path = [_parameter(name, "path", model if name == "name" else TEXT) for name in _IN_PATH.findall(path)]
    if parameters := in_path + [_parameter(name, "query", schema) for name, schema in operation.query.items()]:
        found["parameters"] = parameters
    if operation.has_body:
        schema = body_schema(path, model) if path in BODIES else whole_record({"model": model})
        found["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    found["responses"] = _responses(path, operation, needs_key=needs_key)
    return found | ({"security": []} if operation.is_open and needs_key else {})


def _parameter(name: str, place: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _name(served: tuple[str, ...]) -> Schema:
    """Return the schema of a name that is served."""
    about = "A role or a model id."
    return values(served, about=about) if served else text(1, limits.MODEL.most, about=about)


def _responses(path: str, operation: Operation, *, needs_key: bool) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": ref(operation.reply)}} if operation.reply else {}
    content |= {} if operation.reply else {_PLAIN: {"schema": TEXT}}
    if operation.chunk:
        # OpenAPI 3.1 does not say whether `schema` is of a whole stream or of each event, and its readers disagree.
        content[dialect_of(path).stream_type] = {"x-event-schema": ref(operation.chunk)}
    headers = _OF_EVERY_ANSWER | (_OF_MODELS if operation.is_forwarded else {})
    found = {"200": {"description": "The answer.", "headers": _headers(headers), "content": content}}
    if operation.or_503:
        found["503"] = {**found["200"], "description": "The answer, if not every worker answers."}
    for status, about in operation.errors.items():
        if status != 401 or (needs_key and not operation.is_open):
            found[str(status)] = _error(status, about, operation)
    return found


def _error(status: int, about: str, operation: Operation) -> dict[str, Any]:
    headers = _headers(_RETRY if status in _RETRIED else {})
    if operation.is_forwarded:  # the gateway refuses too, and then no model is named
        headers |= _headers({"x-tourkit-model": _OF_MODELS["x-tourkit-model"]}, required=False)
    return {"description": about, "headers": headers, "content": {_JSON: {"schema": ref(operation.error)}}}


def _headers(found: Mapping[str, tuple[Schema, str]], *, required: bool = True) -> dict[str, Any]:
    return {
        name: {"description": about, "schema": schema, "required": required and name in _ALWAYS}
        for name, (schema, about) in found.items()
    }

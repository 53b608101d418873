"""The OpenAPI document: it has every route and field, and says what is accepted and what is answered."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from asgi import Answer, ask
from full_worker import Full, answers
from jsonschema import Draft202012Validator
from schema_bodies import Bodies
from serving import Serving
from thinking_runner import Script, ThinkingRunner
from unsaid import is_unsaid

from tourkit.backends.base import Embeddings
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.errors import RequestError
from tourkit.server.api.dialects import dialect_of
from tourkit.server.api.openapi.bodies import BODIES, TABLES, body_schema
from tourkit.server.api.openapi.document import document, schemas
from tourkit.server.api.openapi.operations import OPERATIONS
from tourkit.server.api.openapi.request_parts import FILLED
from tourkit.server.api.replies import error_body
from tourkit.server.api.route_fields import ROUTES, Use
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.gateway.access import AccessRules
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.openapi import document_of
from tourkit.server.gateway.paths import FORWARDED
from tourkit.server.worker.app import ModelServer

# `make test-documents` tries many more bodies.
COUNT = 1_500 if os.environ.get("TOURKIT_EVERY_DOCUMENT") else 50


def schema_of(path: str) -> dict[str, Any]:
    return body_schema(path, FILLED | {"maxLength": 200})


PATHS = pytest.mark.parametrize("path", TABLES)
DISTINCT = pytest.mark.parametrize("path", {id(table): path for path, table in ROUTES.items()}.values())


# --- requests ---------------------------------------------------------------------------------------------------------


def test_every_route_with_a_table_of_fields_has_a_body_and_no_other_has() -> None:
    assert BODIES.keys() == TABLES.keys() == {path for _, path in OPERATIONS} & TABLES.keys()


@PATHS
def test_the_document_has_each_field_that_is_read_and_no_other_schema(path: str) -> None:
    read = {field.name for field in TABLES[path] if field.use is Use.READ}

    assert {*BODIES[path].named, *BODIES[path].read} == read
    assert schema_of(path)["properties"].keys() == {field.name for field in TABLES[path]}


@DISTINCT
def test_a_body_that_the_document_allows_is_accepted(path: str) -> None:
    bodies = list(itertools.islice(Bodies(schemas(), 1).valid(schema_of(path)), COUNT))

    for body, answer in zip(bodies, answers((path, body) for body in bodies), strict=True):
        assert is_accepted(answer) or is_unsaid_in(answer), (answer.raw, json.dumps(body)[:2_000])


@DISTINCT
def test_a_body_is_refused_if_the_document_does_not_allow_it_and_accepted_if_it_does(path: str) -> None:
    made = Bodies(schemas(), 2)
    bodies = list(itertools.islice(made.changed(schema_of(path)), COUNT))
    allows = made.validator(schema_of(path)).is_valid

    for body, answer in zip(bodies, answers((path, body) for body in bodies), strict=True):
        said = (answer.raw, json.dumps(body)[:2_000])
        if allows(body):
            assert is_accepted(answer) or is_unsaid_in(answer), said
        else:
            assert not is_accepted(answer), said


def is_accepted(answer: Answer) -> bool:
    """Return whether a request got beyond its parser. 404: it refers to what is not stored."""
    assert answer.status in (200, 400, 404, 429), answer.raw
    return answer.status in (200, 429)  # 200: it only loads the model


def is_unsaid_in(answer: Answer) -> bool:
    error = answer.body["error"]  # of a worker, so in OpenAI's form for every API
    return is_unsaid(error["message"], error["code"])


# --- the document -----------------------------------------------------------------------------------------------------


def gateway(path: str, *, method: str = "GET", **how: Any) -> Answer:
    """Ask a gateway without models."""
    return asyncio.run(ask(Gateway((), GatewayOptions(**how)).app(), path, method=method))


def published() -> dict[str, Any]:
    """Return the document with every route."""
    return document({}, needs_key=False)


def test_the_document_has_every_route_of_the_gateway_and_no_other() -> None:
    routes = re.findall(r"^  (GET|POST|DELETE) (/\S*)$", gateway("/").raw.decode(), flags=re.MULTILINE)
    shown = {(method, re.sub(r":\w+\}", "}", path)) for method, path in routes}

    assert OPERATIONS.keys() == shown
    assert {path for path in ROUTES if path not in FORWARDED} == set()


def test_the_document_is_openapi_with_schemas_of_the_dialect_of_2020() -> None:
    made = published()
    for schema in schemas_in(made):
        Draft202012Validator.check_schema(schema)

    assert made["openapi"] == "3.1.0"
    assert referred(made) == made["components"]["schemas"].keys()


def schemas_in(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from found["components"]["schemas"].values()
    for path in found["paths"].values():
        for operation in path.values():
            holders = [operation.get("requestBody", {}), *operation["responses"].values()]
            contents = (content for holder in holders for content in holder.get("content", {}).values())
            yield from (content["x-event-schema" if "x-event-schema" in content else "schema"] for content in contents)


def referred(value: Any) -> set[str]:
    """Return the names of the schemas that a part of the document refers to."""
    if isinstance(value, list):
        return set[str]().union(*map(referred, value))
    if not isinstance(value, dict):
        return set()
    named = value.get("$ref")
    return ({named.rpartition("/")[2]} if isinstance(named, str) else set()).union(*map(referred, value.values()))


def test_the_document_asks_for_a_key_if_the_server_does() -> None:
    keyed = document_of({}, needs_key=True)
    [bearer, *others] = keyed["security"]

    assert "security" not in document_of({}, needs_key=False)
    assert (list(bearer), [list(each) for each in others]) == (["bearer"], [["x-api-key"], ["api-key"]])
    assert "401" in keyed["paths"]["/v1/models"]["get"]["responses"]
    assert keyed["paths"]["/health"]["get"]["security"] == keyed["paths"]["/"]["get"]["security"] == []
    assert gateway("/openapi.json", access=AccessRules(keys=("k",))).status == 401


def test_the_document_names_the_models_and_leaves_out_what_none_of_them_answers() -> None:
    made = document({"": ("tool", "m"), "text": ("tool", "m"), "embed": ()}, needs_key=False)

    assert "/v1/embeddings" not in made["paths"]
    body = made["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"]["enum"] == ["tool", "m"]


@pytest.mark.parametrize("path", FORWARDED)
def test_errors_have_the_form_that_the_document_says(path: str) -> None:
    _, body = error_body(RequestError("wrong", param="n"))
    error = dialect_of(path).error(400, body)

    Replies(published()).check("POST", path, 400, error)


# --- replies ----------------------------------------------------------------------------------------------------------


class Replies:
    """The schemas of the replies of a document."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._paths = found["paths"]
        self._schemas = Bodies(found["components"]["schemas"], 0)

    def content(self, method: str, path: str, status: int, kind: str) -> dict[str, Any]:
        return dict(self._paths[path][method.lower()]["responses"][str(status)]["content"][kind])

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """Raise ValidationError if a JSON answer is not what the document says."""
        self._schemas.validator(self.content(method, path, status, "application/json")["schema"]).validate(body)

    def check_events(self, path: str, events: list[Any]) -> None:
        assert events
        for event in events:
            schema = self.content("POST", path, 200, dialect_of(path).stream_type)["x-event-schema"]
            self._schemas.validator(schema).validate(event)

    def headers(self, method: str, path: str, status: int) -> dict[str, Any]:
        return dict(self._paths[path][method.lower()]["responses"][str(status)].get("headers", {}))


CHAT = {"model": "tool", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "temperature": 0}
PLAIN = {"model": "tool", "prompt": "Once", "max_tokens": 3}
USAGE = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
FUNCTION = {
    "name": "look_up",
    "parameters": {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
CALLED = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required", "max_tokens": 60}
OLD_CALLED = {"functions": [FUNCTION], "function_call": {"name": "look_up"}, "max_tokens": 60}
RESPOND = {"model": "tool", "input": "x", "max_output_tokens": 8}
FLAT = {"tools": [{"type": "function", **FUNCTION}]}
ANTHROPIC = {
    "tools": [{"name": "look_up", "input_schema": FUNCTION["parameters"]}],
    "tool_choice": {"type": "any"},
    "max_tokens": 60,
}
SHORT = {"num_predict": 8}
OLLAMA = {"model": "tool", "messages": CHAT["messages"], "options": SHORT}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}}}
# Requests that are answered, and those that are refused.
ASKED: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/chat/completions", CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2}, 200),
    ("/v1/chat/completions", CHAT | USAGE | {"logprobs": True}, 200),
    ("/v1/chat/completions", CHAT | CALLED, 200),
    ("/v1/chat/completions", CHAT | CALLED | USAGE, 200),
    ("/v1/chat/completions", CHAT | OLD_CALLED, 200),
    ("/v1/chat/completions", CHAT | OLD_CALLED | USAGE, 200),
    ("/v1/chat/completions", CHAT | FORMAT, 200),
    ("/v1/chat/completions", CHAT | {"n": 0}, 400),
    ("/v1/chat/completions", CHAT | {"model": "nobody"}, 404),
    ("/v1/responses", RESPOND | {"metadata": {"a": "b"}, "top_logprobs": 1}, 200),
    ("/v1/responses", RESPOND | {"stream": True}, 200),
    ("/v1/responses", RESPOND | {"stream": True, "max_output_tokens": 60, "tool_choice": "required", **FLAT}, 200),
    ("/v1/responses", RESPOND | {"max_output_tokens": 60, "tool_choice": "required", **FLAT}, 200),
    ("/v1/responses", RESPOND | {"text": {"format": {"type": "json_schema", "schema": {"enum": ["a", "b"]}}}}, 200),
    ("/v1/responses", RESPOND | {"previous_response_id": "resp_0"}, 404),
    ("/v1/messages", CHAT, 200),
    ("/v1/messages", CHAT | {"stream": True}, 200),
    ("/v1/messages", CHAT | ANTHROPIC, 200),
    ("/v1/messages", CHAT | ANTHROPIC | {"stream": True}, 200),
    ("/v1/messages", CHAT | {"max_tokens": 0}, 400),
    ("/v1/messages/count_tokens", CHAT, 200),
    ("/api/chat", OLLAMA | {"stream": False, "logprobs": True}, 200),
    ("/api/chat", OLLAMA | {"stream": True, "logprobs": True}, 200),
    ("/api/chat", {"model": "tool:latest", "stream": False}, 200),
    ("/api/chat", OLLAMA | {"think": "much"}, 400),
    ("/api/generate", {"model": "tool", "prompt": "x", "options": SHORT, "stream": False}, 200),
    ("/api/generate", {"model": "tool", "prompt": "x", "options": SHORT, "stream": True}, 200),
    ("/api/show", {"model": "tool"}, 200),
    ("/v1/completions", PLAIN | {"echo": True, "logprobs": 2, "prompt": ["Once", [1, 2]]}, 200),
    ("/v1/completions", PLAIN | USAGE | {"logprobs": 1}, 200),
    ("/v1/completions", PLAIN | {"stream": True} | FORMAT, 200),
    ("/v1/completions", PLAIN | FORMAT, 200),
    ("/v1/rerank", {"model": "tool", "query": "x", "documents": ["a", {"text": "b", "id": 5}]}, 200),
    ("/v1/rerank", {"model": "tool", "query": "x", "documents": ["a"], "return_documents": False}, 200),
    ("/apply-template", CHAT, 200),
    ("/tokenize", {"model": "tool", "prompt": "a text"}, 200),
    ("/detokenize", {"model": "tool", "tokens": [1, 2]}, 200),
    ("/v1/models/load", {"model": "tool"}, 200),
    ("/v1/models/pin", {"model": "tool"}, 200),
    ("/v1/models/unpin", {"model": "tool"}, 200),
    ("/v1/models/load", {"model": "tool", "x": None}, 400),
]


def sent(served: Serving, method: str, path: str, body: Any = None) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection(urlsplit(served.url).netloc)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer, answer.read()


@pytest.fixture(scope="module")
def replies(served: Serving) -> Replies:
    return Replies(json.loads(sent(served, "GET", "/openapi.json")[1]))


@pytest.mark.parametrize(("path", "body", "status"), ASKED)
def test_a_reply_is_what_the_document_says(
    served: Serving, replies: Replies, path: str, body: dict[str, Any], status: int
) -> None:
    answer, raw = sent(served, "POST", path, body)

    assert answer.status == status, raw
    if body.get("stream"):
        lines = [line.removeprefix("data: ") for line in raw.decode().splitlines()]
        replies.check_events(path, [json.loads(line) for line in lines if line.startswith("{")])
    else:
        replies.check("POST", path, status, json.loads(raw))
    declared, found = replies.headers("POST", path, status), {name.lower() for name in answer.headers}
    assert {name for name, header in declared.items() if header["required"]} <= found
    assert {name for name in found if name.startswith("x-tourkit")} <= declared.keys()


REPORTS = ["/v1/models", "/health", "/version", "/openapi.json", "/api/tags", "/api/ps", "/api/version"]


def test_what_is_said_of_a_stored_response_is_what_the_document_says(served: Serving, replies: Replies) -> None:
    path = f"/v1/responses/{json.loads(sent(served, 'POST', '/v1/responses', RESPOND)[1])['id']}"

    for method, ending in (("GET", ""), ("GET", "/input_items"), ("DELETE", "")):
        answer, raw = sent(served, method, path + ending)
        assert answer.status == 200
        replies.check(method, f"/v1/responses/{{id}}{ending}", 200, json.loads(raw))


@pytest.mark.parametrize("path", [*REPORTS, "/v1/models/tool"])
def test_a_report_is_what_the_document_says(served: Serving, replies: Replies, path: str) -> None:
    answer, raw = sent(served, "GET", path)

    assert answer.status == 200
    replies.check("GET", path.replace("/tool", "/{name}"), 200, json.loads(raw))


@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_a_page_is_plain_text_as_the_document_says(served: Serving, replies: Replies, path: str) -> None:
    answer, _ = sent(served, "GET", path)

    assert answer.headers.get_content_type() == "text/plain"
    assert replies.content("GET", path, 200, "text/plain") == {"schema": {"type": "string"}}


def test_health_without_the_key_and_of_a_server_that_is_not_ready_is_what_the_document_says() -> None:
    answer = gateway("/health", access=AccessRules(keys=("k",)))

    Replies(published()).check("GET", "/health", 200, answer.body)
    Replies(published()).check("GET", "/health", 503, answer.body)


def worker_answer(engine: Any, path: str, body: dict[str, Any]) -> Answer:
    return asyncio.run(ask(ModelServer(engine, "s").app(), path, body, headers={SECRET_HEADER: "s"}))


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_with_thinking_is_what_the_document_says(stream: bool) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed here")
    model = RunnerEngine(ThinkingRunner("think", Script("<think>\nhm\n</think>\n\nyes", "yes", "</think>")), "stand-in")
    try:
        answer = worker_answer(model, "/v1/chat/completions", CHAT | {"stream": stream, "max_tokens": 60})
    finally:
        model.close()

    assert b"reasoning_content" in answer.raw
    if stream:
        Replies(published()).check_events("/v1/chat/completions", answer.events)
    else:
        Replies(published()).check("POST", "/v1/chat/completions", 200, answer.body)


class Vectors(Full):
    """An engine that makes the same vector of every text."""

    def embed(self, texts: Any) -> Future[Embeddings]:
        done: Future[Embeddings] = Future()
        done.set_result(Embeddings(np.ones((len(texts), self.size), dtype=np.float32), 5))
        return done


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_what_the_document_says(form: str) -> None:
    answer = worker_answer(Vectors(), "/v1/embeddings", {"model": "e", "input": ["a", "b"], "encoding_format": form})

    Replies(published()).check("POST", "/v1/embeddings", 200, answer.body)

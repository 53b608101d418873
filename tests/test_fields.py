"""Which fields of a request are read, accepted without effect, or refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from asgi import Answer, ask
from thinking_runner import TURN, Script, ThinkingRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.errors import RequestError
from tourkit.generation import Constraint, Request
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.api.requests import parse_chat, parse_embeddings
from tourkit.server.api.rerank_fields import parse_rerank
from tourkit.server.api.route_fields import ROUTES, Use
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

CHAT: dict[str, Any] = {"model": "tool", "messages": [{"role": "user", "content": "x"}]}
PLAIN: dict[str, Any] = {"model": "tool", "prompt": "x"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields: Any) -> Request:
    return parse_chat(CHAT | fields).request


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "metadata": {"a": "b"}, "user": "me", "service_tier": "flex", "safety_identifier": "id"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"}},
        {"modalities": ["text"], "audio": None, "verbosity": "low", "logprobs": False},
        {"repetition_penalty": 1.0, "repeat_penalty": 1, "min_tokens": 0, "ignore_eos": False, "length_penalty": 1.0},
        {"cache_prompt": True, "keep_alive": "5m", "id_slot": -1, "priority": 3, "request_id": "r", "cache_salt": "s"},
        {"max_tokens": -1, "max_completion_tokens": None},
        {"stream_options": None, "tools": None, "tool_choice": None, "functions": None, "something_new": None},
        {"skip_special_tokens": True, "add_generation_prompt": True, "stop_token_ids": [], "use_beam_search": False},
        {"mirostat": 0, "mirostat_tau": 5.0, "typical_p": 1.0, "xtc_probability": 0.0, "dry_multiplier": 0.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_and_values_that_change_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert chat(**fields) == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("repetition_penalty", 1.1),
        ("repeat_penalty", True),
        ("min_tokens", 5),
        ("ignore_eos", True),
        ("ignore_eos", 0),
        ("mirostat", 2),
        ("n_probs", 3),
        ("continue_final_message", True),
        ("web_search_options", {}),
        ("something_new", 0),
        ("something_new", False),
    ],
)
def test_a_value_that_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(**{field: value})

    assert (error.param, error.code) == (field, "unsupported_parameter")


def test_a_wrong_value_of_a_field_that_only_other_models_know_is_refused() -> None:
    assert refused(verbosity="loud").param == "verbosity"
    assert refused(verbosity=["low"]).param == "verbosity"


def test_minus_one_is_no_limit() -> None:
    params = chat(max_tokens=-1, top_k=-1).params

    assert (params.max_tokens, params.top_k) == (None, 0)
    assert refused(max_tokens=-2).param == "max_tokens"
    assert refused(top_k=-2).param == "top_k"


@pytest.mark.parametrize("table", [table for route, table in ROUTES.items()], ids=list(ROUTES))
def test_a_table_has_each_field_once(table: Any) -> None:
    names = [field.name for field in table]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_chat, CHAT),
        (parse_completion, PLAIN),
        (parse_embeddings, {"model": "embed", "input": "x"}),
        (parse_rerank, {"model": "rerank", "query": "x", "documents": ["x"]}),
    ],
)
def test_every_neutral_value_of_a_table_is_accepted(parse: Any, body: dict[str, Any]) -> None:
    path = next(route for route in ROUTES if ROUTES[route] is table_of(parse))
    for field in ROUTES[path]:
        for value in field.values if field.use is not Use.READ else ():
            parse(body | {field.name: value})
        if field.use is Use.NO_EFFECT:
            parse(body | {field.name: {"any": ["value"]}})


def table_of(parse: Any) -> Any:
    route = {
        parse_chat: "/v1/chat/completions",
        parse_completion: "/v1/completions",
        parse_embeddings: "/v1/embeddings",
        parse_rerank: "/v1/rerank",
    }
    return ROUTES[route[parse]]


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"include_usage": False}, {"include_obfuscation": True}, {"something_new": 1}, {"include_usage": None}],
)
def test_stream_options_that_change_nothing_are_accepted(options: dict[str, Any]) -> None:
    assert not parse_chat(CHAT | {"stream": True, "stream_options": options}).options.usage


def test_stream_options_without_a_stream_do_nothing() -> None:
    assert chat(stream_options={"include_usage": True}) == chat()


def test_continuous_usage_needs_usage() -> None:
    asked = parse_chat(CHAT | {"stream": True, "stream_options": {"continuous_usage_stats": True}})

    assert not asked.options.always


@pytest.mark.parametrize("options", [5, [], "x", {"include_usage": 1}, {"continuous_usage_stats": "yes"}])
def test_wrong_stream_options_are_refused(options: Any) -> None:
    assert refused(stream=True, stream_options=options).param == "stream_options"


# --- constraints under the names of other servers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"guided_json": SCHEMA}, Constraint.json_schema(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, Constraint.json_schema(SCHEMA)),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["yes", "no"]}, Constraint("choice", '["yes", "no"]')),
        ({"guided_grammar": 'start: "a"'}, Constraint("grammar", 'start: "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint.json_schema(SCHEMA)),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["yes"], "backend": "xgrammar"}}, Constraint("choice", '["yes"]')),
        ({"structured_outputs": {"json_object": True}}, Constraint.json_object()),
        ({"json_schema": SCHEMA}, Constraint.json_schema(SCHEMA)),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Constraint.json_schema(SCHEMA)),
        ({"guided_decoding_backend": "outlines"}, None),
    ],
)
def test_constraints_have_the_names_of_other_servers_too(fields: dict[str, Any], constraint: Constraint | None) -> None:
    assert chat(**fields).constraint == constraint
    assert parse_completion(PLAIN | fields).requests[0].constraint == constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 3_000 + "]" * 3_000}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "response_format"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": 0}}, "structured_outputs.regex"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format.schema"),
    ],
)
def test_a_constraint_that_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


# --- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "data:,"}}, "an image"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "file", "file": {}}, "a file"),
    ],
)
def test_an_image_is_refused_because_the_model_is_text_only(part: dict[str, Any], what: str) -> None:
    error = refused(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}])

    assert error.param == "messages[0].content[1]"
    assert f"is {what}: this model is text-only" in str(error)


# --- replies ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[ModelServer]:
    pytest.importorskip("llguidance", reason="llguidance is not installed here")
    model = RunnerEngine(ThinkingRunner("none", Script("yes", "yes", TURN)), "stand-in")
    try:
        yield ModelServer(model, "s", fingerprint="fp_1")
    finally:
        model.close()


def send(worker: ModelServer, **fields: Any) -> Answer:
    body = CHAT | {"temperature": 0} | fields
    return asyncio.run(ask(worker.app(), "/v1/chat/completions", body, headers={SECRET_HEADER: "s"}))


@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_only_other_models_know_is_named_in_the_reply(worker: ModelServer, stream: bool) -> None:
    answer = send(worker, verbosity="low", reasoning_effort="low", stream=stream)

    assert answer.status == 200
    assert answer.headers["x-tourkit-ignored"] == "reasoning_effort, verbosity"


def test_a_stream_has_the_fingerprint_usage_null_and_a_header_for_proxies(worker: ModelServer) -> None:
    answer = send(worker, stream=True, stream_options={"include_usage": True})
    *chunks, last = answer.events

    assert answer.headers["x-accel-buffering"] == "no"
    assert {event["system_fingerprint"] for event in answer.events} == {"fp_1"}
    assert {event["usage"] for event in chunks} == {None}
    assert last["usage"]["completion_tokens"] == 3


def test_a_stream_without_include_usage_never_says_usage(worker: ModelServer) -> None:
    assert not any("usage" in event for event in send(worker, stream=True).events)


def test_too_long_a_prompt_is_refused_in_the_words_that_clients_look_for(worker: ModelServer) -> None:
    answer = send(worker, messages=[{"role": "user", "content": "x" * 5_000}])

    assert (answer.status, answer.body["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.body["error"]["message"].startswith("This model's maximum context length is 4096 tokens. However, ")
    assert answer.body["error"]["param"] == "messages"

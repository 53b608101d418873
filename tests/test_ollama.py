"""Ollama's API: chat, generate and embeddings in a worker, the lists of models in the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy
import pytest
from asgi import Answer, ask
from idle_engine import IdleEngine
from thinking_runner import Script, ThinkingRunner
from tool_runner import FAMILIES, ORDER, ToolRunner, stand_ins, worker_answer

from tourkit import __version__
from tourkit.backends.base import Embeddings
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.defaults import RoleDefaults
from tourkit.errors import RequestError
from tourkit.generation import EngineInfo
from tourkit.launch import Launch
from tourkit.planning.plan import Memory, Placement
from tourkit.server.api.dialects import OLLAMA_CHAT, OPENAI
from tourkit.server.api.ollama_fields import (
    Loading,
    parse_ollama_chat,
    parse_ollama_embed,
    parse_ollama_embeddings,
    parse_ollama_generate,
)
from tourkit.server.api.requests import Generate
from tourkit.server.api.route_fields import OLLAMA_OPTIONS, ROUTES, Use
from tourkit.server.gateway import bodies
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.comments import Commented
from tourkit.server.gateway.supervisor import State, Worker

CHAT: dict[str, Any] = {"model": "tool:latest", "messages": [{"role": "user", "content": "x"}]}
GENERATE: dict[str, Any] = {"model": "tool", "prompt": "x"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Of a city.", "parameters": SCHEMA}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture(scope="module")
def engines() -> Iterator[Callable[[str], RunnerEngine]]:
    """Return a stand-in for a model: that of a family, or one that writes its thinking and "Yes."."""
    script = Script("<think>\nHm.\n</think>\n\nYes.", "Yes.", "</think>")
    yield from stand_ins(lambda name: ThinkingRunner("think", script) if name == "thinks" else ToolRunner(name))


Engines = Callable[[str], RunnerEngine]


def order(text: str, **fields: Any) -> dict[str, Any]:
    """Return a body that lets a stand-in of a family write a text. It is one for /api/chat and for /api/generate."""
    options = {"temperature": 0, "num_predict": 400} | fields.pop("options", {})
    said = {"messages": [{"role": "user", "content": ORDER + text}]}
    return {"model": "tool:latest", "options": options} | said | fields


def lines(answer: Answer) -> list[dict[str, Any]]:
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson"), answer.raw
    return [json.loads(line) for line in answer.raw.splitlines()]


def whole(engine: RunnerEngine, body: dict[str, Any]) -> dict[str, Any]:
    answer = worker_answer(engine, "/api/chat", body | {"stream": False})
    assert answer.status == 200, answer.raw
    found: dict[str, Any] = answer.body
    return found


def streamed(engine: RunnerEngine, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer that the lines of a stream make, as Ollama's clients put it together."""
    *parts, last = lines(worker_answer(engine, "/api/chat", body))
    assert [part["done"] for part in parts] == [False] * len(parts)
    assert last["message"] == {"role": "assistant", "content": ""}
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for part in parts:
        for key in ("content", "thinking", "tool_calls"):
            if key in part["message"]:
                message[key] = message.get(key, type(part["message"][key])()) + part["message"][key]
    return last | {"message": message}


BOTH = pytest.mark.parametrize("answer", [whole, streamed], ids=["whole", "streamed"])
Reply = Callable[[RunnerEngine, dict[str, Any]], dict[str, Any]]


# --- chat -------------------------------------------------------------------------------------------------------------


@BOTH
def test_an_answer_has_a_message_counts_and_durations(engines: Engines, answer: Reply) -> None:
    found = answer(engines("generic"), order("Hello, мир"))

    assert found["model"] == "tool:latest"
    assert found["created_at"].endswith("Z")
    assert found["message"] == {"role": "assistant", "content": "Hello, мир"}
    assert (found["done"], found["done_reason"], found["eval_count"]) == (True, "stop", len("Hello, мир".encode()))
    assert found["prompt_eval_count"] > len(ORDER)
    durations = [found[f"{name}_duration"] for name in ("total", "load", "prompt_eval", "eval")]
    assert all(isinstance(each, int) for each in durations)
    assert durations[2] > 0
    assert durations[0] == pytest.approx(durations[2] + durations[3], abs=2)


def test_an_answer_is_a_stream_unless_the_request_says_otherwise(engines: Engines) -> None:
    parts = lines(worker_answer(engines("generic"), "/api/chat", order("Hello")))

    assert [part["message"]["content"] for part in parts] == [*"Hello", ""]
    assert lines(worker_answer(engines("generic"), "/api/generate", GENERATE | {"stream": True}))
    assert worker_answer(engines("generic"), "/api/generate", GENERATE | {"stream": False}).body["done"] is True


@BOTH
def test_num_predict_ends_the_answer(engines: Engines, answer: Reply) -> None:
    found = answer(engines("generic"), order("a" * 50, options={"num_predict": 9}))

    assert (found["message"]["content"], found["done_reason"]) == ("a" * 9, "length")


@BOTH
def test_an_answer_can_have_calls_of_tools(engines: Engines, answer: Reply) -> None:
    found = answer(engines("hermes"), order("I look.\n" + FAMILIES["hermes"].two, tools=TOOLS))

    calls = found["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}},
        {"index": 1, "name": "get_time", "arguments": {"city": "Rome"}},
    ]
    assert len({call["id"] for call in calls}) == 2
    assert (found["message"]["content"], found["done_reason"]) == ("I look.", "stop")


@BOTH
def test_a_call_that_is_cut_off_is_left_out(engines: Engines, answer: Reply) -> None:
    found = answer(engines("hermes"), order(FAMILIES["hermes"].one, tools=TOOLS, options={"num_predict": 14}))

    assert (found["done_reason"], found["message"].get("tool_calls")) == ("length", None)


def test_calls_and_results_of_earlier_turns_are_read() -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Rain?", "images": []},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "yes", "tool_name": "get_weather"},
    ]
    asked = parse_ollama_chat(CHAT | {"messages": messages})

    assert isinstance(asked, Generate)
    _, _, said, result = asked.request.messages or ()
    assert (said["reasoning_content"], said["tool_calls"][0]["function"]) == ("Hm.", call["function"])
    assert (result["role"], result["content"], result["name"]) == ("tool", "yes", "get_weather")
    assert asked.request.malformed == ()


THOUGHT = {"role": "assistant", "content": "x", "reasoning_content": "Hm."}


def test_an_empty_field_does_not_hide_the_one_that_means_the_same() -> None:
    asked = parse_ollama_chat(CHAT | {"messages": [THOUGHT | {"thinking": None}, {"role": "user", "content": "y"}]})

    assert isinstance(asked, Generate)
    assert (asked.request.messages or ())[0]["reasoning_content"] == "Hm."
    with pytest.raises(RequestError, match="must be a string"):
        parse_ollama_chat(CHAT | {"messages": [THOUGHT | {"thinking": "", "reasoning_content": {"not": "text"}}]})
    with pytest.raises(RequestError, match="thinking and reasoning_content are one field: send one of them"):
        parse_ollama_chat(CHAT | {"messages": [THOUGHT | {"thinking": "Well."}]})


@pytest.mark.parametrize("form", ["json", SCHEMA])
@BOTH
def test_an_answer_follows_the_format(engines: Engines, form: Any, answer: Reply) -> None:
    found = answer(engines("generic"), order('{"city":"Oslo"}', format=form))

    assert json.loads(found["message"]["content"]) == {"city": "Oslo"}


@pytest.mark.parametrize("think", [None, True, "low"])
@BOTH
def test_thinking_is_apart_from_the_content(engines: Engines, think: Any, answer: Reply) -> None:
    found = answer(engines("thinks"), CHAT | {"think": think})

    assert found["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hm."}


@BOTH
def test_thinking_can_be_turned_off(engines: Engines, answer: Reply) -> None:
    assert answer(engines("thinks"), CHAT | {"think": False})["message"] == {"role": "assistant", "content": "Yes."}


def test_think_is_named_if_the_model_does_not_think(engines: Engines) -> None:
    answer = worker_answer(engines("generic"), "/api/chat", order("Yes.", think="high"))

    assert answer.headers["x-tourkit-ignored"] == "think"


@BOTH
def test_log_probabilities_are_shown_if_they_are_asked_for(engines: Engines, answer: Reply) -> None:
    body = order("Hi", logprobs=True, top_logprobs=2)
    if answer is whole:
        found = whole(engines("generic"), body)["logprobs"]
    else:
        parts = lines(worker_answer(engines("generic"), "/api/chat", body))
        found = [each for part in parts for each in part.get("logprobs", ())]

    assert [each["token"] for each in found] == ["H", "i"]
    assert [len(each["top_logprobs"]) for each in found] == [2, 2]
    assert "logprobs" not in answer(engines("generic"), order("Hi"))


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_generate_answers_a_prompt_through_the_chat_template(engines: Engines, stream: bool) -> None:
    body = {**order("Hello", stream=stream, system="Be kind."), "prompt": f"{ORDER}Hello"}
    del body["messages"]
    answer = worker_answer(engines("generic"), "/api/generate", body)

    parts = lines(answer) if stream else [answer.body]
    assert "".join(part["response"] for part in parts) == "Hello"
    assert (parts[-1]["done"], parts[-1]["done_reason"]) == (True, "stop")
    asked = parse_ollama_generate(body)
    assert isinstance(asked, Generate)
    assert [message["role"] for message in asked.request.messages or ()] == ["system", "user"]


def test_a_raw_prompt_has_no_chat_template() -> None:
    asked = parse_ollama_generate(GENERATE | {"raw": True, "format": "json", "options": {"num_predict": 5}})

    assert isinstance(asked, Generate)
    assert (asked.request.prompt, asked.request.messages) == ("x", None)
    assert (asked.request.params.max_tokens, asked.request.constraint is not None) == (5, True)


def test_a_raw_prompt_is_continued(engines: Engines) -> None:
    body = {"model": "tool", "prompt": f"{ORDER}Hello[answer]", "raw": True, "options": {"temperature": 0}}

    assert worker_answer(engines("generic"), "/api/generate", body | {"stream": False}).body["response"] == "Hello"


def test_a_suffix_is_filled_in_before(engines: Engines) -> None:
    asked = parse_ollama_generate(GENERATE | {"suffix": "end", "logprobs": True, "top_logprobs": 3})

    assert isinstance(asked, Generate)
    assert (asked.request.prompt, asked.request.suffix, asked.request.params.top_logprobs) == ("x", "end", 3)
    answer = worker_answer(engines("generic"), "/api/generate", GENERATE | {"suffix": "end"})
    assert (answer.status, answer.body["error"]["param"]) == (400, "suffix")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/generate", {"model": "tool"}), ("/api/chat", {"model": "tool", "messages": [], "keep_alive": "5m"})],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_without_a_prompt_only_loads_the_model(path: str, body: dict[str, Any], stream: bool) -> None:
    answer = worker_answer(IdleEngineOfWords(), path, body | {"stream": stream})

    [found] = lines(answer) if stream else [answer.body]
    assert (found["model"], found["done"], found["done_reason"]) == ("tool", True, "load")
    assert ("response" if path == "/api/generate" else "message") in found


class IdleEngineOfWords(IdleEngine):
    info = EngineInfo("stand-in", 64, 1, 300)


# --- options and errors -----------------------------------------------------------------------------------------------


def test_options_are_those_of_sampling() -> None:
    options = {"num_predict": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 3, "stop": ["a"]}
    asked = parse_ollama_chat(CHAT | {"options": options | {"presence_penalty": 1, "frequency_penalty": 0.5}})

    assert isinstance(asked, Generate)
    params = asked.request.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (7, 0.5, 0.9, 20)
    assert (params.min_p, params.seed, params.stop) == (0.1, 3, ("a",))
    assert (params.presence_penalty, params.frequency_penalty) == (1, 0.5)


@pytest.mark.parametrize("options", [{"num_predict": -1}, {"num_predict": -2}, {"seed": -1}, {"num_ctx": 4096}, None])
def test_options_that_set_nothing_are_accepted(options: Any) -> None:
    asked, usual = (parse_ollama_chat(CHAT | {"options": each}) for each in (options, {}))

    assert isinstance(asked, Generate)
    assert isinstance(usual, Generate)
    assert asked.request == usual.request


def test_every_option_that_changes_nothing_is_accepted() -> None:
    for field in OLLAMA_OPTIONS:
        for value in field.values:
            parse_ollama_chat(CHAT | {"options": {field.name: value}})
        if field.use is Use.NO_EFFECT:
            parse_ollama_chat(CHAT | {"options": {field.name: 1.5}})


@pytest.mark.parametrize(
    ("path", "parse", "body"),
    [
        ("/api/chat", parse_ollama_chat, CHAT),
        ("/api/generate", parse_ollama_generate, GENERATE),
        ("/api/embed", parse_ollama_embed, {"model": "embed", "input": "x"}),
        ("/api/embeddings", parse_ollama_embeddings, {"model": "embed", "prompt": "x"}),
    ],
)
def test_fields_and_values_that_change_nothing_are_accepted(path: str, parse: Any, body: dict[str, Any]) -> None:
    for field in ROUTES[path]:
        for value in (*field.values, body.get(field.name)):
            parse(body | {field.name: value})
        if field.use is Use.NO_EFFECT:
            parse(body | {field.name: {"any": ["value"]}})


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (parse_ollama_chat, {"messages": 1}, "messages"),
        (parse_ollama_chat, {"messages": [1]}, "messages[0]"),
        (parse_ollama_chat, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        (parse_ollama_chat, {"messages": [{"role": "me", "content": "x"}]}, "messages[0].role"),
        (parse_ollama_chat, {"messages": [{"role": "user", "content": "x", "images": ["A"]}]}, "messages[0].images"),
        (parse_ollama_chat, {"messages": [{"role": "user", "content": "x", "thinking": "y"}]}, "messages[0].thinking"),
        (parse_ollama_chat, {"options": 1}, "options"),
        (parse_ollama_chat, {"options": {"num_predict": -3}}, "options.num_predict"),
        (parse_ollama_chat, {"options": {"temperature": "hot"}}, "options.temperature"),
        (parse_ollama_chat, {"options": {"stop": ["x" * 1001]}}, "options.stop[0]"),
        (parse_ollama_chat, {"options": {"repeat_penalty": 1.1}}, "options.repeat_penalty"),
        (parse_ollama_chat, {"options": {"tempreature": 1}}, "options.tempreature"),
        (parse_ollama_chat, {"format": "xml"}, "format"),
        (parse_ollama_chat, {"format": {"$id": 1}}, "format"),
        (parse_ollama_chat, {"format": 1}, "format"),
        (parse_ollama_chat, {"think": "much"}, "think"),
        (parse_ollama_chat, {"stream": "yes"}, "stream"),
        (parse_ollama_chat, {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (parse_ollama_chat, {"top_logprobs": 3}, "top_logprobs"),
        (parse_ollama_chat, {"template": "x"}, "template"),
        (parse_ollama_generate, {"prompt": 1}, "prompt"),
        (parse_ollama_generate, {"images": ["A"]}, "images"),
        (parse_ollama_generate, {"template": "{{ .Prompt }}"}, "template"),
        (parse_ollama_generate, {"context": [1, 2]}, "context"),
        (parse_ollama_generate, {"raw": True, "system": "x"}, "system"),
        (parse_ollama_generate, {"raw": 1}, "raw"),
        (parse_ollama_embed, {"model": "embed", "prompt": "x"}, "prompt"),
        (parse_ollama_embed, {"input": []}, "input"),
        (parse_ollama_embeddings, {"prompt": ""}, "prompt"),
    ],
)
def test_a_refusal_names_the_field_of_this_api(parse: Any, fields: dict[str, Any], param: str) -> None:
    usual = {parse_ollama_chat: CHAT, parse_ollama_generate: GENERATE}.get(parse, {"model": "embed"})
    with pytest.raises(RequestError) as caught:
        parse(usual | fields)

    assert caught.value.param == param
    assert param.rpartition(".")[2] in str(caught.value)


# --- embeddings -------------------------------------------------------------------------------------------------------


class Lengths(IdleEngine):
    """An engine for embeddings: the vector of a text is its length and a half."""

    info = EngineInfo("stand-in", 64, 1, 300)
    size = 2

    def embed(self, texts: tuple[str, ...]) -> Future[Embeddings]:
        made: Future[Embeddings] = Future()
        made.set_result(Embeddings(numpy.array([[len(text), 0.5] for text in texts], dtype=numpy.float32), 9))
        return made


@pytest.mark.parametrize(("given", "vectors"), [("ab", [[2, 0.5]]), (["a", "abc"], [[1, 0.5], [3, 0.5]])])
def test_embed_returns_a_vector_for_each_text(given: Any, vectors: Any) -> None:
    answer = worker_answer(Lengths(), "/api/embed", {"model": "embed", "input": given, "truncate": True, "options": {}})

    assert (answer.body["model"], answer.body["embeddings"], answer.body["prompt_eval_count"]) == ("embed", vectors, 9)
    assert answer.body["total_duration"] > 0


def test_the_older_route_returns_one_vector() -> None:
    assert worker_answer(Lengths(), "/api/embeddings", {"model": "embed", "prompt": "ab"}).body == {
        "embedding": [2, 0.5]
    }


# --- the gateway ------------------------------------------------------------------------------------------------------

ROW = RoleDefaults("tool")
TEXT = Placement(
    ("tool",),
    Launch("small", "llama_cpp", "small.gguf", 1, 2048, 1, quant="Q4_1", defaults=(ROW,)),
    size=70,
    memory=(Memory("cpu", 70, 20, 10, 100), Memory("0", 0, 0, 40, 40)),
)
VECTORS = Placement(("embed",), Launch("vectors", "transformers", "vectors", 1, 512, 1, quant="F16"), size=30)


def gateway(path: str, body: Any = None, method: str = "GET") -> Answer:
    """Ask a gateway with a text model that is loaded and an embedding model that is not. No process runs."""
    made = Gateway((), GatewayOptions())
    for placement, state in ((TEXT, State.READY), (VECTORS, State.UNLOADED)):
        worker = Worker(placement, uds="", offline=False, say=lambda line: None)
        worker.state = state
        made._workers |= dict.fromkeys((*placement.roles, placement.launch.model), worker)
    return asyncio.run(ask(made.app(), path, body, method=method))


def test_tags_lists_every_name_with_a_tag() -> None:
    found = gateway("/api/tags").body["models"]

    assert [each["model"] for each in found] == ["tool:latest", "small:latest", "embed:latest", "vectors:latest"]
    assert [each["size"] for each in found] == [70, 70, 30, 30]
    assert found[0]["details"]["format"] == "gguf"
    assert found[0]["details"]["quantization_level"] == "Q4_1"
    assert found[0]["digest"] == found[1]["digest"] != found[2]["digest"]


def test_ps_lists_those_in_memory() -> None:
    found = gateway("/api/ps").body["models"]

    assert [each["name"] for each in found] == ["tool:latest", "small:latest"]
    assert (found[0]["size"], found[0]["size_vram"], found[0]["context_length"]) == (140, 40, 2048)


@pytest.mark.parametrize("body", [{"model": "tool"}, {"name": "tool:latest", "verbose": True}])
def test_show_says_what_is_known_of_a_model(body: dict[str, Any]) -> None:
    found = gateway("/api/show", body, "POST").body

    assert found["capabilities"] == ["completion", "tools"]
    architecture = found["model_info"]["general.architecture"]
    assert found["model_info"][f"{architecture}.context_length"] == 2048
    assert "temperature 0.8" in found["parameters"].splitlines()
    assert gateway("/api/show", {"model": "embed"}, "POST").body["capabilities"] == ["embedding"]


def test_the_version_is_one_of_ollama() -> None:
    assert gateway("/api/version").body == {"version": "0.12.11", "tourkit": __version__}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/show", {"model": "nobody"}, 404),
        ("/api/show", {}, 400),
        ("/api/show", {"model": "tool", "other": 1}, 400),
        ("/api/chat", {"model": "nobody"}, 404),
        ("/v1/api/embed/", {"model": "nobody"}, 404),
        ("/api/pull", {"model": "tool"}, 404),
    ],
)
def test_errors_are_one_text(path: str, body: Any, status: int) -> None:
    answer = gateway(path, body, "POST")

    assert (answer.status, list(answer.body)) == (status, ["error"])
    assert isinstance(answer.body["error"], str)


@pytest.mark.parametrize(
    ("body", "dialect", "found"),
    [
        ({"model": "tool:latest"}, OLLAMA_CHAT, ("tool", True)),
        ({"model": "tool", "stream": False}, OLLAMA_CHAT, ("tool", False)),
        ({"model": "tool:latest"}, OPENAI, ("tool:latest", False)),
        ({"model": "tool", "stream": True}, OPENAI, ("tool", True)),
    ],
)
def test_a_model_may_have_the_tag_and_an_answer_is_a_stream_by_default(body: Any, dialect: Any, found: Any) -> None:
    named = asyncio.run(bodies.named(json.dumps(body).encode(), dialect))

    assert (named.model, named.streams) == found


def test_a_client_that_waits_gets_a_line_without_text_and_an_error_is_a_line() -> None:
    sent = b""

    async def send(message: Any) -> None:
        nonlocal sent
        sent += message.get("body", b"")

    async def wait() -> None:
        commented = Commented(send, "small Q4_1 llama_cpp", OLLAMA_CHAT, period=0)
        await commented._comment()
        await commented({"type": "http.response.start", "status": 503, "headers": []})
        error = {"error": {"message": "it died", "type": "server_error", "param": None, "code": "engine_dead"}}
        await commented({"type": "http.response.body", "body": json.dumps(error).encode()})

    asyncio.run(wait())

    first, last = map(json.loads, sent.splitlines())
    assert (first["message"]["content"], first["done"]) == ("", False)
    assert last == {"error": "it died"}


def test_loading_keeps_the_name_that_the_client_sent() -> None:
    assert parse_ollama_chat({"model": "tool:latest"}) == Loading("tool:latest", stream=True)


def test_the_fields_of_a_message_are_counted_before_null_ones_are_left_out() -> None:
    message = {"role": "user", "content": "x", "images": None} | {f"k{i}": None for i in range(98)}

    with pytest.raises(RequestError, match=r"messages\[0\] has 101 fields"):
        parse_ollama_chat(CHAT | {"messages": [message]})

"""The served bundle as users see it: the official openai client, unmodified, against real processes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import openai
import pytest
from fake_worker import SECRET, fake_worker
from serving import Serving, make_bundle, serving
from waiting import until

pytestmark = pytest.mark.starts

HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["notice", "invoice"]},
        "total": {"type": ["number", "null"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["title", "kind", "total", "tags"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA, "strict": True}}


def test_models_lists_every_role_and_the_model(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"brain", "fast", "tool", "graph", "tiny-random"}
    graph = client.models.retrieve("graph")
    assert graph.id == "graph"
    assert graph.created > 1_700_000_000
    assert graph.state in ("starting", "ready")
    assert (graph.answers, graph.max_model_len) == ("tiny-random F16 llama_cpp", 2048)
    assert client.models.retrieve("graph").sampling == {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05}


def test_a_chat_completion_has_text_usage_and_a_reason(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tool", messages=HELLO, max_tokens=12, temperature=0)

    assert answer.object == "chat.completion"
    assert answer.model == "tool"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_streaming_gives_the_same_text_as_not_streaming(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0]

    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert text == whole.message.content
    assert reasons == [whole.finish_reason]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_think_accepts_the_fields_about_it_and_names_them(
    client: openai.OpenAI, stream: bool
) -> None:
    more = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}

    answer = client.chat.completions.with_raw_response.create(
        model="tool", messages=HELLO, max_tokens=3, stream=stream, extra_body=more
    )

    assert answer.headers["x-tourkit-ignored"] == "reasoning_effort, chat_template_kwargs.enable_thinking"


def test_a_stream_without_include_usage_has_no_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tool", messages=HELLO, max_tokens=3, stream=True))

    assert all(chunk.usage is None for chunk in chunks)


def test_the_same_seed_gives_the_same_text_and_n_gives_different_ones(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(model="tool", messages=HELLO, n=3, seed=seed, max_tokens=16)
        return [choice.message.content for choice in answer.choices]

    first, again, other = ask(7), ask(7), ask(8)

    assert first == again
    assert first != other
    assert len(set(first)) == 3


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 40, "temperature": 0}
    text = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = text[5:7]

    stopped = client.chat.completions.create(**options, stop=[stop]).choices[0]

    assert stopped.message.content == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("max_tokens", [400, 60], ids=["roomy", "tight"])
def test_json_schema_answers_are_valid_even_when_tokens_are_short(
    client: openai.OpenAI, temperature: float, max_tokens: int
) -> None:
    answer = client.chat.completions.create(
        model="fast",
        messages=HELLO,
        response_format=FORMAT,
        n=4,
        seed=1,
        temperature=temperature,
        max_tokens=max_tokens,
    )

    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)


def test_a_streamed_json_schema_answer_is_valid(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fast", messages=HELLO, response_format=FORMAT, max_tokens=400, stream=True
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    jsonschema.validate(json.loads(text), SCHEMA)


def test_json_object_gives_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tool", messages=HELLO, response_format={"type": "json_object"}, max_tokens=80, seed=3
    )

    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_logprobs_cover_every_token_and_are_probabilities(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 10, "temperature": 0}
    choice = client.chat.completions.create(**options, logprobs=True, top_logprobs=3).choices[0]

    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert len(tokens) == 10
    for token in tokens:
        assert token.logprob <= 0
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
        assert token.logprob == token.top_logprobs[0].logprob  # greedy: the chosen token is the likeliest
    spelled = b"".join(bytes(token.bytes or []) for token in tokens)
    assert spelled.decode(errors="replace") == choice.message.content


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 12, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**options).choices[0].logprobs
    chunks = list(client.chat.completions.create(**options, stream=True))

    streamed = [
        token.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or []
    ]
    assert whole is not None
    assert streamed == [token.token for token in whole.content or []]


def test_logprobs_under_a_schema_are_the_models_own_and_the_answer_is_still_valid(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model="tool", messages=HELLO, response_format=FORMAT, max_tokens=300, temperature=0, logprobs=True
    ).choices[0]

    jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
    assert choice.logprobs is not None
    assert len(choice.logprobs.content or []) > 10


def test_a_bias_of_minus_100_keeps_a_token_out(client: openai.OpenAI) -> None:
    """If the first token of the greedy answer is forbidden by id, another token comes first."""
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 1, "temperature": 0, "logprobs": True}
    first = client.chat.completions.create(**options).choices[0]
    bias = {str(token): -100 for token in range(299)}
    del bias["100"]

    only = client.chat.completions.create(**options, logit_bias=bias).choices[0]

    assert only.logprobs is not None
    assert first.logprobs is not None
    assert (only.logprobs.content or [])[0].token != (first.logprobs.content or [])[0].token


def test_penalties_make_repetition_rarer(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 60, "temperature": 0, "logprobs": True}

    def distinct(**penalty: float) -> int:
        choice = client.chat.completions.create(**options, **penalty).choices[0]
        assert choice.logprobs is not None
        return len({token.token for token in choice.logprobs.content or []})

    assert distinct(frequency_penalty=2, presence_penalty=2) > distinct()


def post(served: Serving, body: bytes, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(raw)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"temprature": 0}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream_options": {"include_usage": 1}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else value,
)
def test_what_is_wrong_or_not_supported_is_refused_by_name(served: Serving, extra: dict[str, Any], param: str) -> None:
    status, _, answer = post(served, json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 2} | extra).encode())

    assert status == 400, answer
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"


def structured(served: Serving, schema: Any, **extra: Any) -> tuple[int, dict[str, str], Any]:
    constraint = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "tool", "messages": HELLO, "max_tokens": 120, "seed": 2, "response_format": constraint} | extra
    return post(served, json.dumps(body).encode())


def test_a_schema_that_is_none_is_refused_with_the_reason(served: Serving) -> None:
    status, _, answer = structured(served, {"type": "strnig"})

    assert status == 400
    assert "strnig" in answer["error"]["message"]


def test_a_strict_schema_says_so_and_that_its_answers_are_valid(served: Serving) -> None:
    status, headers, answer = structured(served, SCHEMA, n=2)

    assert (status, headers["x-tourkit-constraint"]) == (200, "strict")
    assert answer["tourkit"]["dropped"] == []
    assert [choice["valid"] for choice in answer["tourkit"]["choices"]] == [True, True]


# No grammar can express that all items of a list differ.
HARD = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 4}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_a_schema_that_no_grammar_can_hold_is_relaxed_by_name_and_checked_afterwards(served: Serving) -> None:
    """An answer that is called valid is always valid by the schema as it was sent."""
    for seed in range(6):
        status, headers, answer = structured(served, HARD, seed=seed)
        outcome = answer["tourkit"]["choices"][0]

        assert (status, headers["x-tourkit-constraint"]) == (200, "relaxed")
        assert any("uniqueItems" in pointer for pointer in answer["tourkit"]["dropped"])
        data = json.loads(answer["choices"][0]["message"]["content"])
        assert outcome["valid"] == jsonschema.Draft202012Validator(HARD).is_valid(data)
        assert outcome["valid"] or outcome["errors"]


def test_a_stream_under_a_relaxed_schema_ends_with_what_was_dropped(client: openai.OpenAI) -> None:
    constraint: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": HARD}}
    stream = client.chat.completions.create(
        model="tool", messages=HELLO, max_tokens=120, response_format=constraint, stream=True
    )

    remarks = [chunk.model_extra["tourkit"] for chunk in stream if chunk.model_extra and "tourkit" in chunk.model_extra]

    assert [remark["constraint"] for remark in remarks] == ["relaxed"]


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-f]{2}"}, "[0-9]{3}-[a-f]{2}"),
        ({"choice": ["red", "green", "blue"]}, "red|green|blue"),
        ({"choice": ["да", "нет"]}, "да|нет"),
        ({"grammar": 'start: "a" /[0-9]{2}/ "b"'}, "a[0-9]{2}b"),
        ({"grammar": 'root ::= "x" [0-9] [0-9] "y"'}, "x[0-9]{2}y"),
    ],
    ids=["regex", "choice", "Russian choice", "Lark", "GBNF"],
)
def test_the_extras_hold_the_text_to_a_regex_a_choice_or_a_grammar(
    client: openai.OpenAI, extra: dict[str, Any], pattern: str
) -> None:
    answer = client.chat.completions.create(model="tool", messages=HELLO, max_tokens=40, n=3, seed=1, extra_body=extra)

    for choice in answer.choices:
        assert re.fullmatch(pattern, choice.message.content or ""), choice.message.content


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"regex": "("}, "regex"),
        ({"regex": ""}, "regex"),
        ({"grammar": "start: ???"}, "grammar"),
        ({"choice": []}, "choice"),
        ({"choice": "red"}, "choice"),
        ({"regex": "a", "choice": ["a"]}, "response_format"),
    ],
)
def test_a_constraint_that_is_none_is_refused_by_name(served: Serving, extra: dict[str, Any], param: str) -> None:
    status, _, answer = post(served, json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 5} | extra).encode())

    assert (status, answer["error"]["param"]) == (400, param)


# After some tokens this grammar has more possible parses than the parser follows.
AMBIGUOUS = "start: s\ns: a b c d e f\n" + "\n".join(f"{name}: s s | s | /[a-z]/ |" for name in "abcdef")


def test_a_grammar_that_outgrows_its_limits_on_the_way_is_a_fault_of_the_request(client: openai.OpenAI) -> None:
    extra = {"grammar": AMBIGUOUS, "logit_bias": {"2": -100}}  # the text never ends by itself
    options: dict[str, Any] = {"model": "tool", "messages": HELLO, "max_tokens": 200, "temperature": 0}

    with pytest.raises(openai.BadRequestError, match=r"grew too large|too slow") as refused:
        client.chat.completions.create(**options, extra_body=extra)
    with pytest.raises(openai.APIError, match=r"grew too large|too slow"):
        list(client.chat.completions.create(**options, extra_body=extra, stream=True))

    assert refused.value.code == "grammar_limit"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": []}', b'{"model": 5}'])
def test_a_body_that_is_no_request_is_refused(served: Serving, body: bytes) -> None:
    status, _, answer = post(served, body)

    assert status == 400
    assert answer["error"]["message"]


def test_an_unknown_model_is_404_and_names_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny-random"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


def test_a_neutral_value_of_an_unsupported_field_is_accepted(served: Serving) -> None:
    body = {"model": "tool", "messages": HELLO, "max_tokens": 2, "frequency_penalty": 0, "logprobs": False, "tools": []}

    status, headers, _ = post(served, json.dumps(body).encode())

    assert status == 200
    assert headers["x-tourkit-model"] == "tiny-random F16 llama_cpp"


def test_an_unknown_route_answers_in_the_same_shape(served: Serving) -> None:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    connection.request("GET", "/v2/nothing")
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()

    assert answer.status == 404
    assert "no such route" in body["error"]["message"]


def get(served: Serving, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    return answer.status, body


def test_health_names_the_workers_and_roles_share_one(served: Serving, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tool", messages=HELLO, max_tokens=1)

    status, body = get(served, "/health")

    assert status == 200
    assert list(body["workers"]) == ["tiny-random F16"]
    assert sorted(body["workers"]["tiny-random F16"]["roles"]) == ["brain", "fast", "graph", "tool"]


def test_a_client_that_hangs_up_frees_its_slots(served: Serving, client: openai.OpenAI) -> None:
    """Long streams take all slots. After the clients hang up, others are served at once."""
    body = json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 1900, "n": 4, "stream": True, "seed": 5})
    connections = []
    for _ in range(3):
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        connection.getresponse().readline()
        connections.append(connection)

    for connection in connections:
        connection.close()
    answer = client.chat.completions.create(model="tool", messages=HELLO, max_tokens=1)

    assert answer.choices[0].finish_reason == "length"


def test_many_clients_at_once_get_their_own_answers(client: openai.OpenAI) -> None:
    prompts = [f"Number {i}: say something" for i in range(12)]

    def ask(prompt: str) -> str | None:
        messages: Any = [{"role": "user", "content": prompt}]
        answer = client.chat.completions.create(model="brain", messages=messages, max_tokens=20, temperature=0)
        return answer.choices[0].message.content

    alone = [ask(prompt) for prompt in prompts]
    together: list[str | None] = [None] * len(prompts)

    def ask_into(i: int) -> None:
        together[i] = ask(prompts[i])

    threads = [threading.Thread(target=ask_into, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert None not in together
    # Rounding depends on the batch of a token, so a near-tie may sometimes give another token.
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 10


def test_a_killed_worker_is_started_again(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    with serving(bundle, tmp_path / "log", "--context", "512") as running:
        until(lambda: get(running, "/health")[0] == 200)
        before = get(running, "/health")[1]["workers"]["tiny-random F16"]

        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: get(running, "/health")[1]["workers"]["tiny-random F16"]["restarts"] == 1)
        until(lambda: get(running, "/health")[0] == 200)
        status, _, _ = post(running, json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 2}).encode())

        assert status == 200
        assert get(running, "/health")[1]["workers"]["tiny-random F16"]["pid"] != before["pid"]


def test_a_worker_that_dies_in_the_middle_of_a_stream_is_told_of_in_the_stream(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    body = json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 7000, "n": 8, "stream": True, "seed": 1})
    with serving(bundle, tmp_path / "log", "--context", "8192") as running:
        connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.readline()
        os.kill(get(running, "/health")[1]["workers"]["tiny-random F16"]["pid"], signal.SIGKILL)
        rest = answer.read().decode()
        connection.close()

    last = [line for line in rest.splitlines() if line.startswith("data: ")][-1]
    assert "went away" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert "[DONE]" not in rest


def test_a_full_queue_answers_429_with_retry_after(tiny_gguf: Path, tmp_path: Path) -> None:
    """A worker lets 256 sequences wait. Three requests of 128 are more than the queue and the slots can hold."""
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    body = {"model": "tool", "messages": HELLO, "max_tokens": 1000, "n": 128, "stream": True}
    with serving(bundle, tmp_path / "log", "--context", "2048", "--slots", "2") as running:
        connections = []
        for _ in range(3):
            connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            connections.append((connection, connection.getresponse()))
        statuses = [answer.status for _, answer in connections]
        last = connections[-1][1]
        retry_after, error = last.getheader("retry-after"), json.loads(last.read())["error"]
        for connection, _ in connections:
            connection.close()

    assert statuses == [200, 200, 429]
    assert (retry_after, error["code"]) == ("1", "queue_full")


@pytest.mark.parametrize(("options", "signals"), [(["--drain", "0"], 1), ([], 2)])
def test_a_server_that_is_to_stop_now_does_not_wait_for_long_answers(
    options: list[str], signals: int, tiny_gguf: Path, tmp_path: Path
) -> None:
    """It is to stop now if its time to drain is 0, and after a second signal."""
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    body = json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 8000, "n": 64, "stream": True})
    with serving(bundle, tmp_path / "log", "--context", "8192", *options) as running:
        connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        connection.getresponse().readline()
        pid = get(running, "/health")[1]["workers"]["tiny-random F16"]["pid"]

        running.process.terminate()
        until(lambda: "stopping: 1 answer runs" in running.log.read_text())
        for _ in range(signals - 1):
            running.process.terminate()
        running.process.wait()
        connection.close()

    assert not Path(f"/proc/{pid}").exists()
    assert "Traceback" not in running.log.read_text()


def test_workers_listen_on_loopback_with_a_secret_where_there_are_no_unix_sockets(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    """As on Windows: the gateway can reach the worker, other programs on the machine cannot."""
    code = (
        "from pathlib import Path; from tourkit.server.gateway.app import GatewayOptions\n"
        "from tourkit.server.gateway.launch import ServeOptions, serve_bundle\n"
        f"bundle, options = Path({str(tmp_path / 'bundle')!r}), ServeOptions(context=512)\n"
        "serve_bundle(bundle, options, GatewayOptions(unix=False), lambda urls, plan: print(urls.here, flush=True))"
    )
    make_bundle(tmp_path / "bundle", tiny_gguf)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        running = Serving(process.stdout.readline().strip(), process, tmp_path / "log")
        body = json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 2}).encode()
        through_gateway, _, _ = post(running, body)
        pid = get(running, "/health")[1]["workers"]["tiny-random F16"]["pid"]
        directly, _, _ = post(Serving(listening_url(pid), process, tmp_path / "log"), body)
    finally:
        process.terminate()
        process.communicate()

    assert (through_gateway, directly) == (200, 403)


def listening_url(pid: int) -> str:
    """Return the loopback addresses a process listens on, as the kernel lists them."""
    inodes = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return f"http://127.0.0.1:{int(fields[1].split(':')[1], 16)}"
    raise AssertionError("the worker listens nowhere")


def test_workers_end_when_their_gateway_is_killed(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    with serving(bundle, tmp_path / "log", "--context", "512") as running:
        until(lambda: get(running, "/health")[0] == 200)
        pid = get(running, "/health")[1]["workers"]["tiny-random F16"]["pid"]

        running.process.kill()

        until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")


def test_a_model_file_that_cannot_be_loaded_is_named_to_the_caller(tiny_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:5000])
    bundle = make_bundle(tmp_path / "bundle", broken)
    with serving(bundle, tmp_path / "log") as running:
        status, _, answer = post(running, json.dumps({"model": "tool", "messages": HELLO}).encode())

    assert status == 503
    assert "tiny-random.gguf" in answer["error"]["message"]
    assert "tourkit verify" in answer["error"]["message"]


def test_an_api_key_is_asked_for(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    body = json.dumps({"model": "tool", "messages": HELLO, "max_tokens": 1}).encode()
    with serving(bundle, tmp_path / "log", "--context", "512", "--api-key", "s3cret") as running:
        refused, _, answer = post(running, body)
        wrong, _, _ = post(running, body, authorization="Bearer guess")
        right, _, _ = post(running, body, authorization="Bearer s3cret")

    assert (refused, wrong, right) == (401, 401, 200)
    assert answer["error"]["code"] == "invalid_api_key"


def test_a_worker_whose_engine_died_says_so_and_ends_so_that_another_is_started() -> None:
    with fake_worker("Dead") as worker:
        assert worker.process.stderr is not None
        connection = http.client.HTTPConnection(worker.address)
        connection.request("POST", "/tokenize", b'{"model": "m", "prompt": "a"}', {"x-tourkit-secret": SECRET})
        answer = connection.getresponse()
        status, said = answer.status, answer.read()
        connection.close()
        worker.process.wait()  # its stdin is still open, so it ends by itself

        assert (status, worker.process.returncode) == (503, 0)
        assert b"the engine thread died" in said
        assert b"closed" in worker.process.stderr.read()

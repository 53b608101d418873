"""The endpoints besides chat: plain completions, tokens, metrics."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from serving import Serving

JSON = {"response_format": {"type": "json_object"}}


def ask(served: Serving, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    payload = json.dumps(body) if body is not None else None
    connection.request(method, path, payload, {"content-type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def test_a_plain_completion_goes_on_from_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tool", prompt="the name", max_tokens=8, temperature=0, n=2)

    assert answer.object == "text_completion"
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.choices[0].text == answer.choices[1].text != ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_a_list_of_prompts_is_scored_as_evaluation_harnesses_do(client: openai.OpenAI) -> None:
    prompts = [[5, 6, 7], [8, 9, 10, 11]]

    answer = client.completions.create(model="tool", prompt=prompts, max_tokens=0, echo=True, logprobs=1)

    assert [choice.index for choice in answer.choices] == [0, 1]
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        assert choice.logprobs is not None
        first, *others = choice.logprobs.token_logprobs or []
        assert first is None
        assert len(others) == len(prompt) - 1
        assert all(value < 0 for value in others)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_the_routes_have_the_spellings_that_clients_use(served: Serving) -> None:
    body = {"model": "tool", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}

    assert ask(served, "POST", "/chat/completions/", body)[0] == 200
    assert ask(served, "HEAD", "/v1/models") == (200, b"")
    assert ask(served, "GET", "/v1/completions")[0] == 405
    assert b"assistant" in ask(served, "POST", "/apply-template", body)[1]


def test_a_streamed_plain_completion_is_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tool", "prompt": "the name", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text

    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage is not None


def test_a_plain_completion_takes_no_chat_template(served: Serving, client: openai.OpenAI) -> None:
    prompt = "<|start|>user"
    _, data = ask(served, "POST", "/tokenize", {"model": "tool", "prompt": prompt})

    answer = client.completions.create(model="tool", prompt=prompt, max_tokens=1)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(json.loads(data)["tokens"])


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_a_plain_completion_does_not_take_is_refused_by_name(
    served: Serving, extra: dict[str, Any], param: str
) -> None:
    status, data = ask(served, "POST", "/v1/completions", {"model": "tool", "prompt": "x", "max_tokens": 1} | extra)

    assert status == 400
    assert json.loads(data)["error"]["param"] == param


@pytest.mark.parametrize("text", ["", "the name", "Счёт № 42 <|end|> 🙂"])
def test_tokens_of_a_text_give_the_text_again(served: Serving, text: str) -> None:
    status, data = ask(served, "POST", "/tokenize", {"model": "graph", "prompt": text})
    tokens = json.loads(data)["tokens"]
    back_status, back = ask(served, "POST", "/detokenize", {"model": "graph", "tokens": tokens})

    assert (status, back_status) == (200, 200)
    assert json.loads(data)["count"] == len(tokens)
    assert json.loads(back)["prompt"] == text


@pytest.mark.parametrize("tokens", ["x", [1.5], [True], [-1], [10**6]])
def test_what_are_no_tokens_is_refused(served: Serving, tokens: Any) -> None:
    status, data = ask(served, "POST", "/detokenize", {"model": "tool", "tokens": tokens})

    assert status == 400
    assert json.loads(data)["error"]["param"] == "tokens"


def test_metrics_count_what_was_done(served: Serving, client: openai.OpenAI) -> None:
    def figure(name: str) -> int:
        _, data = ask(served, "GET", "/metrics")
        found = re.search(
            rf'^tourkit_{name}{{model="tiny-random",[^}}]*}} (\d+)\.0$', data.decode(), flags=re.MULTILINE
        )
        assert found, data.decode()
        return int(found[1])

    # In the background the engine asks the model once how it spaces JSON. After the first JSON answer this is done.
    ask(served, "POST", "/v1/completions", {"model": "tool", "prompt": "x", "max_tokens": 9} | JSON)
    before = figure("generated_tokens_total")
    client.completions.create(model="tool", prompt="x", max_tokens=7, temperature=0)

    assert figure("generated_tokens_total") == before + 7
    assert figure("offline_refused_total") == 0
    assert figure("sequences_running") == 0

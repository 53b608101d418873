"""/v1/completions in full, on a stand-in engine: many prompts, token ids, echo, log probabilities, gaps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import Answer, ask
from thinking_runner import TURN, Script, ThinkingRunner

from tourkit.backends.infill import infill_parts
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.backends.vllm.translation import prompt_logprobs_of
from tourkit.errors import RequestError
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

pytest.importorskip("llguidance", reason="llguidance is not installed here")

TEXT = "né"  # three tokens: the runner's tokens are bytes
PROMPT = f"ab{TURN}"
PROMPTS = [PROMPT, f"c{TURN}", f"de{TURN}"]


@pytest.fixture
def worker() -> Iterator[ModelServer]:
    model = RunnerEngine(ThinkingRunner("none", Script(TEXT, TEXT, TURN)), "stand-in")
    try:
        yield ModelServer(model, "s", fingerprint="fp_1")
    finally:
        model.close()


def complete(worker: ModelServer, **fields: Any) -> Answer:
    body = {"model": "tool", "prompt": PROMPT, "temperature": 0, "max_tokens": 20} | fields
    return asyncio.run(ask(worker.app(), "/v1/completions", body, headers={SECRET_HEADER: "s"}))


def texts(answer: Answer) -> list[str]:
    """The text of each choice, of a whole answer or of a stream."""
    if answer.raw.startswith(b"{"):
        return [choice["text"] for choice in answer.body["choices"]]
    found: dict[int, str] = {}
    for event in answer.events:
        for choice in event["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return [found[index] for index in sorted(found)]


def joined(answer: Answer) -> list[dict[str, list[Any]]]:
    """The log probabilities of each choice, of a whole answer or of a stream."""
    if answer.raw.startswith(b"{"):
        return [choice["logprobs"] for choice in answer.body["choices"]]
    found: dict[int, dict[str, list[Any]]] = {}
    for event in answer.events:
        for choice in event["choices"]:
            into = found.setdefault(choice["index"], {})
            for key, values in choice["logprobs"].items():
                into[key] = into.get(key, []) + values
    return [found[index] for index in sorted(found)]


STREAM = pytest.mark.parametrize("stream", [False, True])


@STREAM
def test_each_prompt_of_a_list_gets_n_answers_in_the_order_of_the_prompts(worker: ModelServer, stream: bool) -> None:
    answer = complete(worker, prompt=PROMPTS, n=2, echo=True, stream=stream)

    assert answer.status == 200
    assert texts(answer) == [prompt + TEXT for prompt in PROMPTS for _ in range(2)]


def test_the_usage_of_a_list_of_prompts_counts_all_of_them(worker: ModelServer) -> None:
    usage = complete(worker, prompt=PROMPTS).body["usage"]

    assert usage["prompt_tokens"] == sum(map(len, PROMPTS))
    assert usage["completion_tokens"] == 3 * len(TEXT.encode())


def test_more_prompts_than_run_at_once_are_all_answered(worker: ModelServer) -> None:
    assert texts(complete(worker, prompt=[PROMPT] * 40)) == [TEXT] * 40


@pytest.mark.parametrize("prompt", [list(PROMPT.encode()), [list(PROMPT.encode())]])
def test_token_ids_are_used_unchanged(worker: ModelServer, prompt: Any) -> None:
    answer = complete(worker, prompt=prompt, echo=True)

    assert texts(answer) == [PROMPT + TEXT]
    assert answer.body["usage"]["prompt_tokens"] == len(PROMPT)


def test_a_token_id_that_the_model_does_not_have_is_refused(worker: ModelServer) -> None:
    answer = complete(worker, prompt=[[1, 2], [10**6]])

    assert (answer.status, answer.body["error"]["param"]) == (400, "prompt")


@STREAM
def test_log_probabilities_have_the_form_of_the_old_api(worker: ModelServer, stream: bool) -> None:
    [found] = joined(complete(worker, logprobs=2, stream=stream))

    assert found["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert found["text_offset"] == [0, 1, 1]
    assert all(value < 0 for value in found["token_logprobs"])
    assert [top[token] for token, top in zip(found["tokens"], found["top_logprobs"], strict=True)] == found[
        "token_logprobs"
    ]
    assert all(len(top) in (2, 3) for top in found["top_logprobs"])


def test_the_streamed_log_probabilities_are_those_of_the_whole_answer(worker: ModelServer) -> None:
    options: dict[str, Any] = {"prompt": PROMPTS, "n": 2, "echo": True, "logprobs": 1}

    assert joined(complete(worker, **options, stream=True)) == joined(complete(worker, **options))


def test_echo_with_logprobs_scores_each_token_of_the_prompt(worker: ModelServer) -> None:
    """The first token has no probability. This is how evaluation harnesses score texts."""
    [found] = joined(complete(worker, echo=True, logprobs=1))

    assert "".join(found["tokens"][: len(PROMPT)]) == PROMPT
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert len(found["token_logprobs"]) == len(PROMPT) + len(TEXT.encode())
    # The stand-in gives one token the logit 1 and all others 0.
    likely = max(found["token_logprobs"][1:])
    assert found["token_logprobs"][len(PROMPT)] == likely
    assert min(found["token_logprobs"][1:]) == pytest.approx(likely - 1)


def test_a_scored_prompt_is_the_same_when_its_beginning_was_computed_before(worker: ModelServer) -> None:
    first = joined(complete(worker, echo=True, logprobs=1))

    assert joined(complete(worker, echo=True, logprobs=1)) == first


def test_a_long_prompt_is_scored_to_its_end(worker: ModelServer) -> None:
    prompt = "x" * 300 + TURN
    [found] = joined(complete(worker, prompt=prompt, echo=True, logprobs=0))

    assert len(found["tokens"]) == len(prompt) + len(TEXT.encode())
    assert None not in found["token_logprobs"][1:]


@STREAM
def test_no_tokens_and_echo_give_the_prompt_alone(worker: ModelServer, stream: bool) -> None:
    answer = complete(worker, max_tokens=0, echo=True, logprobs=1, stream=stream)

    assert texts(answer) == [PROMPT]
    assert "".join(joined(answer)[0]["tokens"]) == PROMPT


def test_no_tokens_without_echo_are_refused(worker: ModelServer) -> None:
    assert complete(worker, max_tokens=0).body["error"]["param"] == "max_tokens"


def test_a_stream_has_usage_null_in_each_chunk_and_the_usage_in_the_last(worker: ModelServer) -> None:
    *chunks, last = complete(worker, stream=True, stream_options={"include_usage": True}).events

    assert {event["usage"] for event in chunks} == {None}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(TEXT.encode())


def test_a_stream_with_continuous_usage_counts_in_each_chunk(worker: ModelServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = complete(worker, stream=True, stream_options=options).events
    counted = [event["usage"]["completion_tokens"] for event in chunks]

    assert counted == sorted(counted)
    assert counted[-1] == last["usage"]["completion_tokens"]


def test_every_reply_has_the_fingerprint(worker: ModelServer) -> None:
    assert complete(worker).body["system_fingerprint"] == "fp_1"
    assert {event["system_fingerprint"] for event in complete(worker, stream=True).events} == {"fp_1"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": 5}, "suffix"),
        ({"suffix": "x", "echo": True}, "suffix"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 128}, "prompt"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_completion({"model": "tool", "prompt": "a"} | fields)

    assert refused.value.param == param


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"n": 3, "best_of": 3}, {"logprobs": False}, {"suffix": ""}])
def test_values_that_change_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parse_completion({"model": "tool", "prompt": "a"} | fields).requests[0].suffix is None


def test_a_suffix_needs_a_model_that_fills_gaps(worker: ModelServer) -> None:
    answer = complete(worker, suffix="end")

    assert (answer.status, answer.body["error"]["param"]) == (400, "suffix")
    assert "fill-in-the-middle" in answer.body["error"]["message"]


def test_a_gap_is_written_with_the_control_tokens_of_the_family() -> None:
    qwen = {"<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3}
    codestral = {"[PREFIX]": 1, "[SUFFIX]": 2}

    assert infill_parts(qwen, "def f(", "return") == [1, "def f(", 2, "return", 3]
    assert infill_parts(codestral, "def f(", "return") == [2, "return", 1, "def f("]
    assert infill_parts(qwen, "", "x") == [1, 2, "x", 3]
    assert infill_parts({"<|fim_prefix|>": 1}, "a", "b") is None


def test_a_suffix_reaches_the_model_with_its_control_tokens() -> None:
    names = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    runner = ThinkingRunner("none", Script(TEXT, TEXT, TURN), control=names)
    engine = RunnerEngine(runner, "stand-in")
    try:
        answer = complete(ModelServer(engine, "s"), prompt="a<|fim_suffix|>", suffix="b", max_tokens=1)
    finally:
        engine.close()
    sent = [token for batch in runner.batches for token, *_ in batch]
    before, after, gap = (runner.control_tokens.ids[name] for name in names)

    assert answer.status == 200
    assert [token for token in sent if token in (before, after, gap)] == [before, after, gap]


def test_the_scores_of_vllm_have_the_same_form() -> None:
    row = {5: SimpleNamespace(logprob=-0.5), 7: SimpleNamespace(logprob=-2.0)}
    tokenizer: Any = SimpleNamespace(piece=lambda token: bytes([token]))

    first, second = prompt_logprobs_of([3, 7], [None, row], 1, tokenizer)

    assert math.isnan(first.logprob)
    assert (second.token, second.logprob, second.top) == (b"\x07", -2.0, ((b"\x05", -0.5),))


def test_the_chat_template_can_be_applied_alone(worker: ModelServer) -> None:
    body = {"model": "tool", "messages": [{"role": "user", "content": "<|end|>hi"}]}
    answer = asyncio.run(ask(worker.app(), "/apply-template", body, headers={SECRET_HEADER: "s"}))

    assert answer.body == {"prompt": f"[user]<|end|>hi{TURN}"}

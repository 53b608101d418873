"""Models that think before they answer: on a stand-in for each family, through the engine and the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runner import Collected
from starlette.requests import Request as HttpRequest
from thinking_runner import TEMPLATES, Script, ThinkingRunner

from tourkit.backends.runner_engine import RunnerEngine
from tourkit.backends.text_side import Texts
from tourkit.backends.vllm.thinking import Answers, plan_of, takes_two
from tourkit.defaults import RoleDefaults
from tourkit.errors import RequestError
from tourkit.generation import Constraint, Delta, Finish, Request, SamplingParams, Thinking
from tourkit.grammar.spacing import Spacing
from tourkit.grammar.trial.answers import judge
from tourkit.server.api.generation import Generation, complete, stream
from tourkit.server.api.model import Model
from tourkit.server.api.replies import ChatReply, Choice
from tourkit.server.api.requests import Generate, parse_chat
from tourkit.server.api.structured import checked

pytest.importorskip("llguidance", reason="llguidance is not installed here")

THOUGHT, CONTENT = "2 < 3, да?\nSo it is.", "Ответ: **4**"
JSON = '{"n":4}'
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
NUMBER = Constraint.json_schema(SCHEMA)
HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
# Of each family: what comes before the thinking and after it, and the last marker before the content.
FORMS = {
    "think": ("<think>\n", "\n</think>\n\n", "</think>"),
    "think, begun in the prompt": ("", "\n</think>\n\n", "</think>"),
    "granite": ("<think>", "</think><response>", "<response>"),
    "mistral": ("[THINK]", "[/THINK]", "[/THINK]"),
    "gemma-4": ("<|channel>thought\n", "\n<channel|>", "<channel|>"),
    "gpt-oss": (*HARMONY, "final<|message|>"),
}
FAMILY = pytest.mark.parametrize("family", FORMS)
ON, OFF = Thinking(enabled=True), Thinking(enabled=False)


def script(family: str, content: str = CONTENT, thought: str = THOUGHT) -> Script:
    before, after, last = FORMS[family]
    if family == "think, begun in the prompt":
        before = "<think>\n"
    return Script(before + thought + after + content, content, last)


@contextmanager
def engine_of(family: str, written: Script, **options: Any) -> Iterator[tuple[RunnerEngine, ThinkingRunner]]:
    runner = ThinkingRunner(family, written)
    engine = RunnerEngine(runner, "stand-in", **options)
    try:
        yield engine, runner
    finally:
        engine.close()


def request(thinking: Thinking = ON, **fields: Any) -> Request:
    params = SamplingParams(
        temperature=0, **{name: fields.pop(name) for name in ("stop", "max_tokens") & fields.keys()}
    )
    return Request(messages=({"role": "user", "content": "2+2?"},), params=params, thinking=thinking, **fields)


class Answer:
    """The deltas of one sequence, put together."""

    def __init__(self, deltas: list[Delta]) -> None:
        self.content = "".join(delta.text for delta in deltas)
        self.reasoning = "".join(delta.reasoning for delta in deltas)
        self.n_tokens = sum(delta.n_tokens for delta in deltas)
        self.n_reasoning = sum(delta.n_reasoning for delta in deltas)
        self.finish, self.error = deltas[-1].finish, deltas[-1].error
        self.logprobs = [each.token for delta in deltas for each in delta.logprobs]
        self.deltas = deltas


def ask(engine: RunnerEngine, asked: Request) -> Answer:
    collected = Collected(1)
    engine.submit(asked, collected.deltas.put)
    deltas = [collected.deltas.get(timeout=60)]
    while deltas[-1].finish is None:
        deltas.append(collected.deltas.get(timeout=60))
    assert deltas[-1].error is None
    return Answer(deltas)


def answer(family: str, asked: Request, written: Script | None = None, **options: Any) -> Answer:
    with engine_of(family, written or script(family), **options) as (engine, _):
        return ask(engine, asked)


def n_bytes(text: str) -> int:
    return len(text.encode())


# --- free text --------------------------------------------------------------------------------------------------------


@FAMILY
@pytest.mark.parametrize("whole", [True, False])
def test_thinking_and_content_are_told_apart_and_counted(family: str, whole: bool) -> None:
    found = answer(family, request(whole=whole))

    assert (found.reasoning, found.content, found.finish) == (THOUGHT, CONTENT, Finish.STOP)
    assert found.n_reasoning >= n_bytes(THOUGHT)
    assert found.n_tokens >= found.n_reasoning + n_bytes(CONTENT)
    assert (len(found.deltas) == 1) is whole


@FAMILY
def test_an_answer_that_is_cut_off_in_its_thinking_has_no_content(family: str) -> None:
    found = answer(family, request(max_tokens=12))

    assert (found.content, found.finish) == ("", Finish.LENGTH)
    assert found.reasoning
    assert THOUGHT.startswith(found.reasoning.rstrip("\N{REPLACEMENT CHARACTER}"))


@FAMILY
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_after_its_budget_the_thinking_is_closed_out_and_the_answer_follows(family: str, budget: int) -> None:
    found = answer(family, request(replace(ON, budget=budget)))

    assert (found.content, found.finish) == (CONTENT, Finish.STOP)
    assert (found.n_reasoning, found.reasoning) == (budget, THOUGHT[:budget].strip())


@FAMILY
def test_a_model_that_is_told_not_to_think_answers_at_once(family: str) -> None:
    found = answer(family, request(OFF))

    assert (found.reasoning, found.n_reasoning, found.content) == ("", 0, CONTENT)


@FAMILY
def test_a_stop_string_ends_the_content_and_not_the_thinking(family: str) -> None:
    found = answer(family, request(stop=("is", "**")))

    assert (found.reasoning, found.content, found.finish) == (THOUGHT, "Ответ: ", Finish.STOP)


@FAMILY
def test_log_probabilities_are_those_of_the_content(family: str) -> None:
    asked = request()
    found = answer(family, replace(asked, params=replace(asked.params, top_logprobs=0)))

    assert b"".join(found.logprobs).decode() == CONTENT


@FAMILY
def test_an_answer_that_is_computed_again_for_lack_of_cells_is_the_same(family: str) -> None:
    with engine_of(family, script(family)) as (engine, runner):
        runner.n_ctx = 200
        every = [Collected(1) for _ in range(4)]
        for collected in every:
            engine.submit(request(whole=True), collected.deltas.put)
        found = [Answer([collected.deltas.get(timeout=60)]) for collected in every]
        preemptions = engine.stats().preemptions

    assert preemptions
    assert {(each.reasoning, each.content) for each in found} == {(THOUGHT, CONTENT)}


def test_a_model_without_thinking_writes_these_markers_as_text() -> None:
    text = "<think>a</think>b"

    found = answer("none", request(), Script(text, text, "?"))

    assert (found.reasoning, found.content, found.n_reasoning) == ("", text, 0)


def test_a_plain_completion_is_never_parsed() -> None:
    with engine_of("think", script("think")) as (engine, _):
        found = ask(engine, Request(prompt="[answer]", params=SamplingParams(temperature=0)))

    assert (found.reasoning, found.content) == ("", script("think").answer)


# --- with a schema ----------------------------------------------------------------------------------------------------


@FAMILY
def test_a_schema_applies_after_the_thinking(family: str) -> None:
    found = answer(family, request(constraint=NUMBER), script(family, JSON))

    assert (found.reasoning, json.loads(found.content), found.finish) == (THOUGHT, {"n": 4}, Finish.STOP)
    assert found.n_reasoning >= n_bytes(THOUGHT)


@FAMILY
def test_without_thinking_a_schema_applies_at_once(family: str) -> None:
    found = answer(family, request(OFF, constraint=NUMBER), script(family, JSON))

    assert (found.reasoning, json.loads(found.content)) == ("", {"n": 4})


@FAMILY
@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_and_a_schema_go_together(family: str, budget: int) -> None:
    found = answer(family, request(replace(ON, budget=budget), constraint=NUMBER), script(family, JSON))

    assert (found.n_reasoning, json.loads(found.content)) == (budget, {"n": 4})


@FAMILY
def test_a_model_that_ends_its_answer_inside_the_thinking_still_follows_the_schema(family: str) -> None:
    before, _, last = FORMS[family]
    ends = Script((before or "<think>\n") + THOUGHT, JSON, last)

    found = answer(family, request(constraint=NUMBER), ends)

    assert (found.reasoning, json.loads(found.content)) == (THOUGHT, {"n": 4})


@FAMILY
def test_thinking_leaves_the_tokens_that_the_schema_needs(family: str) -> None:
    """As without thinking, a document is closed out when the tokens run short."""
    long = script(family, JSON, thought="so " * 200)

    found = answer(family, request(constraint=NUMBER, max_tokens=200), long)

    assert json.loads(found.content)
    assert found.reasoning.startswith("so so")


# --- on vLLM: its outputs are made here -------------------------------------------------------------------------------


def output(tokens: list[int], finish: str | None) -> Any:
    """Return the part of vLLM's CompletionOutput that is read here."""
    rows = [{token: SimpleNamespace(logprob=-0.5)} for token in tokens]
    return SimpleNamespace(index=0, text="", token_ids=tokens, logprobs=rows, finish_reason=finish)


def answer_on_vllm(family: str, asked: Request, written: Script) -> Answer:
    """Return the answer to a request whose outputs are those of a model that follows the script."""
    runner = ThinkingRunner(family, written)
    texts, compact = Texts(runner, runner.context), Spacing(lambda emit: emit(Delta(0, "", 0, Finish.STOP)))
    made = texts.engine_input(asked, compact, None, matchers=1)
    answers = Answers(asked, made, texts)
    tokens = list(made.tokens)
    deltas: list[Delta] = []
    while answers.unended:
        token = runner.following(tokens)
        tokens.append(token)
        n_new = len(tokens) - len(made.tokens)
        is_over = made.thinking is not None and n_new == made.thinking.budget
        text = runner.spell(tokens[len(made.tokens) :]).decode(errors="replace")
        closed = made.thinking is not None and text.endswith(made.thinking.markers.close)
        ends = token in runner.eog or (takes_two(plan_of(made)) and closed)
        deltas += answers.deltas(output([token], "stop" if ends else "length" if is_over else None), 0)
    for _ in answers.take_seconds():
        tokens = [*made.tokens, *answers._thinking[0].tokens]
        while answers.open:
            tokens.append(runner.following(tokens))
            deltas += answers.rest(0, output(tokens[-1:], "stop" if tokens[-1] in runner.eog else None))
    return Answer(deltas)


@FAMILY
@pytest.mark.parametrize("whole", [True, False])
def test_on_vllm_thinking_and_content_are_told_apart(family: str, whole: bool) -> None:
    found = answer_on_vllm(family, request(whole=whole, stop=("**",)), script(family))

    assert (found.reasoning, found.content, found.finish) == (THOUGHT, "Ответ: ", Finish.STOP)
    assert (len(found.deltas) == 1) is whole


@FAMILY
def test_on_vllm_log_probabilities_are_those_of_the_content(family: str) -> None:
    asked = request()
    found = answer_on_vllm(family, replace(asked, params=replace(asked.params, top_logprobs=0)), script(family))

    assert b"".join(found.logprobs).decode() == CONTENT


@FAMILY
@pytest.mark.parametrize("budget", [None, 5])
def test_on_vllm_a_schema_applies_after_the_thinking(family: str, budget: int | None) -> None:
    asked = request(replace(ON, budget=budget), constraint=NUMBER)

    found = answer_on_vllm(family, asked, script(family, JSON))

    assert (found.reasoning, found.content) == (THOUGHT[:budget].strip(), JSON)
    assert budget is None or found.n_reasoning == budget


# --- what reaches the template ----------------------------------------------------------------------------------------


def prompt_of(family: str, asked: Request) -> tuple[str, tuple[str, ...]]:
    """Return the prompt of a request as text, and the fields that do nothing."""
    with engine_of(family, script(family) if family in FORMS else Script("", "", "?")) as (engine, runner):
        made = engine._texts.engine_input(asked, engine._spacing, None, matchers=1)
        return runner.spell(made.tokens).decode(), made.ignored


def parsed(role: str = "tool", usual: tuple[RoleDefaults, ...] = (), **fields: Any) -> Request:
    body = {"model": role, "messages": [{"role": "user", "content": "2+2?"}]} | fields
    return parse_chat(body, usual).request


@pytest.mark.parametrize(
    ("family", "fields", "end"),
    [
        ("think", {}, "[answer]"),
        ("think", {"reasoning_effort": "none"}, "</think>\n\n"),
        ("think", {"chat_template_kwargs": {"enable_thinking": False}}, "</think>\n\n"),
        ("think", {"chat_template_kwargs": {"thinking": False}}, "</think>\n\n"),
        ("think, begun in the prompt", {}, "<think>\n"),
        ("granite", {}, "[answer]"),
        ("mistral", {"reasoning_effort": "none"}, "[answer][THINK][/THINK]"),
        ("gemma-4", {}, "<|channel>thought\n<channel|>"),
        ("gemma-4", {"chat_template_kwargs": {"enable_thinking": True}}, "[answer]"),
        ("gpt-oss", {"reasoning_effort": "none"}, "[answer]<|channel|>final<|message|>"),
    ],
)
def test_the_switch_of_the_template_is_always_sent(family: str, fields: dict[str, Any], end: str) -> None:
    assert prompt_of(family, parsed(**fields))[0].endswith(end)


@pytest.mark.parametrize(
    ("effort", "said"), [("low", "low"), ("minimal", "low"), ("xhigh", "high"), ("high", "high"), ("none", "medium")]
)
def test_the_effort_is_said_in_words_that_gpt_oss_knows(effort: str, said: str) -> None:
    assert f"Reasoning: {said}\n" in prompt_of("gpt-oss", parsed(reasoning_effort=effort))[0]


def test_every_variable_reaches_the_template_and_its_control_tokens_are_text() -> None:
    asked = parsed(chat_template_kwargs={"reasoning_effort": "<|channel|>final"})
    with engine_of("gpt-oss", script("gpt-oss")) as (engine, runner):
        tokens = engine._texts.engine_input(asked, engine._spacing, None, matchers=1).tokens

    assert b"Reasoning: <|channel|>final" in runner.spell(tokens)
    assert not set(tokens) & set(runner.control_tokens.ids.values())


@pytest.mark.parametrize(
    ("family", "fields", "ignored"),
    [
        ("think", {"reasoning_effort": "low"}, ("reasoning_effort",)),
        ("think", {"reasoning_effort": "none", "thinking_budget": 5, "include_reasoning": False}, ()),
        ("think", {"chat_template_kwargs": {"mood": "good"}}, ("chat_template_kwargs.mood",)),
        ("gpt-oss", {"reasoning_effort": "low"}, ()),
        ("none", {"reasoning_effort": "low", "thinking_budget": 5}, ("reasoning_effort", "thinking_budget")),
        ("none", {"chat_template_kwargs": {"enable_thinking": False}}, ("chat_template_kwargs.enable_thinking",)),
    ],
)
def test_fields_that_do_nothing_for_a_model_are_named(
    family: str, fields: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    assert prompt_of(family, parsed(**fields))[1] == ignored


def test_the_thinking_of_earlier_answers_reaches_a_template_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{% endfor %}"
    monkeypatch.setitem(TEMPLATES, "none", reads + TEMPLATES["none"])
    past = [{"role": "assistant", "content": "4", "reasoning_content": "hm"}, {"role": "user", "content": "Sure?"}]

    prompt, ignored = prompt_of("none", parsed(messages=past))

    assert (prompt, ignored) == ("(hm)[assistant]4[user]Sure?[answer]", ())
    assert prompt_of("think", parsed(messages=past))[1] == ("reasoning_content",)


# --- replies ----------------------------------------------------------------------------------------------------------


def nobody_hangs_up() -> HttpRequest:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    return HttpRequest({"type": "http", "headers": []}, receive)


def reply_to(family: str, body: dict[str, Any], written: Script | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body and the headers of a whole reply."""

    async def make(engine: RunnerEngine, asked: Generate) -> tuple[dict[str, Any], dict[str, str]]:
        reply = ChatReply("id", 0, "tool", reasoning=asked.include_reasoning)
        response = await complete(Model(engine), asked, reply, nobody_hangs_up())
        return json.loads(bytes(response.body)), dict(response.headers)

    asked = parse_chat({"model": "tool", "messages": [{"role": "user", "content": "2+2?"}], "temperature": 0} | body)
    with engine_of(family, written or script(family)) as (engine, _):
        return asyncio.run(make(engine, asked))


def test_a_reply_has_the_thinking_apart_and_counts_it() -> None:
    body, headers = reply_to("think", {"reasoning_effort": "high"})

    [choice] = body["choices"]
    assert choice["message"]["content"] == CONTENT
    assert choice["message"]["reasoning_content"] == THOUGHT
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] >= n_bytes(THOUGHT)
    assert headers["x-tourkit-ignored"] == "reasoning_effort"


def test_a_reply_without_reasoning_counts_it_all_the_same() -> None:
    body, headers = reply_to("think", {"include_reasoning": False})

    assert "reasoning_content" not in body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] >= n_bytes(THOUGHT)
    assert "x-tourkit-ignored" not in headers


def test_a_reply_under_a_schema_is_checked_without_its_thinking() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}

    body, _ = reply_to("gpt-oss", {"response_format": form}, script("gpt-oss", JSON))

    assert body["tourkit"]["choices"][0]["valid"]
    assert body["choices"][0]["message"]["reasoning_content"] == THOUGHT


def test_an_answer_whose_thinking_took_all_tokens_says_so() -> None:
    found = checked(Choice("", Finish.LENGTH, None, "hm"), judge(json.dumps(SCHEMA), "", may_repair=True))

    assert (found.cut_off, "thinking" in found.errors[0]) == (True, True)


@pytest.mark.parametrize("shown", [True, False])
def test_a_stream_has_the_thinking_in_chunks_of_its_own(shown: bool) -> None:
    async def events(engine: RunnerEngine, asked: Generate) -> list[dict[str, Any]]:
        model, http = Model(engine), nobody_hangs_up()
        generation = await Generation.start(model, asked.request, http)
        assert generation is not None
        reply = ChatReply("id", 0, "tool", reasoning=asked.include_reasoning)
        text = b"".join([line async for line in stream(model, generation, reply, asked, http)])
        return [json.loads(event.removeprefix(b"data: ")) for event in text.split(b"\n\n")[:-2]]

    body = {"model": "tool", "messages": [{"role": "user", "content": "2+2?"}], "temperature": 0, "stream": True}
    asked = parse_chat(body | {"include_reasoning": shown})
    with engine_of("gpt-oss", script("gpt-oss")) as (engine, _):
        chunks = asyncio.run(events(engine, asked))

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:]]
    assert "".join(delta.get("content", "") for delta in deltas) == CONTENT
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (THOUGHT if shown else "")
    assert all(delta for delta in deltas[:-1])


# --- the fields and the defaults of a role ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, Thinking(False, "low", 7)),
        ({"reasoning_effort": "high"}, Thinking(True, "high", 7)),
        ({"reasoning_effort": "none"}, Thinking(False, "none", 7)),
        ({"chat_template_kwargs": {"enable_thinking": True}, "thinking_token_budget": 0}, Thinking(True, "low", 0)),
    ],
)
def test_a_request_goes_before_the_defaults_of_its_role(fields: dict[str, Any], thinking: Thinking) -> None:
    usual = (RoleDefaults("tool", thinking=False, effort="low", thinking_budget=7),)

    assert parsed(usual=usual, **fields).thinking == thinking
    assert parsed("brain", usual).thinking == Thinking()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "very"}, "reasoning_effort"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_budget": 1, "thinking_token_budget": 2}, "thinking_budget"),
        ({"include_reasoning": "yes"}, "include_reasoning"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"a\nb": 1}}, "chat_template_kwargs.a\nb"),
        ({"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}, "messages[0].reasoning_content"),
        ({"messages": [{"role": "assistant", "content": "a", "reasoning": 1}]}, "messages[0].reasoning"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parsed(**fields)

    assert refused.value.param == param

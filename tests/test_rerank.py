"""POST /v1/rerank: documents in the order of their scores, by a reranker or by yes and no of a chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from asgi import Answer, ask
from gguf_files import rewrite, write_bert, write_qwen3
from idle_engine import IdleEngine
from judge_runner import JudgeRunner
from thinking_runner import TEMPLATES

from tourkit import backends
from tourkit.backends.base import Engine, Scorer, Scores
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.client import Client
from tourkit.errors import EngineDead, LocalError, RequestError
from tourkit.generation import EngineInfo
from tourkit.headers.check import check_weights
from tourkit.launch import Launch
from tourkit.server.api.rerank_fields import parse_rerank
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.gateway.paths import FORWARDED, canonical
from tourkit.server.inprocess import load as load_here
from tourkit.server.worker.app import ModelServer

PROMPT = "<|start|>user\n<Query>: {query}\n<Document>: {document}<|end|>\n<|start|>assistant\n"
QUERY = "the name of {document}"
DOCUMENTS = ["date of bill", "name", "x", "total is due " * 3, "", "the name the name"]
FITS = [f"fits: {chance}" for chance in (0.25, 0.875, 0.5)]
BODY = {"model": "rerank", "query": "q", "documents": FITS}
# One row and many rows use different kernels, which round differently.
TOLERANCE = 2e-3
starts = pytest.mark.starts


def asked(engine: Engine, body: Any = BODY, path: str = "/v1/rerank") -> Answer:
    """Return the answer of a worker with this engine."""
    app = ModelServer(engine, "secret").app()
    return asyncio.run(ask(app, path, body, headers={SECRET_HEADER: "secret"}))


def order(answer: Answer) -> list[int]:
    assert answer.status == 200, answer.raw
    return [result["index"] for result in answer.body["results"]]


# --- the reply ------------------------------------------------------------------------------------------------------


class Fixed(IdleEngine):
    """A reranker whose scores are given. Its tokens are the characters."""

    info = EngineInfo("stand-in", 100, 1, 256)

    def __init__(self, *scores: float) -> None:
        self._scores = scores
        self.documents: list[str] = []

    def submit(self, *_: Any) -> Any:
        raise RequestError("it writes no text")

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return list(text.encode())

    def detokenize(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()

    def score(self, query: str, documents: Any) -> Future[Scores]:
        self.documents = list(documents)
        done: Future[Scores] = Future()
        done.set_result(Scores(self._scores, 12))
        return done


def test_the_best_document_comes_first_and_equal_ones_keep_their_order() -> None:
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "b", "id": 7}, "c", "d"]}

    answer = asked(Fixed(0.5, 0.75, 0.5, 0.25), body).body

    assert [result["index"] for result in answer["results"]] == [1, 0, 2, 3]
    assert answer["results"][0] == {"index": 1, "relevance_score": 0.75, "document": {"text": "b", "id": 7}}
    assert answer["results"][1]["document"] == {"text": "a"}
    assert (answer["model"], answer["object"]) == ("m", "list")
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert answer["meta"]["tokens"] == {"input_tokens": 12, "output_tokens": 0}
    assert answer["id"].startswith("rerank-")


@pytest.mark.parametrize(("top", "expected"), [(1, [1]), (2, [1, 2]), (9, [1, 2, 0]), (None, [1, 2, 0])])
def test_only_the_best_ones_are_returned_if_the_request_says_how_many(top: int | None, expected: list[int]) -> None:
    assert order(asked(Fixed(0.25, 0.75, 0.5), BODY | {"top_n": top})) == expected


def test_documents_are_left_out_if_the_request_says_so() -> None:
    results = asked(Fixed(0.25, 0.75, 0.5), BODY | {"return_documents": False}).body["results"]

    assert all(result.keys() == {"index", "relevance_score"} for result in results)


def test_as_many_tokens_of_each_document_count_as_the_request_says() -> None:
    engine = Fixed(0.25, 0.75, 0.5)

    answer = asked(engine, BODY | {"documents": ["abcdef", "ab", "abc"], "max_tokens_per_doc": 3})

    assert engine.documents == ["abc", "ab", "abc"]
    assert answer.body["results"][0]["document"] == {"text": "ab"}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": {"image": "x"}}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1]"),
        ({"documents": [{"image": "http://x"}]}, "documents[0]"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"documents": ["a", "x" * (2**20 + 1)]}, "documents[1]"),
        ({"query": "x" * (2**20 + 1)}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"texts": ["a"]}, "texts"),
        ({"model": ""}, "model"),
    ],
)
def test_a_request_that_cannot_be_ranked_is_refused_by_name(extra: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_rerank(BODY | extra)

    assert refused.value.param == param
    assert "\n" not in str(refused.value)


def test_fields_that_jinas_and_coheres_clients_send_are_taken() -> None:
    extra = {"rank_fields": ["text"], "max_chunks_per_doc": 10, "priority": 1, "return_documents": None, "top_n": None}

    assert parse_rerank(BODY | extra) == parse_rerank(BODY)


@pytest.mark.parametrize(
    "path", ["/rerank", "/v1/rerank/", "/v1/v1/rerank", "/v2/rerank", "/v1/v2/rerank", "/reranking", "/v1/reranking"]
)
def test_every_clients_path_leads_to_the_route(path: str) -> None:
    assert canonical(path) == "/v1/rerank"
    assert "/v1/rerank" in FORWARDED


def test_an_embedding_model_makes_no_scores_and_says_what_does() -> None:
    class Embeds(IdleEngine):
        info = EngineInfo("stand-in", 100, 1, 256)

        def submit(self, *_: Any) -> Any: ...

    answer = asked(Embeds())  # type: ignore[arg-type]

    assert (answer.status, answer.body["error"]["code"]) == (400, "unsupported_model")
    assert "role rerank" in answer.body["error"]["message"]


def test_documents_of_a_client_that_hangs_up_leave_the_queue() -> None:
    future: Future[Scores] = Future()
    engine = Fixed()
    engine.score = lambda *_: future  # type: ignore[method-assign]
    messages = [{"type": "http.request", "body": json.dumps(BODY).encode()}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/v1/rerank", "query_string": b""}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(SECRET_HEADER.encode(), b"secret")]
    asyncio.run(ModelServer(engine, "secret").app()({**scope, "headers": headers}, receive, send))

    assert future.cancelled()
    assert sent[0]["status"] == 499


# --- a chat model says yes or no ------------------------------------------------------------------------------------


@pytest.fixture
def judge() -> Iterator[Callable[..., tuple[JudgeRunner, RunnerEngine]]]:
    engines = []

    def made(family: str = "none", **more: Any) -> tuple[JudgeRunner, RunnerEngine]:
        runner = JudgeRunner(family, **more)
        engines.append(RunnerEngine(runner, "stand-in"))
        return runner, engines[-1]

    yield made
    for engine in engines:
        engine.close()


def test_a_chat_model_ranks_by_the_probability_of_yes_and_the_reply_says_so(judge: Any) -> None:
    _, engine = judge()

    answer = asked(engine)

    assert order(answer) == [1, 2, 0]
    scores = [result["relevance_score"] for result in answer.body["results"]]
    assert scores == pytest.approx([0.875, 0.5, 0.25], abs=1e-6)
    assert answer.headers["x-tourkit-emulated"] == "rerank"


def test_a_reranker_is_not_emulated() -> None:
    assert "x-tourkit-emulated" not in asked(Fixed(0.25, 0.75, 0.5)).headers


def test_the_prompt_is_that_of_qwen3_reranker(judge: Any) -> None:
    runner, engine = judge("think", slots=1)

    asked(engine, BODY | {"query": "what?", "documents": ["fits: 0.5"]})

    assert runner.prompts == [
        "[system]Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".[user]<Instruct>: Given a web search query, retrieve relevant '
        "passages that answer the query\n<Query>: what?\n<Document>: fits: 0.5[answer]<think>\n\n</think>\n\n"
    ]


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_models_that_think_answer_without_thinking(family: str, judge: Any) -> None:
    _, engine = judge(family)

    assert order(asked(engine)) == [1, 2, 0]


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}<{{ m.content }}>",
            "<J",
        ),
        ("{% for m in messages %}{% if m.role == 'user' %}<{{ m.content }}>{% endif %}", "<J"),
        ("{{ raise_exception('no') }}{% for m in messages %}", "Judge"),
    ],
    ids=["refuses system messages", "does not show them", "refuses everything"],
)
def test_a_template_without_system_messages_gets_the_task_in_another_place(
    template: str, begin: str, judge: Any
) -> None:
    runner, engine = judge(template=template + "{% endfor %}")

    assert order(asked(engine)) == [1, 2, 0]
    assert all(prompt.startswith(begin) and prompt.count("Judge whether") == 1 for prompt in runner.prompts)


def test_the_prompts_tokens_are_counted(judge: Any) -> None:
    runner, engine = judge()

    used = asked(engine).body["usage"]

    assert used["prompt_tokens"] == sum(len(prompt) for prompt in runner.prompts)


def test_a_model_that_cannot_tell_yes_from_no_is_refused(judge: Any) -> None:
    _, engine = judge()
    engine.tokenize = lambda text, *, add_special: [7, *text.encode()]

    error = asked(engine).body["error"]

    assert (error["param"], error["code"]) == ("model", "unsupported_model")


def test_many_documents_are_ranked_although_the_queue_is_short(judge: Any) -> None:
    _, engine = judge()
    chances = [round(0.05 + 0.9 * (i * 37 % 100) / 100, 4) for i in range(100)]

    answer = asked(engine, BODY | {"documents": [f"fits: {chance}" for chance in chances]})

    assert order(answer) == sorted(range(100), key=lambda i: -chances[i])


def test_a_document_that_does_not_fit_the_context_is_named_with_the_fix(judge: Any) -> None:
    _, engine = judge()

    answer = asked(engine, BODY | {"documents": ["fits: 0.5", "x" * 5000]})

    error = answer.body["error"]
    assert (answer.status, error["param"], error["code"]) == (400, "documents", "context_length_exceeded")
    assert "max_tokens_per_doc" in error["message"]
    assert order(asked(engine, BODY | {"documents": ["fits: 0.5", "x" * 5000], "max_tokens_per_doc": 100})) == [0, 1]


@starts
def test_a_real_library_gives_the_same_probability_as_its_logits(tiny_gguf: Path) -> None:
    """This model has no tokens for the words, so their first letters count."""
    engine = backends.load(Launch("m", "llama_cpp", str(tiny_gguf), 2, 1024, 1))
    answer = asked(engine, {"model": "m", "query": "q", "documents": ["the name", "x"]})
    yes, no = (engine.tokenize(letter, add_special=False)[0] for letter in "yn")
    engine.close()

    runner = LlamaRunner(tiny_gguf, slots=1, context=1024, threads=1)
    for result in answer.body["results"]:
        text = result["document"]["text"]
        tokens = runner.tokenize(chat(f"<Query>: q\n<Document>: {text}"), add_special=False, parse_special=True)
        rows = [runner.add(token, pos, 0, logits=pos == len(tokens) - 1) for pos, token in enumerate(tokens)]
        assert runner.decode()
        logits = runner.logits(rows[-1] or 0)
        expected = 1 / (1 + np.exp(logits[no] - logits[yes]))
        runner.truncate(0, 0)
        assert result["relevance_score"] == pytest.approx(expected, abs=TOLERANCE)
    runner.close()


def chat(asked: str) -> str:
    """Return the prompt in the form of the tiny model's chat template."""
    task = (
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".'
    )
    instruct = "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    return f"<|start|>system\n{task}<|end|>\n<|start|>user\n{instruct}{asked}<|end|>\n<|start|>assistant\n"


# --- rerankers in GGUF ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rerankers: an encoder with a head, a decoder with the answers of its output matrix; and that decoder without."""
    folder = tmp_path_factory.mktemp("rerankers")
    yes, no = 70, 80
    return {
        "encoder": write_bert(folder / "encoder.gguf", pooling=gguf.PoolingType.RANK, labels=["LABEL_0"]),
        "decoder": write_qwen3(folder / "decoder.gguf", tiny_gguf, answers=(yes, no), prompt=PROMPT),
        "writer": write_qwen3(folder / "writer.gguf", tiny_gguf),
    }


@pytest.fixture
def loaded(files: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    engines = []

    def load(name: str, **more: Any) -> Any:
        engines.append(backends.load(Launch(name, "llama_cpp", str(files[name]), 1, 512, 1, **more)))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


@starts
def test_scores_of_an_encoder_are_those_of_a_direct_computation(loaded: Any, files: dict[str, Path]) -> None:
    engine = loaded("encoder")

    found = engine.score("the name", DOCUMENTS).result(timeout=60)

    assert isinstance(engine, Scorer)
    weights = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(files["encoder"]).tensors}
    query, *texts = (engine.tokenize(text, add_special=True) for text in ("the name", *DOCUMENTS))
    pairs = [[*query, *text[1:]] for text in texts]
    assert found.n_tokens == sum(map(len, pairs))
    logits = [bert_score(weights, pair) for pair in pairs]
    assert found.values == pytest.approx([1 / (1 + np.exp(-logit)) for logit in logits], abs=TOLERANCE)
    assert max(found.values) - min(found.values) > 5 * TOLERANCE


@starts
def test_scores_of_a_decoder_are_the_probability_of_yes_after_its_prompt(loaded: Any, files: dict[str, Path]) -> None:
    """As Qwen3-Reranker in llama.cpp: its head has the rows of yes and no of the output matrix."""
    documents = [*DOCUMENTS, "<|end|> {query}", "the name " * 50]
    engine = loaded("decoder")
    found = engine.score(QUERY, documents).result(timeout=60).values

    runner = LlamaRunner(files["writer"], slots=1, context=512, threads=1)
    control = runner.control_tokens
    for document, score in zip(documents, found, strict=True):
        [texts], mark = control.marked([{"query": QUERY, "document": document}])
        start, _, rest = PROMPT.partition("{query}")
        text = start + texts["query"] + rest.replace("{document}", texts["document"])
        tokens = runner.tokenize_parts(control.parts(text, mark), add_special=False)
        rows = [runner.add(token, pos, 0, logits=pos == len(tokens) - 1) for pos, token in enumerate(tokens)]
        assert runner.decode()
        logits = runner.logits(rows[-1] or 0)
        assert score == pytest.approx(1 / (1 + np.exp(logits[80] - logits[70])), abs=TOLERANCE)
        runner.truncate(0, 0)
    runner.close()


@starts
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_documents_together_get_the_scores_they_get_alone(name: str, loaded: Any) -> None:
    engine = loaded(name)
    together = engine.score("the name", DOCUMENTS).result(timeout=60).values

    alone = [engine.score("the name", [text]).result(timeout=60).values[0] for text in DOCUMENTS]

    assert together == pytest.approx(alone, abs=TOLERANCE)


@starts
def test_the_route_serves_a_reranker_and_says_what_it_cannot_do(loaded: Any) -> None:
    engine = loaded("encoder")

    answer = asked(engine, {"model": "rerank", "query": "the name", "documents": DOCUMENTS})

    scores = [result["relevance_score"] for result in answer.body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    chat = {"model": "rerank", "messages": [{"role": "user", "content": "Hello"}]}
    refused = asked(engine, chat, "/v1/chat/completions")
    assert (refused.status, refused.body["error"]["code"]) == (400, "unsupported_model")
    assert "/v1/rerank" in refused.body["error"]["message"]
    too_long = asked(engine, {"model": "rerank", "query": "q", "documents": ["x", "the " * 100]})
    assert too_long.body["error"]["param"] == "documents"
    assert "documents[1] with the query has" in too_long.body["error"]["message"]


@starts
def test_a_closed_engine_answers_everybody(loaded: Any) -> None:
    engine = loaded("encoder")
    engine.close()

    with pytest.raises(EngineDead):
        engine.score("q", ["a"])


@starts
@pytest.mark.parametrize(
    ("labels", "why"),
    [((), "without the weights of its head"), (("a", "b"), "its head gives 2 scores")],
    ids=["no head", "a classifier"],
)
def test_what_is_not_a_reranker_is_refused_when_it_is_loaded(labels: tuple[str, ...], why: str, tmp_path: Path) -> None:
    path = write_bert(tmp_path / "other.gguf", pooling=gguf.PoolingType.RANK, labels=labels)

    with pytest.raises(LocalError, match=rf"other\.gguf: .*{why}"):
        backends.load(Launch("m", "llama_cpp", str(path), 1, 64, 1))


@starts
def test_a_decoder_without_a_prompt_for_reranking_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    path = write_qwen3(tmp_path / "m.gguf", tiny_gguf, answers=(70, 80))

    with pytest.raises(LocalError, match="it has no prompt for reranking"):
        backends.load(Launch("m", "llama_cpp", str(path), 1, 64, 1))


def test_a_split_reranker_may_have_its_head_in_any_part(files: dict[str, Path], tmp_path: Path) -> None:
    first = rewrite(files["encoder"], tmp_path / "m.gguf", parts=2)

    check_weights(first)


@starts
def test_tourkit_load_ranks_in_process(files: dict[str, Path]) -> None:
    with load_here("rerank", files["encoder"]) as model:
        found = model.rerank("the name", DOCUMENTS, top_n=2)

    assert isinstance(model, Client)
    assert [each.document for each in found] == [DOCUMENTS[each.index] for each in found]
    assert len(found) == 2
    assert found[0].score >= found[1].score


# --- a direct computation -------------------------------------------------------------------------------------------


def bert_score(weights: dict[str, np.ndarray], tokens: list[int]) -> float:
    """Return the logit of `write_bert`'s model with a head."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    x = weights["token_embd.weight"][tokens] + weights["position_embd.weight"][: len(tokens)]
    x = normed(x + weights["token_types.weight"][0])
    heads = [np.split(linear(f"blk.0.{name}", x), 2, axis=1) for name in ("attn_q", "attn_k", "attn_v")]
    mixed = []
    for query, key, value in zip(*heads, strict=True):
        chances = np.exp(query @ key.T / np.sqrt(query.shape[1]))
        mixed.append(chances / chances.sum(1, keepdims=True) @ value)
    x = normed(x + linear("blk.0.attn_output", np.concatenate(mixed, axis=1)))
    inner = linear("blk.0.ffn_up", x)
    gelu = inner * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    x = normed(x + linear("blk.0.ffn_down", gelu))
    return float(linear("cls.output", np.tanh(linear("cls", x[0])))[0])

"""Embeddings: one vector a text, the same in any batch, through the engine and through the OpenAI client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gguf
import numpy as np
import openai
import pytest
from gguf_files import BERT_CONTEXT, BERT_WIDTH, rewrite, write_bert
from serving import Serving, serving

from tourkit.backends.base import Embedder, Embeddings, Engine
from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.llama_cpp import load
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, write_index
from tourkit.checks.answers import Server, answer
from tourkit.errors import EngineDead, LocalError, QueueFull, RequestError
from tourkit.generation import Request, SamplingParams
from tourkit.launch import Launch
from tourkit.manifest.models import VariantId
from tourkit.server.contract import SECRET_HEADER
from tourkit.server.worker.app import ModelServer

pytestmark = pytest.mark.starts

TEXTS = ["the name", "date of bill", "x", "total is due " * 12, "the number of the bill is due", "the name the name"]
# One row and many rows use different kernels, which round differently. The vectors have length 1.
TOLERANCE = 2e-3


@pytest.fixture(scope="session")
def files(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Embedding models of every pooling: encoders with mean and first token, a decoder with its last token."""
    folder = tmp_path_factory.mktemp("embedding")
    return {
        "mean": write_bert(folder / "mean.gguf"),
        "cls": write_bert(folder / "cls.gguf", pooling=gguf.PoolingType.CLS),
        "last": rewrite(tiny_gguf, folder / "last.gguf", pooling_type=int(gguf.PoolingType.LAST)),
    }


@pytest.fixture(params=["mean", "cls", "last"])
def engine(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[BatchEmbedder]:
    engine = BatchEmbedder(LlamaRunner(files[request.param], threads=1), "llama_cpp")
    yield engine
    engine.close()


@pytest.fixture
def bert(files: dict[str, Path]) -> Iterator[BatchEmbedder]:
    engine = BatchEmbedder(LlamaRunner(files["mean"], threads=1), "llama_cpp", max_waiting=100)
    yield engine
    engine.close()


def vectors(engine: Embedder, *texts: Any) -> np.ndarray:
    return engine.embed(texts).result(timeout=60).vectors


def test_texts_together_get_the_vectors_they_get_alone(engine: BatchEmbedder) -> None:
    together = vectors(engine, *TEXTS)

    alone = np.concatenate([vectors(engine, text) for text in TEXTS])

    assert together.shape == (len(TEXTS), engine.size)
    assert abs(together - alone).max() < TOLERANCE
    assert abs(alone[0] - alone[1]).max() > 50 * TOLERANCE


def test_every_vector_has_length_1(engine: BatchEmbedder) -> None:
    lengths = np.linalg.norm(vectors(engine, *TEXTS), axis=1)

    assert lengths == pytest.approx(1, abs=1e-5)


def test_token_ids_are_taken_as_they_are(bert: BatchEmbedder) -> None:
    tokens = bert.tokenize("the name", add_special=True)

    by_text, by_ids = vectors(bert, "the name"), vectors(bert, tokens)
    without_ends = vectors(bert, bert.tokenize("the name", add_special=False))

    assert abs(by_text - by_ids).max() < TOLERANCE
    assert abs(by_text - without_ends).max() > TOLERANCE


def test_texts_of_many_requests_share_calls_and_get_back_to_their_own(engine: BatchEmbedder) -> None:
    alone = vectors(engine, *TEXTS)
    calls = engine.stats().decode_steps

    futures: list[Future[Embeddings]] = [engine.embed([TEXTS[i % len(TEXTS)]]) for i in range(60)]
    found = np.concatenate([future.result(timeout=60).vectors for future in futures])

    assert abs(found - alone[[i % len(TEXTS) for i in range(60)]]).max() < TOLERANCE
    assert engine.stats().decode_steps - calls < 60
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_text_longer_than_a_call_of_a_causal_model_is_taken_in_several(files: dict[str, Path]) -> None:
    found = []
    for n_batch in (32, 512):
        engine = BatchEmbedder(LlamaRunner(files["last"], context=512, n_batch=n_batch, threads=1), "llama_cpp")
        found.append(vectors(engine, "the name and the date " * 20, "short"))
        engine.close()

    assert abs(found[0] - found[1]).max() < TOLERANCE


def test_deterministic_embeddings_are_equal_to_the_bit_under_load(files: dict[str, Path]) -> None:
    engine = load(Launch("embed", "llama_cpp", str(files["mean"]), 4, 64, 1, deterministic=True))
    assert isinstance(engine, BatchEmbedder)
    alone = [vectors(engine, text) for text in TEXTS]
    found: dict[int, np.ndarray] = {}

    threads = [
        threading.Thread(target=lambda i=i: found.update({i: vectors(engine, TEXTS[i])})) for i in range(len(TEXTS))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    engine.close()
    assert all((found[i] == alone[i]).all() for i in range(len(TEXTS)))


@pytest.mark.parametrize(
    ("text", "code"),
    [("the " * BERT_CONTEXT, "context_length_exceeded"), ([5, 10**6], None), ([], None)],
    ids=["too long", "no such token", "empty"],
)
def test_a_text_that_cannot_be_embedded_is_refused_by_its_place(
    bert: BatchEmbedder, text: Any, code: str | None
) -> None:
    with pytest.raises(RequestError, match=r"input\[1\]") as refused:
        bert.embed(["the name", text])

    assert (refused.value.param, refused.value.code) == ("input", code)


def test_more_texts_than_may_wait_are_refused(bert: BatchEmbedder) -> None:
    with pytest.raises(QueueFull, match="100 texts"):
        bert.embed(["the name"] * 101)


def test_texts_nobody_waits_for_any_more_leave_the_queue(files: dict[str, Path]) -> None:
    engine = BatchEmbedder(LlamaRunner(files["mean"], threads=1), "llama_cpp")
    futures = [engine.embed(["the name of the bill"] * 2000) for _ in range(3)]

    cancelled = [future.cancel() for future in futures[1:]]
    futures[0].result(timeout=60)
    vectors(engine, "the name")

    embedded, a_text = engine.stats().prompt_tokens, len(engine.tokenize("the name of the bill", add_special=True))
    engine.close()
    assert cancelled == [True, True]
    assert embedded < 2 * 2000 * a_text


def test_closing_answers_everybody_who_still_waits(files: dict[str, Path]) -> None:
    engine = BatchEmbedder(LlamaRunner(files["mean"], threads=1), "llama_cpp")
    futures = [engine.embed(["the name"] * 2000) for _ in range(4)]

    engine.close()

    endings = [future.exception(timeout=60) for future in futures]
    assert isinstance(endings[-1], EngineDead)
    with pytest.raises(EngineDead):
        engine.embed(["late"])
    with pytest.raises(EngineDead):
        engine.embed([[5]])


def test_a_model_decides_by_its_pooling_which_engine_it_gets(files: dict[str, Path], tiny_gguf: Path) -> None:
    engines: list[Engine] = [load(Launch("x", "llama_cpp", str(path), 1, 64, 1)) for path in (files["last"], tiny_gguf)]
    for engine in engines:
        engine.close()

    assert [isinstance(engine, Embedder) for engine in engines] == [True, False]
    with pytest.raises(RequestError, match="/v1/embeddings"):
        engines[0].submit(Request(prompt="x", params=SamplingParams(max_tokens=1)), lambda delta: None)


@pytest.mark.parametrize(
    ("pooling", "why"),
    [(gguf.PoolingType.NONE, "without pooling")],
    ids=["no pooling"],
)
def test_an_encoder_that_gives_no_embeddings_is_refused_when_it_is_loaded(
    tmp_path: Path, pooling: gguf.PoolingType, why: str
) -> None:
    path = write_bert(tmp_path / "other.gguf", pooling=pooling)

    with pytest.raises(LocalError, match=rf"other\.gguf: .*{why}"):
        LlamaRunner(path, threads=1)


def test_an_encoder_takes_any_cache_type_for_it_has_no_cache(files: dict[str, Path]) -> None:
    """Its heads have 16 numbers, which would not work with q8_0."""
    engine = load(Launch("embed", "llama_cpp", str(files["mean"]), 4, 64, 1, cache_type="q8_0"))
    assert isinstance(engine, BatchEmbedder)

    assert vectors(engine, "the name").shape == (1, BERT_WIDTH)

    engine.close()


def test_a_client_that_hangs_up_takes_its_texts_out_of_the_queue() -> None:
    """The worker's own app over an engine that never answers."""
    future: Future[Embeddings] = Future()

    class Stuck(BatchEmbedder):
        def __init__(self) -> None:
            self._size = BERT_WIDTH  # no model

        def embed(self, texts: Any) -> Future[Embeddings]:
            return future

    messages = [{"type": "http.request", "body": b'{"model": "embed", "input": "x"}'}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "query_string": b"", "headers": []}
    scope["headers"] = [(SECRET_HEADER.encode(), b"secret")]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ModelServer(Stuck(), "secret").app()(scope, receive, send))

    assert future.cancelled()
    assert sent[0]["status"] == 499


# --- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(files: dict[str, Path], tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with an embedding model for the role embed, a chat model for tool, and a reranker for rerank."""
    folder = tmp_path_factory.mktemp("both")
    root = folder / "bundle"
    models, variants = [], []
    head = write_bert(folder / "head.gguf", pooling=gguf.PoolingType.RANK, labels=["LABEL_0"])
    for name, file in (("tiny-bert", files["mean"]), ("tiny-random", tiny_gguf), ("tiny-head", head)):
        target = root / VariantId(name, "F16").folder / f"{name}.gguf"
        target.parent.mkdir(parents=True)
        target.write_bytes(file.read_bytes())
        models.append(BundleModel(name, f"tourkit/{name}", "apache-2.0", 8192, None, False))
        variants.append(BundleVariant(name, "F16", "gguf", f"tourkit/{name}", "main", "1" * 40))
    roles = {"tool": ["tiny-random"], "embed": ["tiny-bert"], "rerank": ["tiny-head"]}
    write_index(root, build_index(root, "tests", roles, models, variants))
    with serving(root, folder / "log", "--offline", "--context", "512") as running:
        yield running


@pytest.fixture(scope="module")
def openai_client(both: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{both.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def post(served: Serving, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_the_openai_client_gets_a_vector_for_every_text_in_order(openai_client: openai.OpenAI) -> None:
    reply = openai_client.embeddings.create(model="embed", input=TEXTS)

    one_by_one = [openai_client.embeddings.create(model="embed", input=text).data[0].embedding for text in TEXTS]

    assert [item.index for item in reply.data] == list(range(len(TEXTS)))
    assert all(len(item.embedding) == BERT_WIDTH for item in reply.data)
    assert abs(np.array([item.embedding for item in reply.data]) - np.array(one_by_one)).max() < TOLERANCE
    assert reply.model == "embed"


def test_usage_counts_the_tokens_of_all_texts(both: Serving) -> None:
    _, reply = post(both, "/v1/embeddings", {"model": "embed", "input": ["the name", "bill"]})

    assert reply["usage"] == {"prompt_tokens": 4 + 3, "total_tokens": 4 + 3}
    assert reply["object"] == "list"
    assert [item["object"] for item in reply["data"]] == ["embedding", "embedding"]


def test_base64_holds_the_same_numbers_as_float32(both: Serving) -> None:
    _, plain = post(both, "/v1/embeddings", {"model": "embed", "input": "bill", "encoding_format": "float"})
    _, coded = post(both, "/v1/embeddings", {"model": "embed", "input": "bill", "encoding_format": "base64"})

    numbers = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), dtype="<f4")

    assert (numbers == np.array(plain["data"][0]["embedding"], dtype=np.float32)).all()


def test_input_may_be_token_ids(both: Serving) -> None:
    _, tokens = post(both, "/tokenize", {"model": "embed", "prompt": "the name", "add_special_tokens": True})
    ids = tokens["tokens"]

    replies = [post(both, "/v1/embeddings", {"model": "embed", "input": given}) for given in ("the name", ids, [ids])]

    found = [np.array(reply["data"][0]["embedding"]) for _, reply in replies]
    assert all(abs(vector - found[0]).max() < TOLERANCE for vector in found)


def test_the_size_of_the_model_may_be_asked_for(both: Serving) -> None:
    status, _ = post(both, "/v1/embeddings", {"model": "embed", "input": "bill", "dimensions": BERT_WIDTH})

    assert status == 200


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [[5, "a"]]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[4, 99999]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "the " * 100}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 8}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"inputs": "x"}, "inputs"),
        ({"model": "tool"}, "model"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(both: Serving, extra: dict[str, Any], param: str) -> None:
    status, reply = post(both, "/v1/embeddings", {"model": "embed", "input": "bill"} | extra)

    assert (status, reply["error"]["param"]) == (400, param)
    assert "\n" not in reply["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "stream": True}),
        ("/v1/completions", {"prompt": "Hello"}),
    ],
    ids=["chat", "stream", "completion"],
)
def test_an_embedding_model_writes_no_text_and_says_what_to_use(both: Serving, path: str, body: dict[str, Any]) -> None:
    status, reply = post(both, path, {"model": "embed"} | body)

    assert (status, reply["error"]["code"]) == (400, "unsupported_model")
    assert "/v1/embeddings" in reply["error"]["message"]


# --- a reranker beside it -------------------------------------------------------------------------------------------


def test_the_role_rerank_is_served_beside_the_others(both: Serving) -> None:
    body = {"query": "the name", "documents": ["the name", {"text": "bill"}, "x"], "top_n": 2}

    found = {model: post(both, "/v2/rerank", {"model": model} | body) for model in ("rerank", "tool", "embed")}

    assert [status for status, _ in found.values()] == [200, 200, 400]
    assert [len(found[model][1]["results"]) for model in ("rerank", "tool")] == [2, 2]
    assert found["embed"][1]["error"]["code"] == "unsupported_model"


def test_a_rehearsal_asks_the_role_rerank_for_a_ranking(both: Serving) -> None:
    finding = answer(Server(both.url, both.process, both.log), "rerank").finding

    assert finding.status == "ok"
    assert "2 documents ranked after" in finding.detail

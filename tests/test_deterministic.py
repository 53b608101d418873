"""`--deterministic`: on a CPU the same request gives exactly the same text, even if other requests run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner
from fake_runner import FakeRunner
from serving import make_bundle, serving

from tourkit import backends
from tourkit.backends.base import Engine
from tourkit.backends.llama_cpp import load
from tourkit.cli import cli
from tourkit.engine.engine import BatchEngine
from tourkit.errors import LocalError, UsageError
from tourkit.generation import Constraint, Delta, Finish, Request, SamplingParams
from tourkit.launch import Launch

SCHEMA = Constraint.json_schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "total": {"type": "number"}, "tags": {"type": "array"}},
        "required": ["name", "total", "tags"],
    }
)
LONG = "the name and the date and the total of the name " * 30  # several batches of prefill


def chat(text: str, **params: object) -> Request:
    return Request(messages=({"role": "user", "content": text},), params=SamplingParams(**params))  # type: ignore[arg-type]


REQUESTS = [
    chat("the name", max_tokens=25, temperature=0),
    chat("the name", max_tokens=25, temperature=1, seed=1),
    chat("the name and the date", max_tokens=25, temperature=1.5, seed=2, top_p=0.9, frequency_penalty=0.5),
    chat(LONG, max_tokens=15, temperature=1, seed=3),
    chat(LONG + "again", max_tokens=15, temperature=1, seed=4),
    Request(prompt="the name", params=SamplingParams(max_tokens=40, seed=5), constraint=SCHEMA),
    Request(prompt="the name", params=SamplingParams(max_tokens=20, seed=5), n=3),
]


def ask(engine: Engine, request: Request) -> list[str]:
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    engine.submit(request, deltas.put)
    texts, left = [""] * request.n, request.n
    while left:
        delta = deltas.get(timeout=60)
        texts[delta.index] += delta.text
        left -= delta.finish is not None
    return texts


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def engine(request: pytest.FixtureRequest, tiny_gguf: Path) -> Iterator[Engine]:
    engine = load(Launch("tiny", "llama_cpp", str(tiny_gguf), 4, 1024, request.param, deterministic=True))
    yield engine
    engine.close()


def test_a_request_under_load_gets_the_text_it_gets_alone(engine: Engine) -> None:
    alone = [ask(engine, request) for request in REQUESTS]
    order = [5, 3, 0, 6, 2, 4, 1, 3, 6, 5]
    answers: list[list[str] | None] = [None] * len(order)

    def client(place: int) -> None:
        answers[place] = ask(engine, REQUESTS[order[place]])

    clients = [threading.Thread(target=client, args=[place]) for place in range(len(order))]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()

    assert answers == [alone[which] for which in order]


def test_a_sample_of_n_is_the_answer_to_its_own_seed(engine: Engine) -> None:
    samples = ask(engine, Request(prompt="the name", params=SamplingParams(max_tokens=50, seed=7), n=3))

    alone = [
        ask(engine, Request(prompt="the name", params=SamplingParams(max_tokens=50, seed=7 + i)))[0] for i in range(3)
    ]

    assert samples == alone
    assert len(set(samples)) == 3


def test_another_stack_does_not_pretend(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="onnx does not support --deterministic"):
        backends.load(Launch("tiny", "onnx", str(tmp_path), 4, 1024, 1, deterministic=True))


@pytest.mark.starts
def test_the_server_keeps_the_promise_over_http(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    with (
        serving(bundle, tmp_path / "log", "--offline", "--context", "512", "--deterministic") as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def write(seed: int) -> str:
            reply = client.completions.create(model="tool", prompt="the name " * 9, max_tokens=60, seed=seed)
            return reply.choices[0].text

        alone = [write(seed) for seed in range(4)]
        together = list(pool.map(write, [*range(4)] * 4))

    assert together == alone * 4


@pytest.mark.parametrize("option", [("--prompt-cache", "1GiB"), ("--prompt-cache-dir", "kept")])
def test_a_prompt_cache_beside_it_is_refused_for_it_would_stay_empty(option: tuple[str, str]) -> None:
    done = CliRunner().invoke(cli, ["serve", "--deterministic", *option])

    assert isinstance(done.exception, UsageError)
    assert f"so {option[0]} has nothing to keep: choose one of them" in str(done.exception)


def test_every_call_carries_one_sequence_from_cells_of_its_own() -> None:
    """This keeps the promise: then no other row of the batch and no position of the cells can change the rounding."""
    runner = FakeRunner(slots=3)
    engine = BatchEngine(runner, deterministic=True)
    endings: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    for _ in range(5):
        tokens = list(b"the same prompt, which could be shared")
        engine.submit(tokens, SamplingParams(temperature=0), 20, lambda d: endings.put(d) if d.finish else None)
    finished = [endings.get(timeout=60).finish for _ in range(5)]

    engine.close()
    assert all(finish in (Finish.STOP, Finish.LENGTH) for finish in finished)
    assert all(len({slot for _, _, slot, _ in batch}) == 1 for batch in runner.batches)
    assert engine.stats().cached_tokens == 0

"""A load test: cancels, hang-ups, too long prompts, failing grammars. Afterwards everything is free again."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fake_runner import EOG, FakeRunner, FakeSampler, hashed
from serving import Serving, make_bundle, serving
from waiting import until

from tourkit.engine.engine import BatchEngine
from tourkit.errors import EngineError, QueueFull
from tourkit.generation import Delta, Finish, SamplingParams


class FailingMatcher:
    """A grammar of lower-case letters that fails after a while, like a lexer limit."""

    def __init__(self, after: int) -> None:
        self._left = after
        self.reserve = 2
        self.done = self.in_call = False
        self.must_close = True

    def allows(self, token: int) -> bool:
        return token != EOG

    def mask(self, logits: np.ndarray) -> None:
        logits[EOG] = -np.inf

    def closing_token(self, logits: np.ndarray) -> int:
        return EOG

    def accept(self, tokens: list[int]) -> None:
        self._left -= len(tokens)
        if self._left < 0:
            raise EngineError("the grammar failed: out of fuel")

    def forced(self) -> list[int]:
        return [ord("-")] * (self._left % 3)


@pytest.mark.slow
def test_a_storm_of_requests_leaves_every_slot_free_and_every_sequence_ended_once() -> None:
    open_before = FakeSampler.open
    runner = FakeRunner(slots=6, n_ctx=700, n_batch=48, next_token=hashed)
    engine = BatchEngine(runner, max_waiting=60)
    endings: queue.SimpleQueue[tuple[int, int, Finish]] = queue.SimpleQueue()
    expected: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()

    def customer(seed: int) -> None:
        rng = random.Random(seed)
        for turn in range(25):
            done: queue.SimpleQueue[Delta] = queue.SimpleQueue()
            n, key = rng.randint(1, 4), seed * 1000 + turn
            prompt = list(rng.choice([b"shared prefix " * 9, b"other", b"x" * 690]) + bytes([rng.randint(97, 122)]))
            matchers: list[Any] = [FailingMatcher(rng.randint(0, 30)) if rng.random() < 0.3 else None for _ in range(n)]
            params = SamplingParams(temperature=0, stop=rng.choice([(), ("ab",), ("a",)]))
            try:
                submission = engine.submit(prompt, params, rng.randint(1, 40), done.put, matchers)
            except QueueFull:
                continue
            for index in range(n):
                expected.put((key, index))
            if rng.random() < 0.4:
                engine.abort(submission)
            left = n
            while left:
                delta = done.get(timeout=60)
                if delta.finish:
                    endings.put((key, delta.index, delta.finish))
                    left -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(customer, range(8)))

    stats, slots = engine.stats(), engine._slots.slots
    engine.close()
    ended = [endings.get() for _ in range(endings.qsize())]
    assert sorted((key, index) for key, index, _ in ended) == sorted(expected.get() for _ in range(expected.qsize()))
    assert {finish for *_, finish in ended} == {Finish.STOP, Finish.LENGTH, Finish.ABORT, Finish.ERROR}
    assert (stats.running, stats.waiting) == (0, 0)
    assert all(slot.owner is None for slot in slots)
    assert FakeSampler.open == open_before


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def storm(served: Serving, seed: int) -> None:
    """Run one client: good requests, bad requests, and streams that it leaves."""
    rng = random.Random(seed)
    for _ in range(25):
        body: dict[str, Any] = {
            "model": rng.choice(["tool", "brain", "nobody"]),
            "messages": [{"role": "user", "content": rng.choice(["hello", "long " * rng.choice([20, 5000])])}],
            "max_tokens": rng.randint(1, 60),
            "n": rng.randint(1, 3),
            "stream": rng.random() < 0.5,
        }
        if rng.random() < 0.3:
            schema = rng.choice([{"type": "object"}, {"type": "nonsense"}, {"type": "string", "pattern": "("}])
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            if rng.random() < 0.3:
                continue  # hang up without reading
            answer = connection.getresponse()
            assert answer.status in (200, 400, 404, 429)
            if rng.random() < 0.7:
                answer.read()


@pytest.mark.starts
@pytest.mark.slow
def test_a_storm_over_http_leaves_the_worker_alive_idle_and_no_larger(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    with serving(bundle, tmp_path / "log", "--context", "1024") as running:

        def look(path: str) -> Any:
            connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", path)
                data = connection.getresponse().read().decode()
            return json.loads(data) if path == "/health" else data

        def weather(seeds: range) -> int:
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(lambda seed: storm(running, seed), seeds))
            idle = 'sequences_running{model="tiny-random",quant="F16",stack="llama_cpp"} 0'
            until(lambda: idle in look("/metrics"))
            worker = look("/health")["workers"]["tiny-random F16"]
            assert worker["restarts"] == 0
            return memory_of(worker["pid"])

        warm = weather(range(6))
        after = weather(range(6, 18))

    assert after < warm * 1.2
    assert "Traceback" not in (tmp_path / "log").read_text()

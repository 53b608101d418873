"""A model in the caller's own process, with the interface of the client: a stand-in engine, and once the real way."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_worker import LAUNCH
from serving import make_bundle
from thinking_runner import Script, ThinkingRunner
from waiting import until

import tourkit
from tourkit import backends
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.client import AsyncClient, Client, ClientError
from tourkit.errors import LocalError
from tourkit.hardware import probe
from tourkit.hardware.machine import Hardware, InstalledStack
from tourkit.launch import Launch
from tourkit.planning.plan import Placement
from tourkit.server import inprocess
from tourkit.server.inprocess import InProcess
from tourkit.units import GIB

pytest.importorskip("llguidance", reason="llguidance is not installed here")
pytestmark = pytest.mark.starts  # the process that tries constraints

TEXT = 'Да, "здесь".\nHere.'
ENDLESS = "on " * 1000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load sets variables for libraries: no other test may see them."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@contextmanager
def loaded(answer: str = TEXT) -> Iterator[tuple[Client, RunnerEngine]]:
    """A client of a stand-in for a model that always writes the same answer."""
    engine = RunnerEngine(ThinkingRunner("none", Script(answer, answer, "]")), "stand-in")
    with Client(model="tool", transport=InProcess(engine, ("tool", "m"), LAUNCH)) as client:
        yield client, engine


def is_free(engine: RunnerEngine) -> bool:
    stats = engine.stats()
    return not stats.running and not stats.waiting


def test_every_method_of_the_client_works_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with loaded() as (client, _):
        reply = client.chat("hi", temperature=0)
        pieces = list(client.stream([{"role": "user", "content": "hi"}], temperature=0))
        three = client.sample("hi", 3, temperature=0)
        models = client.models()

    assert (reply.text, reply.finish_reason, reply.model) == (TEXT, "stop", "tool")
    assert reply.usage["completion_tokens"] == len(TEXT.encode())
    assert "".join(pieces) == TEXT
    assert len(pieces) > 1
    assert [each.text for each in three] == [TEXT] * 3
    assert models == ["tool", "m"]


def test_constraints_are_tried_and_followed_as_by_a_server() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    with loaded('{"n":4}') as (client, _):
        assert client.structured("2+2?", schema, temperature=0) == {"n": 4}
        with pytest.raises(ClientError) as error:
            client.structured("2+2?", {"type": "no such type"})

    assert (error.value.status, error.value.code) == (400, "invalid_schema")


def test_a_choice_is_one_of_the_options() -> None:
    with loaded("no") as (client, _):
        assert client.choice("2+2=5?", ["yes", "no"], temperature=0) == "no"


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": 9}, "temperature"), ({"temprature": 1}, "temprature"), ({"model": "n"}, "model")],
)
def test_errors_are_those_of_a_server(fields: dict[str, Any], param: str) -> None:
    with loaded() as (client, _), pytest.raises(ClientError) as error:
        client.chat("hi", **fields)

    assert error.value.param == param
    assert error.value.status == (404 if param == "model" else 400)


def test_a_stream_that_is_left_early_frees_its_slot() -> None:
    with loaded(ENDLESS) as (client, engine):
        pieces = client.stream("hi", max_tokens=3000)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        until(lambda: is_free(engine))


def test_an_answer_that_does_not_come_in_time_is_an_error_and_frees_its_slot() -> None:
    with loaded(ENDLESS) as (client, engine):
        with client.clone() as hasty:
            hasty.timeout = 0.01
            with pytest.raises(ClientError, match=r"no answer from the model in this process in 0\.01 s"):
                hasty.chat("hi", max_tokens=3000)
        until(lambda: is_free(engine))


def test_the_model_lives_until_the_last_client_is_closed() -> None:
    with loaded() as (client, _):
        clone = client.clone(model="m")
        client.close()
        reply = clone.chat("hi", temperature=0)
        clone.close()
        late = Client(model="tool", transport=client._transport)
        with pytest.raises(ClientError, match="the model in this process is closed"):
            late.chat("hi")

    assert (reply.text, reply.model) == (TEXT, "m")


def test_a_model_in_this_process_has_no_settings_for_another_process() -> None:
    with loaded() as (client, _), pytest.raises(ClientError, match="set \\$TOURKIT_URL"):
        client.settings()


def test_many_tasks_ask_at_once_and_a_cancelled_one_frees_its_slot() -> None:
    async def run() -> tuple[list[str], str]:
        with loaded() as (client, _):
            async with AsyncClient(client) as model:
                replies = await asyncio.gather(*(model.chat(f"{i}", temperature=0) for i in range(8)))
                pieces = [piece async for piece in model.stream("hi", temperature=0)]
        with loaded(ENDLESS) as (client, engine):
            async with AsyncClient(client) as model:
                asking = asyncio.create_task(model.chat("hi", max_tokens=3000))
                while is_free(engine):
                    await asyncio.sleep(0.001)
                asking.cancel()
                await asyncio.wait({asking})
                while not is_free(engine):
                    await asyncio.sleep(0.001)
        return [reply.text for reply in replies], "".join(pieces)

    assert asyncio.run(run()) == ([TEXT] * 8, TEXT)


# --- load -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What was loaded: a stand-in for each model, on a small machine where vLLM is installed too."""
    found: list[Launch] = []

    def load(launch: Launch) -> RunnerEngine:
        found.append(launch)
        return RunnerEngine(ThinkingRunner("none", Script(TEXT, TEXT, "]")), "stand-in")

    machine = Hardware(1, 4 * GIB, stacks=(InstalledStack("llama_cpp"), InstalledStack("vllm")))
    monkeypatch.setattr(probe, "probe", lambda: machine)
    monkeypatch.setattr(backends, "load", load)
    return found


@pytest.mark.parametrize("given", ["path", "environment"])
def test_a_role_is_loaded_from_a_bundle(
    given: str, loads: list[Launch], tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    if given == "environment":
        monkeypatch.setenv("TOURKIT_BUNDLE", str(bundle))

    with tourkit.load("tool", bundle if given == "path" else None, context=256, slots=3) as client:
        reply = client.chat("hi", temperature=0)

    assert (reply.text, reply.model) == (TEXT, "tool")
    [launch] = loads
    assert Path(launch.path).is_relative_to(bundle)
    assert (launch.model, launch.context, launch.slots) == ("tiny-random", 256, 3)


def test_a_role_is_loaded_from_weights_for_asyncio_too(loads: list[Launch], tiny_gguf: Path) -> None:
    async def run() -> str:
        async with await tourkit.load_async("brain", tiny_gguf) as client:
            return (await client.chat("hi", temperature=0)).text

    assert asyncio.run(run()) == TEXT
    assert [launch.path for launch in loads] == [str(tiny_gguf)]


@pytest.mark.slow
def test_a_real_model_is_loaded_and_answers(tiny_gguf: Path) -> None:
    with tourkit.load("tool", tiny_gguf, context=256, slots=1) as client:
        first, second = (client.chat("hi", temperature=0, max_tokens=4) for _ in range(2))

    assert first.text == second.text != ""


def test_a_server_answers_if_its_url_is_set_and_no_path_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOURKIT_URL", "http://127.0.0.1:9")

    with tourkit.load("fast", timeout=5) as client:
        assert (client.url, client.model, client.timeout) == ("http://127.0.0.1:9", "fast", 5)


def test_variables_are_set_for_the_libraries_and_those_of_the_user_stay() -> None:
    os.environ["GOMP_SPINCOUNT"] = "5"
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    launch = Launch("m", "llama_cpp", "m", slots=1, context=64, threads=1, environment=(("ASSET", "/a"),))

    inprocess._set_environment(Placement(("tool",), launch), only_gpu=False)
    on_cpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    inprocess._set_environment(Placement(("tool",), launch, device="GPU-0"), only_gpu=True)
    on_the_only_gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    inprocess._set_environment(Placement(("tool",), launch, device="GPU-0"), only_gpu=False)

    assert (os.environ["GOMP_SPINCOUNT"], os.environ["ASSET"]) == ("5", "/a")
    assert (on_cpu, on_the_only_gpu, os.environ["CUDA_VISIBLE_DEVICES"]) == (None, None, "GPU-0")


def test_what_cannot_be_loaded_is_replaced_by_its_fallback_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch("m", "llama_cpp", "m.gguf", slots=1, context=64, threads=1, quant="Q8_0")
    spare = Placement(("tool",), replace(launch, quant="Q4_0"))
    said: list[str] = []

    def load(asked: Launch) -> str:
        if asked.quant == "Q8_0":
            raise LocalError("out of memory")
        return asked.quant

    monkeypatch.setattr(backends, "load", load)
    found = inprocess._loaded(Placement(("tool",), launch, fallbacks=(spare,)), said.append, only_gpu=False)

    assert found == ("Q4_0", spare)
    assert said == ["m Q8_0 llama_cpp: out of memory; it is passed over"]
    with pytest.raises(LocalError, match=r"^m Q8_0 llama_cpp: out of memory$"):
        inprocess._loaded(Placement(("tool",), launch), said.append, only_gpu=False)

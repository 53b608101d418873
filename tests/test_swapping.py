"""Models that take turns, with real processes: only one is loaded at a time, and every request and stream completes."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from launch_server import LaunchServer, launch_server
from waiting import DEADLINE, until

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant
from tourkit.hardware.machine import Hardware, InstalledStack
from tourkit.launch import Launch
from tourkit.manifest.models import VariantId
from tourkit.planning import sources
from tourkit.planning.plan import Placement
from tourkit.planning.planner import plan
from tourkit.server.gateway.launch import placements_at

pytestmark = pytest.mark.starts

# Each Python process runs this code at its start. A worker that takes turns holds a lock while it lives. If another
# worker already holds the lock, it writes a file. Workers of the model `stays` take no turns.
WATCH = """
import fcntl, os, sys
def watch():
    lock = os.open({folder!r} + "/lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        open({folder!r} + "/two-at-once", "w").close()
    with open({folder!r} + "/loads", "a") as file:
        file.write("one\\n")

if "tourkit.server.worker.process" in sys.orig_argv:
    from tourkit.server.contract import WorkerSpec
    read = WorkerSpec.of_json
    def of_json(line):
        spec = read(line)
        if spec.launch.model != "stays":
            watch()
        return spec
    WorkerSpec.of_json = staticmethod(of_json)
"""


@dataclass(frozen=True)
class Served:
    """A server with watched workers."""

    server: LaunchServer
    folder: Path

    @property
    def loads(self) -> int:
        """How many processes of models that take turns have started so far."""
        return (self.folder / "loads").read_text().count("one")

    @property
    def had_two_at_once(self) -> bool:
        return (self.folder / "two-at-once").exists()


@contextmanager
def served(folder: Path, *placements: Placement) -> Iterator[Served]:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(WATCH.format(folder=str(folder)))
    environment, timeouts = {"PYTHONPATH": str(site)}, {"silence": 10.0 * DEADLINE}  # a held worker is no hung one
    with launch_server(*placements, log=folder / "log", environment=environment, timeouts=timeouts) as server:
        yield Served(server, folder)


def placed(
    model: str,
    path: Path,
    *,
    quant: str = "F16",
    context: int = 256,
    resident: bool = False,
    fallbacks: tuple[Placement, ...] = (),
) -> Placement:
    launch = Launch(model, "llama_cpp", str(path), slots=4, context=context, threads=1, quant=quant)
    return Placement((f"role-{model}",), launch, resident=resident, fallbacks=fallbacks)


@dataclass(frozen=True)
class Answer:
    status: int
    model: str | None
    body: Any


def connect(served: Served, model: str, **fields: Any) -> http.client.HTTPConnection:
    """Open a connection and send a request."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 4} | fields
    connection = http.client.HTTPConnection(urlsplit(served.server.url).netloc)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def ask(served: Served, model: str, **fields: Any) -> Answer:
    connection = connect(served, model, **fields)
    reply = connection.getresponse()
    answer = Answer(reply.status, reply.getheader("x-tourkit-model"), json.loads(reply.read()))
    connection.close()
    return answer


def get(served: Served, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(served.server.url).netloc)
    connection.request("GET", path)
    reply = connection.getresponse()
    found = reply.status, reply.read().decode()
    connection.close()
    return found


def health(served: Served) -> dict[str, Any]:
    return dict(json.loads(get(served, "/health")[1]))


def wait_for_waiting(served: Served, count: int) -> None:
    """Wait until `count` requests wait for the turn of their model and none of them has got it."""

    def are_waiting() -> bool:
        turns = health(served)["turns"]
        assert turns["swaps"] == 0, "the request that held the turn has ended"
        return bool(turns["waiting"] == count)

    until(are_waiting)


def wait_for_swap(served: Served) -> None:
    """Wait until the eviction of one model for another has begun."""
    until(lambda: health(served)["turns"]["swaps"] > 0)


@dataclass(frozen=True)
class HeldStream:
    """A running answer. Its worker is stopped until `let_go`."""

    reply: http.client.HTTPResponse
    pid: int

    def let_go(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def rest(self) -> str:
        self.let_go()
        return self.reply.read().decode()


@contextmanager
def held_stream(served: Served, model: str) -> Iterator[HeldStream]:
    """A stream of the model that is loaded first. It is long, because its end token is forbidden."""
    until(lambda: health(served)["turns"]["loaded"] is not None)
    pid = health(served)["workers"][f"{model} F16"]["pid"]
    connection = connect(served, model, max_tokens=1500, stream=True, logit_bias={"2": -100})
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    os.kill(pid, signal.SIGSTOP)
    held = HeldStream(reply, pid)
    try:
        yield held
    finally:
        held.let_go()
        connection.close()


def test_each_answers_in_its_turn_and_only_one_is_ever_loaded(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf)) as running:
        answers = [ask(running, model) for model in ("a", "role-b", "b", "role-a")]
        state = health(running)
        metrics = get(running, "/metrics")[1]

    assert [(answer.status, answer.model) for answer in answers] == [
        (200, f"{model} F16 llama_cpp") for model in ("a", "b", "b", "a")
    ]
    assert not running.had_two_at_once
    assert running.loads == 3
    assert [state["workers"][f"{model} F16"]["state"] for model in "ab"] == ["ready", "unloaded"]
    assert [state["workers"][f"{model} F16"]["pid"] is None for model in "ab"] == [False, True]
    assert state["turns"] == {"loaded": "a F16 llama_cpp", "phase": "open", "swaps": 2, "waiting": 0}
    assert 'tourkit_model_loaded{model="a",quant="F16",stack="llama_cpp"} 1' in metrics
    assert 'tourkit_model_loaded{model="b",quant="F16",stack="llama_cpp"} 0' in metrics
    assert "tourkit_turn_swaps_total 2" in metrics


def test_what_waits_for_its_turn_is_listed_and_counts_as_answering(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf)) as running:
        ask(running, "b")
        status, _ = get(running, "/health")
        listed = json.loads(get(running, "/v1/models")[1])["data"]

    assert status == 200
    assert [model["id"] for model in listed] == ["a", "role-a", "b", "role-b"]


def test_the_first_one_is_loaded_before_anybody_asks(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf)) as running:
        until(lambda: health(running)["turns"]["loaded"] is not None)
        answer = ask(running, "a")
        turns = health(running)["turns"]

    assert (answer.status, turns["loaded"], turns["swaps"]) == (200, "a F16 llama_cpp", 0)
    assert running.loads == 1


def test_what_stays_is_never_evicted_and_waits_for_no_turn(tiny_gguf: Path, tmp_path: Path) -> None:
    stays = placed("stays", tiny_gguf, resident=True)
    with served(tmp_path, placed("a", tiny_gguf, context=2048), stays, placed("b", tiny_gguf)) as running:
        assert ask(running, "stays").status == 200
        before = health(running)["workers"]["stays F16"]
        with held_stream(running, "a") as stream:
            waiting = connect(running, "b")
            wait_for_waiting(running, 1)
            meanwhile = ask(running, "stays")
            rest = stream.rest()
        assert waiting.getresponse().status == 200
        waiting.close()
        after = health(running)["workers"]["stays F16"]

    assert meanwhile.status == 200
    assert rest.endswith("data: [DONE]\n\n")
    assert (before["pid"], before["takes_turns"]) == (after["pid"], False)


def test_a_stream_under_way_is_not_cut_off_and_the_others_wait_behind_it(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf, context=2048), placed("b", tiny_gguf)) as running:
        with held_stream(running, "a") as stream:
            other = connect(running, "b")
            wait_for_waiting(running, 1)
            during = health(running)
            later = connect(running, "a")
            wait_for_waiting(running, 2)
            rest = stream.rest()
        replies = [connection.getresponse() for connection in (other, later)]
        models = [(reply.status, reply.getheader("x-tourkit-model"), reply.read() != b"") for reply in replies]
        swaps = health(running)["turns"]["swaps"]
        for connection in (other, later):
            connection.close()

    assert during["turns"] == {"loaded": "a F16 llama_cpp", "phase": "draining", "swaps": 0, "waiting": 1}
    assert rest.endswith("data: [DONE]\n\n")
    assert '"error"' not in rest
    assert models == [(200, "b F16 llama_cpp", True), (200, "a F16 llama_cpp", True)]
    assert swaps == 2
    assert not running.had_two_at_once


@pytest.mark.slow
def test_a_mixed_load_of_many_clients_is_answered_to_the_last_request(tiny_gguf: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    asked = [chance.choice("abc") for _ in range(40)]
    with served(tmp_path, *(placed(model, tiny_gguf) for model in "abc")) as running:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda model: ask(running, model), asked))
        turns = health(running)["turns"]

    assert [(answer.status, answer.model) for answer in answers] == [(200, f"{model} F16 llama_cpp") for model in asked]
    assert not running.had_two_at_once
    assert turns["waiting"] == 0
    assert running.loads == turns["swaps"] + 1


def test_who_hangs_up_while_waiting_holds_nobody_up(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf, context=2048), placed("b", tiny_gguf)) as running:
        with held_stream(running, "a") as stream:
            connection = connect(running, "b")
            wait_for_waiting(running, 1)
            connection.close()
            wait_for_waiting(running, 0)
            stream.let_go()
            meanwhile = ask(running, "a")
            rest = stream.rest()
        turns = health(running)["turns"]

    assert meanwhile.status == 200
    assert rest.endswith("data: [DONE]\n\n")
    assert (turns["loaded"], turns["swaps"]) == ("a F16 llama_cpp", 0)


def test_who_hangs_up_while_his_model_is_loaded_holds_nobody_up(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf)) as running:
        ask(running, "a")
        connection = connect(running, "b")
        wait_for_swap(running)
        connection.close()
        answers = [ask(running, model) for model in ("a", "b")]

    assert [answer.status for answer in answers] == [200, 200]
    assert not running.had_two_at_once


def test_one_that_cannot_be_loaded_is_told_of_and_the_others_go_on(tiny_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:5000])
    with served(tmp_path, placed("a", tiny_gguf), placed("b", broken)) as running:
        answers = [ask(running, model) for model in ("a", "b", "a", "b")]
        status, _ = get(running, "/health")
        swaps = health(running)["turns"]["swaps"]

    assert [answer.status for answer in answers] == [200, 503, 200, 503]
    assert "broken.gguf" in answers[1].body["error"]["message"]
    assert "broken.gguf" in answers[3].body["error"]["message"]
    assert status == 503
    assert swaps == 2  # a model that failed to load takes no turn again


def test_a_fallback_is_loaded_in_the_same_turn_and_is_what_the_next_turn_loads(tiny_gguf: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:5000])
    spare = placed("b", tiny_gguf, quant="Q8_0")
    with served(tmp_path, placed("a", tiny_gguf), placed("b", broken, fallbacks=(spare,))) as running:
        answers = [ask(running, model) for model in ("b", "a", "b")]
        worker = health(running)["workers"]["b F16"]

    assert [answer.model for answer in answers] == [f"{name} llama_cpp" for name in ("b Q8_0", "a F16", "b Q8_0")]
    assert len(worker["passed_over"]) == 1
    assert not running.had_two_at_once


@pytest.mark.parametrize("resident", [True, False])
def test_a_fallback_that_another_one_holds_is_answered_in_the_turn_of_that_one(
    resident: bool, tiny_gguf: Path, tmp_path: Path
) -> None:
    """This holds if the failed worker takes turns, and if it does not."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:5000])
    other = placed("b", tiny_gguf)
    failing = placed("stays", broken, resident=resident, fallbacks=(other,))
    with served(tmp_path, placed("a", tiny_gguf), other, failing) as running:
        answers = [ask(running, model) for model in ("a", "stays", "a", "stays", "b")]
        turns = health(running)["turns"]

    assert [answer.model for answer in answers] == [f"{name} F16 llama_cpp" for name in "ababb"]
    assert turns["loaded"] == "b F16 llama_cpp"
    assert not running.had_two_at_once


def test_one_that_crashes_in_its_turn_is_started_again_in_it(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf)) as running:
        ask(running, "b")
        os.kill(health(running)["workers"]["b F16"]["pid"], signal.SIGKILL)
        while (again := ask(running, "b")).status == 503:
            pass
        other = ask(running, "a")

    assert (again.model, other.model) == ("b F16 llama_cpp", "a F16 llama_cpp")
    assert not running.had_two_at_once


def test_a_server_that_is_stopped_during_a_swap_ends_and_so_do_those_who_wait(tiny_gguf: Path, tmp_path: Path) -> None:
    with served(tmp_path, placed("a", tiny_gguf), placed("b", tiny_gguf), placed("c", tiny_gguf)) as running:
        ask(running, "a")
        endings: list[Answer | OSError | http.client.HTTPException] = []

        def wait(model: str) -> None:
            try:
                endings.append(ask(running, model))
            except (OSError, http.client.HTTPException) as exc:
                endings.append(exc)

        threads = [threading.Thread(target=wait, args=(model,)) for model in ("b", "c")]
        for thread in threads:
            thread.start()
        wait_for_swap(running)
        running.server.process.terminate()
        running.server.process.wait()
        for thread in threads:
            thread.join()

    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no living worker holds it
    assert len(endings) == 2
    assert all(not isinstance(ending, Answer) or ending.status in (200, 503) for ending in endings)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_the_plan_lets_take_turns_is_served_in_turn_and_offline(tiny_gguf: Path, tmp_path: Path) -> None:
    """The whole way from the bundle to the answer. The RAM is enough for one of the two models."""
    bundle = tmp_path / "bundle"
    models = [BundleModel(id_, f"tourkit/{id_}", "apache-2.0", 8192, None, False) for id_ in ("a", "b")]
    variants = [BundleVariant(model.id, "F16", "gguf", model.repo, "main", "1" * 40) for model in models]
    for model in models:
        folder = bundle / VariantId(model.id, "F16").folder
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(tiny_gguf.read_bytes())
    index = build_index(bundle, "tests", {"brain": ["a"], "tool": ["b"]}, models, variants)
    machine = Hardware(1, 150 << 20, stacks=(InstalledStack("llama_cpp", "0"),))
    made = plan(index, machine, shapes=sources.shapes_of_bundle(bundle, index))

    with served(tmp_path, *placements_at(bundle.joinpath, made)) as running:
        answers = [ask(running, role) for role in ("brain", "tool", "brain")]
        refused = re.findall(r"^tourkit_offline_refused_total.* (\S+)$", get(running, "/metrics")[1], re.MULTILINE)

    assert made.notes == ("brain, tool: take turns; not enough memory for all models at once",)
    assert [answer.model for answer in answers] == [f"{name} F16 llama_cpp" for name in "aba"]
    assert not running.had_two_at_once
    assert refused == ["0.0"]


def test_more_than_may_wait_for_a_turn_are_told_to_come_later(tiny_gguf: Path, tmp_path: Path) -> None:
    placements = placed("a", tiny_gguf, context=2048), placed("b", tiny_gguf)
    with served(tmp_path, *placements) as running, held_stream(running, "a"):
        waiting = [connect(running, "b", max_tokens=1) for _ in range(256)]
        wait_for_waiting(running, 256)
        refused = ask(running, "b")
        for connection in waiting:
            connection.close()
        wait_for_waiting(running, 0)

    assert (refused.status, refused.body["error"]["code"]) == (429, "queue_full")

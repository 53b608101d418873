"""A worker that dies or hangs is noticed, ended and started again, and it takes no other request with it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_runner import FakeRunner, submit
from fake_worker import fake_worker
from launch_server import LaunchServer, launch_server
from waiting import until

from tourkit import net
from tourkit.engine.engine import BatchEngine
from tourkit.errors import LocalError, TourkitError
from tourkit.generation import Activity
from tourkit.launch import Launch
from tourkit.planning.plan import Placement
from tourkit.server.contract import Report
from tourkit.server.gateway import process
from tourkit.server.gateway.lane import Lane
from tourkit.server.gateway.relay import Relay
from tourkit.server.gateway.status import health as reported
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.server.gateway.swapping import Swapper
from tourkit.server.gateway.upstream import Asked, Upstream
from tourkit.server.gateway.watchdog import TIMEOUTS, Watchdog, WorkerTimeouts

TINY = Path(__file__).parents[2] / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "TOURKIT_API_KEY")
QUICK = WorkerTimeouts(beat=0.05, pause=0.01, longest_pause=0.02)


# --- what a report shows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activity", "words"),
    [
        (Activity(), ""),
        (Activity(59, 512, 1000), ""),
        (Activity(61, 512, 1000), "its engine hangs: a call over 512 tokens takes 61 s; at the measured 1000 tokens/s"),
        (Activity(61, 512, 10), ""),  # 51 s are usual, so 512 s are allowed
        (Activity(513, 512, 10), "its engine hangs: a call over 512 tokens takes 513 s"),
        (Activity(61, 0, 1000), "its engine hangs: a call takes 61 s"),  # a mask, a copy of cells
        (Activity(599, 512, 0), ""),  # the first call: nobody knows the rate
        (Activity(601, 512, 0), "its engine hangs"),
    ],
)
def test_a_call_may_take_a_minute_or_ten_times_what_the_measured_rate_lets_expect(
    activity: Activity, words: str
) -> None:
    found = TIMEOUTS.hanging(Report(activity))

    assert words in found
    assert bool(found) is bool(words)


def test_an_event_loop_that_gives_no_sign_hangs() -> None:
    assert TIMEOUTS.hanging(Report(loop_wait=59)) == ""
    assert "event loop" in TIMEOUTS.hanging(Report(loop_wait=61))


def test_the_pauses_between_deaths_grow_up_to_a_minute() -> None:
    assert [TIMEOUTS.before_start(deaths) for deaths in range(1, 11)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert TIMEOUTS.before_start(100_000) == 60


def test_the_engine_tells_of_a_call_while_it_runs_and_how_fast_calls_are() -> None:
    gate = threading.Event()
    engine = BatchEngine(FakeRunner(gate=gate))
    answer = submit(engine, "seven!!")
    until(lambda: engine.activity().tokens == 7)
    during = engine.activity()
    gate.set()
    answer.wait()
    until(lambda: engine.activity().seconds == 0)
    after = engine.activity()
    engine.close()

    assert during.seconds > 0
    assert (after.tokens, after.rate > 0) == (0, True)


# --- the watch ------------------------------------------------------------------------------------------------------


def watch(feed: Callable[[asyncio.StreamReader, bool], None], *lines: bytes) -> tuple[str, list[bool], set[str]]:
    """Watch a pipe with these lines. `feed` is called at every change of the silence. Return what came of it."""
    silences: list[bool] = []

    async def run() -> tuple[str, set[str]]:
        pipe = asyncio.StreamReader()

        async def on_silence(is_silent: bool) -> None:
            silences.append(is_silent)
            feed(pipe, is_silent)

        dog = Watchdog(pipe, WorkerTimeouts(silence=0.3), on_silence)
        for line in lines:
            pipe.feed_data(line)
        return await dog.watch(), dog.trials

    why, trials = asyncio.run(run())
    return why, silences, trials


def test_without_a_beat_a_worker_is_hung_first_and_then_ended() -> None:
    why, silences, _ = watch(lambda pipe, is_silent: None, Report().to_json())

    assert why.startswith("it hangs: no beat for")
    assert silences == [True]


def test_a_worker_that_beats_again_is_not_ended() -> None:
    def feed(pipe: asyncio.StreamReader, is_silent: bool) -> None:
        if is_silent:
            pipe.feed_data(Report().to_json())
        else:
            pipe.feed_eof()

    assert watch(feed) == ("", [True, False], set())


def test_a_line_that_is_no_report_ends_the_worker() -> None:
    for line in (b"hello\n", b"[]\n", b"{}\n", b'{"activity": 5}\n'):
        assert watch(lambda pipe, is_silent: None, line)[0] == "it wrote a line that is no report"


def test_trials_are_followed() -> None:
    lines = [Report(trial="1"), Report(trial="2"), Report(trial="1", ends=True)]

    _, _, trials = watch(lambda pipe, is_silent: pipe.feed_eof(), *(line.to_json() for line in lines))

    assert trials == {"2"}


# --- the lane -------------------------------------------------------------------------------------------------------


def test_one_that_is_alone_waits_for_those_inside_and_holds_the_others_back_until_it_shares() -> None:
    async def run() -> list[str]:
        lane, done, leave, shared, end = Lane(), [], asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def inside() -> None:
            async with lane.together():
                done.append("inside")
                await leave.wait()
                done.append("inside left")

        async def single() -> None:
            async with lane.alone() as share:
                done.append("alone")
                await shared.wait()
                share()
                await end.wait()
            done.append("alone left")

        async def other() -> None:
            async with lane.together():
                done.append("other")
                end.set()

        tasks = [asyncio.create_task(each()) for each in (inside, single, other)]
        for event in (leave, shared):
            for _ in range(10):
                await asyncio.sleep(0)
            event.set()
        await asyncio.gather(*tasks)
        return done

    assert asyncio.run(run()) == ["inside", "inside left", "alone", "other", "alone left"]


def test_one_that_gives_up_waiting_to_be_alone_holds_nobody_back() -> None:
    async def run() -> None:
        lane = Lane()

        async def single() -> None:
            async with lane.alone():
                raise AssertionError("somebody is inside")

        async with lane.together():
            task = asyncio.create_task(single())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with lane.together():
            pass
        async with lane.alone():
            pass

    asyncio.run(run())


# --- /health --------------------------------------------------------------------------------------------------------


def test_health_tells_a_hung_and_a_restarting_worker_apart_from_a_ready_one() -> None:
    worker = Worker(placement("m", Path()), uds="", offline=True)
    found = {}
    for state in (State.READY, State.HUNG, State.RESTARTING):
        worker.state, worker.next_start = state, float("inf")
        status, body = reported([worker], Swapper(()), offline=False)
        [told] = body["workers"].values()
        found[told["state"]] = status, told["next_start_in_s"] is not None

    assert found == {"ready": (200, False), "hung": (503, False), "restarting": (503, True)}


# --- real processes that follow a script ----------------------------------------------------------------------------


def placement(script: str, notes: Path) -> Placement:
    launch = Launch(script, "llama_cpp", str(notes), slots=1, context=64, threads=1, quant="F16")
    return Placement(("tool",), launch)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OUR_ENGINE", process.Program("scripted_worker"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")


class Client:
    """Sends requests to one worker through the relay, as the gateway does."""

    def __init__(self, script: str, notes: Path, timeouts: WorkerTimeouts = QUICK) -> None:
        self.said: list[str] = []
        self.worker = Worker(placement(script, notes), uds="", offline=True, say=self.said.append, timeouts=timeouts)
        self.notes = notes
        self._upstream = Upstream()
        self._swapper = Swapper(())
        self._relay = Relay(self._upstream, lambda: self._swapper)

    @asynccontextmanager
    async def running(self) -> Any:
        self._swapper = Swapper([self.worker])
        self.worker.start()
        try:
            yield self
        finally:
            await self.worker.stop()
            await self._upstream.close()

    async def ask(self, prompt: str) -> tuple[bytes, TourkitError | None]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        error = await self._relay.answer(self.worker, Asked("/tokenize", body), send)
        return b"".join(message.get("body", b"") for message in sent), error

    def asked(self) -> list[str]:
        return (self.notes / "asked").read_text().split() if (self.notes / "asked").exists() else []

    async def until(self, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(until, condition)


def run(client: Client, act: Callable[[Client], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with client.running():
            return await act(client)

    return asyncio.run(inside())


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_20_deaths_in_a_row_are_survived_each_is_told_and_the_worker_comes_back(tmp_path: Path) -> None:
    client = Client("dies-20-times", tmp_path)

    async def act(client: Client) -> tuple[bytes, TourkitError | None]:
        await client.until(lambda: client.worker.run == 20)
        return await client.ask("hello")

    assert run(client, act) == (b"ok", None)
    told = [line for line in client.said if "it is started again" in line]
    assert len(told) == 20
    assert all(line.startswith("tool: dies-20-times F16 llama_cpp: the worker ended (signal SIGKILL") for line in told)


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_a_model_that_never_loaded_is_given_up(tmp_path: Path) -> None:
    client = Client("never-loads", tmp_path)

    async def act(client: Client) -> State:
        await client.until(lambda: client.worker.state is State.FAILED)
        return client.worker.state

    run(client, act)
    assert "the worker ended 3 times in a row" in str(client.worker.error)


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_if_no_fallback_can_be_loaded_the_variant_that_was_loaded_last_comes_back(tmp_path: Path) -> None:
    (tmp_path / "fallback").mkdir()
    client = Client("dies-4-times", tmp_path)
    client.worker = Worker(
        replace(placement("dies-4-times", tmp_path), fallbacks=(placement("never-loads", tmp_path / "fallback"),)),
        uds="",
        offline=True,
        say=client.said.append,
        timeouts=QUICK,
    )

    async def act(client: Client) -> tuple[bytes, TourkitError | None]:
        await client.until(lambda: client.worker.run == 7)  # three times, the fallback three times, and once more
        return await client.ask("hello")

    assert run(client, act) == (b"ok", None)
    assert len(client.worker.passed_over) == 2
    assert any(line.endswith("going back to dies-4-times F16 llama_cpp") for line in client.said)


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("script", "words"),
    [("hangs-in-a-call", "its engine hangs: a call over 512 tokens"), ("is-silent-once", "no beat")],
)
def test_a_worker_that_hangs_is_ended_and_the_next_one_answers(script: str, words: str, tmp_path: Path) -> None:
    client = Client(script, tmp_path, WorkerTimeouts(beat=0.05, silence=1 if script == "is-silent-once" else 15))

    async def act(client: Client) -> tuple[bytes, TourkitError | None]:
        await client.until(lambda: client.worker.run == 1)
        return await client.ask("hello")

    assert run(client, act) == (b"ok", None)
    assert words in client.said[0]


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_a_request_whose_worker_died_is_asked_once_more_and_alone(tmp_path: Path) -> None:
    """The one that ends the worker again gets 503. The one beside it is answered."""
    client = Client("answers", tmp_path)

    async def act(client: Client) -> list[Any]:
        held = asyncio.create_task(client.ask("hold"))
        await client.until(lambda: client.asked() == ["hold"])
        return [*await asyncio.gather(held, client.ask("die")), await client.ask("hello")]

    innocent, killer, later = run(client, act)
    assert innocent == later == (b"ok", None)
    assert "ended twice over this request" in str(killer[1])
    assert sorted(client.asked()) == ["die", "die", "hello", "hold", "hold"]
    assert client.worker.run == 3  # two deaths, and the end of the test


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_a_request_that_was_in_its_trial_when_the_worker_died_is_not_asked_again(tmp_path: Path) -> None:
    client = Client("answers", tmp_path)

    async def act(client: Client) -> tuple[bytes, TourkitError | None]:
        return await client.ask("die-in-trial")

    body, error = run(client, act)
    assert body == b""
    assert "while it tried the constraint" in str(error)
    assert client.asked() == ["die-in-trial"]


@pytest.mark.starts
@pytest.mark.usefixtures("scripted")
def test_a_worker_that_does_not_come_back_in_time_is_503_with_its_cause_and_the_next_start(tmp_path: Path) -> None:
    client = Client("dies-20-times", tmp_path, WorkerTimeouts(pause=1000, longest_pause=1000, asked_again=0.01))

    async def act(client: Client) -> str:
        await client.until(lambda: client.worker.state is State.RESTARTING)
        return str((await client.ask("hello"))[1])

    error = run(client, act)
    assert error.startswith("dies-20-times F16: the worker ended (signal SIGKILL")
    assert error.endswith("s: ask again later")
    assert client.asked() == []


@pytest.mark.starts
def test_a_worker_whose_thread_holds_pythons_lock_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other thread of it runs, so it cannot end itself. This worker has the routes of a real one."""
    monkeypatch.setattr(process, "_OUR_ENGINE", process.Program("fake_worker"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
    client = Client("Holding", tmp_path, WorkerTimeouts(beat=0.05, silence=0.6))

    async def act(client: Client) -> tuple[bytes, TourkitError | None]:
        return await client.ask("hello")

    assert "ended twice over this request" in str(run(client, act)[1])
    assert "no beat" in client.said[0]


# --- the event loop of a real worker --------------------------------------------------------------------------------


@pytest.mark.starts
def test_a_worker_tells_that_its_event_loop_gives_no_sign() -> None:
    with fake_worker("Stuck", beat=0.05) as worker:
        connection = http.client.HTTPConnection(worker.address)
        connection.request("GET", "/stats")
        assert worker.process.stdout is not None
        while Report.of_json(worker.process.stdout.readline()).loop_wait == 0:
            pass
        connection.close()
        worker.process.kill()


# --- tourkit's own worker with the tiny model -----------------------------------------------------------------------


def served(folder: Path, timeouts: dict[str, float]) -> Any:
    launch = Launch("tiny", "llama_cpp", str(TINY), slots=2, context=256, threads=1, quant="F16")
    environment = dict.fromkeys(SECRETS, "hf_not-for-workers")
    return launch_server(Placement(("tool",), launch), log=folder / "log", environment=environment, timeouts=timeouts)


def ask(server: LaunchServer) -> int:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    body = {"model": "tool", "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 4}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    status = connection.getresponse().status
    connection.close()
    return status


def health(server: LaunchServer) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("GET", "/health")
    [worker] = json.loads(connection.getresponse().read())["workers"].values()
    connection.close()
    return dict(worker)


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie, which only waits for its parent, does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LaunchServer, Path]]:
    """A server that notices a silent worker soon."""
    folder = tmp_path_factory.mktemp("watched")
    with served(folder, {"beat": 0.05, "silence": 2.4}) as server:
        yield server, folder


@pytest.mark.starts
def test_a_worker_that_is_stopped_is_replaced_and_the_request_is_answered(noted: tuple[LaunchServer, Path]) -> None:
    server, folder = noted
    assert ask(server) == 200
    pid = health(server)["pid"]
    os.kill(pid, signal.SIGSTOP)

    assert ask(server) == 200
    after = health(server)
    assert after["state"] == "ready"
    assert after["pid"] != pid
    assert "no beat" in after["last_death"]
    assert "tool: tiny F16 llama_cpp: the worker ended (it hangs: no beat" in (folder / "log").read_text()
    assert not is_alive(pid)


@pytest.mark.starts
def test_the_command_line_and_the_environment_of_a_worker_hold_no_secret(noted: tuple[LaunchServer, Path]) -> None:
    server, _ = noted
    assert ask(server) == 200
    of_worker = Path(f"/proc/{health(server)['pid']}")
    variables = dict(line.split("=", 1) for line in (of_worker / "environ").read_text().split("\0") if line)

    assert (of_worker / "cmdline").read_text().split("\0")[1:] == ["-m", "tourkit.server.worker.process", ""]
    assert not variables.keys() & set(SECRETS)
    assert "hf_not-for-workers" not in variables.values()
    assert stat.S_IMODE(Path(variables["TMPDIR"]).stat().st_mode) == 0o700


@pytest.mark.starts
def test_a_stopped_worker_is_hung_until_it_goes_on_and_ends_with_a_gateway_that_is_killed(tmp_path: Path) -> None:
    with served(tmp_path, {"beat": 0.05, "silence": 6}) as server:
        assert ask(server) == 200
        pid = health(server)["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: health(server)["state"] == "hung")
        os.kill(pid, signal.SIGCONT)
        until(lambda: health(server)["state"] == "ready")
        assert health(server)["pid"] == pid

        os.kill(pid, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        until(lambda: not is_alive(pid))


# --- sockets and folders --------------------------------------------------------------------------------------------


@pytest.mark.starts
def test_a_socket_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    net.listen_unix(Path("s")).close()

    assert stat.S_IMODE(Path("s").stat().st_mode) == 0o600


def test_a_folder_that_others_can_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some disks chmod changes nothing."""
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)

    with pytest.raises(LocalError, match="other users of this machine can open it"):
        net.make_private(tmp_path / "open")

"""Models are loaded, unloaded and pinned by request, unloaded when idle or to make room; a stopping server drains."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from click.testing import CliRunner
from launch_server import launch_server
from starlette.types import Message, Scope
from waiting import until

from tourkit.commands.lifecycle import lifecycle_options
from tourkit.errors import UsageError
from tourkit.launch import Launch
from tourkit.planning.plan import CPU, Memory, Placement
from tourkit.server.gateway import process
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.launch import check_preload
from tourkit.server.gateway.lifecycle import LIFETIMES, Lifetimes
from tourkit.server.gateway.watchdog import WorkerTimeouts

QUICK = WorkerTimeouts(beat=0.05, pause=0.01, longest_pause=0.02)
JSON = [(b"content-type", b"application/json"), (b"host", b"localhost")]


# --- a gateway whose workers follow a script, without a listening socket --------------------------------------------


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OUR_ENGINE", process.Program("scripted_worker"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def placement(model: str, notes: Path, *, resident: bool = True, memory: tuple[Memory, ...] = ()) -> Placement:
    notes.mkdir(exist_ok=True)
    launch = Launch(model, "llama_cpp", str(notes), slots=1, context=64, threads=1, quant="F16")
    return Placement((f"role-{model}",), launch, resident=resident, memory=memory)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


class Server:
    """A gateway that is asked without a socket. `said`: its lines about workers."""

    def __init__(self, gateway: Gateway, said: list[str]) -> None:
        self.gateway = gateway
        self.said = said
        self._app = gateway.app()

    async def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        scope: Scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": JSON, "client": ("127.0.0.1", 1), "scheme": "http", "root_path": ""}
        sent: list[Message] = []
        content = [{"type": "http.request", "body": json.dumps(body or {}).encode(), "more_body": False}]

        async def receive() -> Message:
            return content.pop() if content else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return Answer(sent[0]["status"], b"".join(message["body"] for message in sent[1:]))

    async def post(self, what: str, model: str) -> dict[str, Any]:
        answer = await self.send("POST", f"/v1/models/{what}", {"model": model})
        assert answer.status == 200, answer.body
        return dict(json.loads(answer.body))

    async def ask(self, model: str, prompt: str = "x") -> Answer:
        return await self.send("POST", "/tokenize", {"model": model, "prompt": prompt})

    async def health(self) -> tuple[int, dict[str, Any]]:
        answer = await self.send("GET", "/health")
        return answer.status, json.loads(answer.body)

    async def states(self) -> dict[str, str]:
        """Return the state of each worker by its model."""
        _, body = await self.health()
        return {name.removesuffix(" F16"): worker["state"] for name, worker in body["workers"].items()}

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        while not await condition():
            await asyncio.sleep(0.01)

    async def until_ready(self, *models: str) -> None:
        async def are_ready() -> bool:
            states = await self.states()
            return all(states[model] == "ready" for model in models)

        await self.until(are_ready)


@asynccontextmanager
async def serving(*placements: Placement, lifetimes: Lifetimes = LIFETIMES) -> AsyncIterator[Server]:
    said: list[str] = []
    options = GatewayOptions(unix=False, say=said.append, timeouts=QUICK, lifetimes=lifetimes)
    gateway = Gateway(placements, options)
    async with gateway._lifespan(None):  # type: ignore[arg-type]
        yield Server(gateway, said)


def starts(notes: Path) -> int:
    """How many processes were started for a model."""
    return len((notes / "starts").read_text()) if (notes / "starts").exists() else 0


def asked(notes: Path) -> list[str]:
    return (notes / "asked").read_text().split() if (notes / "asked").exists() else []


processes = pytest.mark.usefixtures("scripted")


# --- load, unload, pin ----------------------------------------------------------------------------------------------


@pytest.mark.starts
@processes
def test_a_model_is_unloaded_by_request_and_its_next_request_loads_it_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(placement("m", tmp_path)) as server:
            loaded = await server.post("load", "role-m")
            unloaded = await server.post("unload", "m")
            health = await server.health()
            answer = await server.ask("m")

        assert loaded == {"model": "role-m", "state": "ready", "answers": "m F16 llama_cpp", "pinned": False}
        assert unloaded["state"] == "unloaded"
        assert health[0] == 200
        assert health[1]["workers"]["m F16"]["pid"] is None
        assert answer == Answer(200, b"ok")
        assert starts(tmp_path) == 2

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_an_unload_waits_for_the_running_requests_and_later_ones_wait_for_the_next_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(placement("m", tmp_path)) as server:
            running = asyncio.create_task(server.ask("m", "wait"))
            await server.until(_true_if(lambda: asked(tmp_path) == ["wait"]))
            unloading = asyncio.create_task(server.post("unload", "m"))
            await asyncio.sleep(0)
            later = asyncio.create_task(server.ask("m", "later"))
            states = await server.states()
            (tmp_path / "go").touch()
            answers = [await running, await later]
            await unloading

        assert states == {"m": "ready"}
        assert [answer.status for answer in answers] == [200, 200]
        assert (asked(tmp_path), starts(tmp_path)) == (["wait", "later"], 2)

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_a_load_gives_a_model_its_turn(tmp_path: Path) -> None:
    async def run() -> None:
        one, two = (placement(model, tmp_path / model, resident=False) for model in "ab")
        async with serving(one, two) as server:
            await server.post("load", "b")
            states = await server.states()
            await server.post("unload", "b")
            after = await server.health()

        assert states == {"a": "unloaded", "b": "ready"}
        assert (after[0], after[1]["turns"]["phase"], after[1]["turns"]["loaded"]) == (200, "free", None)

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_requests_for_the_others_are_refused_while_a_model_that_takes_turns_is_pinned(tmp_path: Path) -> None:
    """A request that already waits is refused too. After the pin is gone, the others get their turns again."""

    async def run() -> None:
        one, two = (placement(model, tmp_path / model, resident=False) for model in "ab")
        async with serving(one, two) as server:
            running = asyncio.create_task(server.ask("a", "wait"))
            await server.until(_true_if(lambda: asked(tmp_path / "a") == ["wait"]))
            pinning = asyncio.create_task(server.post("pin", "a"))
            waiting = asyncio.create_task(server.ask("b"))
            pinned = await pinning
            refused = [await waiting, await server.ask("b")]
            (tmp_path / "a" / "go").touch()
            await running
            unpinned = await server.post("unpin", "a")
            answer = await server.ask("b")

        assert (pinned["pinned"], unpinned["pinned"]) == (True, False)
        assert [(each.status, each.error["code"]) for each in refused] == [(409, "model_pinned")] * 2
        assert "POST /v1/models/unpin" in refused[0].error["message"]
        assert answer.status == 200

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_what_is_no_request_for_a_served_model_is_refused(tmp_path: Path) -> None:
    async def run() -> list[Answer]:
        async with serving(placement("m", tmp_path)) as server:
            bodies = [{"model": "n"}, {"model": "m", "ttl": 5}, {}, {"model": 5}]
            return [await server.send("POST", "/v1/models/load", body) for body in bodies]

    answers = asyncio.run(run())

    assert [(answer.status, answer.error["param"]) for answer in answers] == [
        *[(404, "model"), (400, "ttl")],
        *[(400, "model"), (400, "model")],
    ]


# --- idle time and preload ------------------------------------------------------------------------------------------


@pytest.mark.starts
@processes
def test_a_model_without_requests_is_unloaded_and_a_pinned_one_is_not(tmp_path: Path) -> None:
    async def run() -> None:
        placements = [placement(model, tmp_path / model) for model in ("idle", "pinned")]
        async with serving(*placements, lifetimes=Lifetimes(idle_timeout=0.2)) as server:
            await server.post("pin", "pinned")

            async def is_unloaded() -> bool:
                return (await server.states())["idle"] == "unloaded"

            await server.until(is_unloaded)
            states = await server.states()
            answer = await server.ask("idle")

        assert states["pinned"] == "ready"
        assert answer.status == 200
        assert starts(tmp_path / "pinned") == 1
        [line] = [line for line in server.said if "unloaded" in line]
        assert line.startswith("idle F16 llama_cpp: unloaded after ")

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_only_what_is_named_is_loaded_at_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        placements = [
            *(placement(model, tmp_path / model) for model in ("r", "s")),
            *(placement(model, tmp_path / model, resident=False) for model in ("t", "u")),
        ]
        async with serving(*placements, lifetimes=Lifetimes(preload=("role-s", "u"))) as server:
            await server.until_ready("s", "u")
            status, _ = await server.health()
            states = await server.states()
            answer = await server.ask("r")

        assert status == 200
        assert states == {"r": "unloaded", "s": "ready", "t": "unloaded", "u": "ready"}
        assert answer.status == 200
        assert [starts(tmp_path / model) for model in "rstu"] == [1, 1, 0, 1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("preload", "words"),
    [
        (("z",), "--preload z: it is not served here: use one of a, role-a, b, role-b, c, role-c"),
        (("b", "role-c"), "--preload b, role-c: they take turns"),
        (("a", "b", "role-b"), ""),
        (None, ""),
    ],
)
def test_a_preload_names_served_models_and_one_that_takes_turns(
    preload: tuple[str, ...] | None, words: str, tmp_path: Path
) -> None:
    placements = [placement(model, tmp_path, resident=model == "a") for model in "abc"]

    if not words:
        check_preload(placements, preload)
        return
    with pytest.raises(UsageError, match=words):
        check_preload(placements, preload)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Lifetimes()),
        (["--preload", "none"], Lifetimes(())),
        (["--preload", "a", "--preload", "b"], Lifetimes(("a", "b"))),
        (["--idle-timeout", "10m", "--drain", "5"], Lifetimes(None, 600.0, 5.0)),
        (["--idle-timeout", "0"], Lifetimes()),
    ],
)
def test_the_options_say_when_models_are_loaded(arguments: list[str], expected: Lifetimes) -> None:
    found: list[Lifetimes] = []

    @click.command()
    @lifecycle_options
    def command(lifetimes: Lifetimes) -> None:
        found.append(lifetimes)

    CliRunner().invoke(command, arguments, catch_exceptions=False)

    assert found == [expected]


# --- too little memory ----------------------------------------------------------------------------------------------


@pytest.mark.starts
@processes
def test_a_load_that_finds_too_little_memory_unloads_one_idle_model_and_is_tried_once_more(tmp_path: Path) -> None:
    async def run() -> None:
        idle = [placement(model, tmp_path / model) for model in ("first", "second", "busy")]
        full = placement("full-1", tmp_path / "full")
        async with serving(*idle, full, lifetimes=Lifetimes(preload=("first", "second", "busy"))) as server:
            await server.until_ready("first", "second", "busy")
            await server.ask("first")
            await server.ask("second")
            running = asyncio.create_task(server.ask("busy", "wait"))
            answer = await server.ask("full-1")
            states = await server.states()
            (tmp_path / "busy" / "go").touch()
            await running

        assert answer.status == 200
        assert states == {"first": "unloaded", "second": "ready", "busy": "ready", "full-1": "ready"}
        [line] = [line for line in server.said if "tried once more" in line]
        assert line == (
            "role-full-1: cudaMalloc failed: out of memory; first F16 llama_cpp is unloaded, "
            "and full-1 F16 llama_cpp is tried once more"
        )

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_one_model_is_unloaded_for_a_load_and_no_second_one(tmp_path: Path) -> None:
    async def run() -> None:
        idle = [placement(model, tmp_path / model) for model in ("first", "second")]
        full = placement("full-2", tmp_path / "full")
        async with serving(*idle, full, lifetimes=Lifetimes(preload=("first", "second"))) as server:
            await server.until_ready("first", "second")
            answer = await server.ask("full-2")
            states = await server.states()

        assert answer.status == 503
        assert "out of memory" in answer.error["message"]
        assert sorted(states.values()) == ["failed", "ready", "unloaded"]
        assert starts(tmp_path / "full") == 2

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_pinned_models_and_those_on_other_devices_are_not_unloaded_for_a_load(tmp_path: Path) -> None:
    async def run() -> None:
        on_cpu, on_gpu = ((Memory(device, 1, 0, 0, 1),) for device in (CPU, "GPU-0"))
        placements = [
            placement("pinned", tmp_path / "pinned", memory=on_gpu),
            placement("elsewhere", tmp_path / "elsewhere", memory=on_cpu),
            placement("full-1", tmp_path / "full", memory=on_gpu),
        ]
        async with serving(*placements, lifetimes=Lifetimes(preload=("elsewhere",))) as server:
            await server.until_ready("elsewhere")
            await server.post("pin", "pinned")
            answer = await server.ask("full-1")
            states = await server.states()

        assert answer.status == 503
        assert states == {"pinned": "ready", "elsewhere": "ready", "full-1": "failed"}

    asyncio.run(run())


@pytest.mark.starts
@processes
def test_a_model_that_never_loaded_gets_a_new_plan_before_another_one_is_unloaded(tmp_path: Path) -> None:
    async def run() -> None:
        smaller = placement("m", tmp_path / "smaller")
        options = GatewayOptions(unix=False, timeouts=QUICK, plan_again=lambda *_: smaller)
        gateway = Gateway((placement("other", tmp_path / "other"), placement("full-1", tmp_path / "full")), options)
        async with gateway._lifespan(None):  # type: ignore[arg-type]
            server = Server(gateway, [])
            await server.until_ready("other", "full-1")
            answers = (await server.health())[1]["workers"]["full-1 F16"]["answers"]

        assert answers == "m F16 llama_cpp"
        assert starts(tmp_path / "other") == 1

    asyncio.run(run())


# --- the end of the server ------------------------------------------------------------------------------------------


@pytest.mark.starts
@processes
def test_while_a_server_drains_running_answers_end_and_later_requests_get_503(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(placement("m", tmp_path)) as server:
            running = asyncio.create_task(server.ask("m", "wait"))
            await server.until(_true_if(lambda: asked(tmp_path) == ["wait"]))
            draining = asyncio.create_task(server.gateway.drain(lambda: False))
            await asyncio.sleep(0)
            late = await server.ask("m")
            status, health = await server.health()
            (tmp_path / "go").touch()
            answer = await running
            await draining

        assert (answer.status, late.status) == (200, 503)
        assert late.error["message"] == "the server is stopping"
        assert (status, health["status"]) == (503, "stopping")
        assert server.said[-1] == "stopping: 1 answer runs, for 30 s at most"

    asyncio.run(run())


@pytest.mark.starts
@processes
@pytest.mark.parametrize(("seconds", "is_hurried"), [(0.0, False), (30.0, True)])
def test_draining_ends_after_its_time_and_when_somebody_is_in_a_hurry(
    seconds: float, is_hurried: bool, tmp_path: Path
) -> None:
    async def run() -> Answer:
        async with serving(placement("m", tmp_path), lifetimes=replace(LIFETIMES, drain=seconds)) as server:
            running = asyncio.create_task(server.ask("m", "wait"))
            await server.until(_true_if(lambda: asked(tmp_path) == ["wait"]))
            await server.gateway.drain(lambda: is_hurried)
            await server.gateway.stop()
            return await running

    assert asyncio.run(run()).status == 503


@pytest.mark.starts
def test_a_stream_is_whole_if_the_server_gets_sigterm_in_the_middle(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with launch_server(placement("m", notes), log=tmp_path / "log", worker="scripted_worker") as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        body = {"model": "m", "prompt": "stream", "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        first = reply.readline()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping: 1 answer runs" in (tmp_path / "log").read_text())
        (notes / "go").touch()
        rest = reply.read()
        connection.close()
        server.process.wait()

    assert first == b'data: {"n": 1}\n'
    assert rest == b"\ndata: [DONE]\n\n"


def _true_if(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds

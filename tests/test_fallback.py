"""A variant that cannot be loaded is replaced by its next fallback before the first answer, and replies name it."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from launch_server import LaunchServer, launch_server

from tourkit.launch import Launch
from tourkit.planning.plan import Placement

pytestmark = pytest.mark.starts

# Code that runs when a broken vLLM is imported, and a part of the message that says why it is not used.
BROKEN = {
    "import error": (
        "raise ImportError('libcudart.so.13: cannot open shared object file')",
        "vllm cannot be imported: ImportError: libcudart.so.13: cannot open shared object file",
    ),
    "crash": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "it ended while loading: signal SIGSEGV",
    ),
    "out of memory": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\nbytearray(2 << 30)",
        "MemoryError",
    ),
    "refused by pydantic": (
        "import os, sys\nprint('(Server pid=7) a.ValidationError: 1 validation error for Model', file=sys.stderr)\n"
        "print('(Server pid=7)   Value error, not supported: M [type=value_error, in=1]', file=sys.stderr)\n"
        "os._exit(1)",
        "it ended while loading: ValidationError: 1 validation error for Model: Value error, not supported: M",
    ),
    "killed for memory": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "it ended while loading: signal SIGKILL, maybe out of memory",
    ),
    "no such command": ("", "vllm cannot be imported: ModuleNotFoundError: No module named 'vllm.entrypoints'"),
}


@dataclass(frozen=True)
class Answer:
    status: int
    model: str | None
    body: Any


def ask(server: LaunchServer, model: str = "tool") -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 4}
    return fetch(f"{server.url}/v1/chat/completions", json.dumps(body).encode())


def fetch(url: str, data: bytes | None = None) -> Answer:
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return Answer(reply.status, reply.headers.get("x-tourkit-model"), json.loads(reply.read()))
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, exc.headers.get("x-tourkit-model"), json.loads(exc.read()))


def health(server: LaunchServer) -> dict[str, Any]:
    """Return the entry of each worker in /health, ready or not."""
    found: dict[str, Any] = fetch(f"{server.url}/health").body["workers"]
    return found


def gguf(path: Path, quant: str = "F16", **more: Any) -> Placement:
    launch = Launch("tiny-random", "llama_cpp", str(path), slots=2, context=256, threads=1, quant=quant)
    return Placement(("tool",), launch, **more)


@pytest.fixture
def safetensors(tmp_path: Path) -> Placement:
    """A launch on vLLM. The folder has no weights, because the broken vLLM must fail before it reads them."""
    folder = tmp_path / "safetensors"
    folder.mkdir()
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 299}
    (folder / "config.json").write_text(json.dumps(config))
    launch = Launch("tiny-random", "vllm", str(folder), slots=2, context=256, threads=1, quant="BF16")
    return Placement(("tool",), launch)


def installation(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which `import vllm` runs this code."""
    package = folder / "site" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(folder / "site")}


@pytest.mark.parametrize("harm", BROKEN)
def test_the_first_request_is_answered_by_the_next_link_when_the_preferred_stack_is_broken(
    harm: str, safetensors: Placement, tiny_gguf: Path, tmp_path: Path
) -> None:
    code, words = BROKEN[harm]
    placement = replace(safetensors, fallbacks=(gguf(tiny_gguf),))
    with launch_server(placement, log=tmp_path / "log", environment=installation(tmp_path, code)) as server:
        answer = ask(server)
        [worker] = health(server).values()
        model = fetch(f"{server.url}/v1/models/tool").body

    assert (answer.status, answer.model) == (200, "tiny-random F16 llama_cpp")
    assert (model["stack"], model["quant"]) == ("llama_cpp", "F16")
    assert worker["state"] == "ready"
    assert worker["answers"] == "tiny-random F16 llama_cpp"
    [reason] = worker["passed_over"]
    assert reason.startswith("tiny-random BF16 on vllm: ")
    assert words in reason
    [told] = [line for line in (tmp_path / "log").read_text().splitlines() if reason in line]
    assert told.endswith("falling back to tiny-random F16 llama_cpp")


def test_every_link_is_tried_in_order(safetensors: Placement, tiny_gguf: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(tiny_gguf.read_bytes()[: tiny_gguf.stat().st_size // 2])
    placement = replace(safetensors, fallbacks=(gguf(half, "Q8_0"), gguf(tiny_gguf)))
    environment = installation(tmp_path, BROKEN["import error"][0])
    with launch_server(placement, log=tmp_path / "log", environment=environment) as server:
        answer = ask(server)
        [worker] = health(server).values()

    assert (answer.status, answer.model) == (200, "tiny-random F16 llama_cpp")
    assert [line.split(": ")[0] for line in worker["passed_over"]] == [
        "tiny-random BF16 on vllm",
        "tiny-random Q8_0 on llama_cpp",
    ]


def test_where_no_link_loads_the_answer_is_503_with_every_reason(
    safetensors: Placement, tiny_gguf: Path, tmp_path: Path
) -> None:
    placement = replace(safetensors, fallbacks=(gguf(tmp_path / "none.gguf"),))
    environment = installation(tmp_path, BROKEN["import error"][0])
    with launch_server(placement, log=tmp_path / "log", environment=environment) as server:
        answer = ask(server)

    assert answer.status == 503
    message = answer.body["error"]["message"]
    assert "libcudart.so.13" in message
    assert "none.gguf" in message
    assert "\n" not in message


def test_a_fallback_that_another_worker_holds_is_not_loaded_twice(
    safetensors: Placement, tiny_gguf: Path, tmp_path: Path
) -> None:
    brain = replace(safetensors, roles=("brain",), fallbacks=(gguf(tiny_gguf),))
    environment = installation(tmp_path, BROKEN["import error"][0])
    with launch_server(brain, gguf(tiny_gguf), log=tmp_path / "log", environment=environment) as server:
        answers = [ask(server, role) for role in ("brain", "tool")]
        workers = health(server)

    assert [(answer.status, answer.model) for answer in answers] == [(200, "tiny-random F16 llama_cpp")] * 2
    assert workers["tiny-random BF16"]["pid"] is None
    assert workers["tiny-random F16"]["pid"] is not None
    assert {worker["answers"] for worker in workers.values()} == {"tiny-random F16 llama_cpp"}


def test_two_that_fall_back_on_each_other_are_both_told_of_and_wait_for_nobody(
    safetensors: Placement, tmp_path: Path
) -> None:
    one = replace(safetensors, roles=("brain",), fallbacks=(gguf(tmp_path / "none.gguf"),))
    other = replace(gguf(tmp_path / "none.gguf"), fallbacks=(replace(safetensors, fallbacks=()),))
    environment = installation(tmp_path, BROKEN["import error"][0])
    with launch_server(one, other, log=tmp_path / "log", environment=environment) as server:
        answers = [ask(server, role) for role in ("brain", "tool")]

    assert [answer.status for answer in answers] == [503, 503]


def test_a_worker_that_can_no_longer_be_loaded_is_replaced(tiny_gguf: Path, tmp_path: Path) -> None:
    """After a crash the same variant is started again. If that fails too, the next fallback answers."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    placement = gguf(copy, "Q8_0", fallbacks=(gguf(tiny_gguf),))
    with launch_server(placement, log=tmp_path / "log") as server:
        seen = [ask(server).model]
        os.kill(health(server)["tiny-random Q8_0"]["pid"], signal.SIGKILL)
        seen.append(answer_after_restart(server).model)
        copy.write_bytes(b"")
        os.kill(health(server)["tiny-random Q8_0"]["pid"], signal.SIGKILL)
        seen.append(answer_after_restart(server).model)

    assert seen == ["tiny-random Q8_0 llama_cpp", "tiny-random Q8_0 llama_cpp", "tiny-random F16 llama_cpp"]


def answer_after_restart(server: LaunchServer) -> Answer:
    """Return the first answer other than 503. The gateway may not know yet that the worker is gone."""
    while (answer := ask(server)).status == 503:
        pass
    return answer


def test_what_a_worker_has_started_ends_with_the_gateway_however_that_ends(
    safetensors: Placement, tmp_path: Path
) -> None:
    """vLLM's engine is a separate process. In this test a waiting child process stands for it."""
    child = "import signal, subprocess\n" + (
        f"subprocess.Popen(['sh', '-c', 'echo $$ > {tmp_path}/child; exec sleep 1000'])\nsignal.pause()\n"
    )
    with launch_server(safetensors, log=tmp_path / "log", environment=installation(tmp_path, child)) as server:
        pid = pid_in(tmp_path / "child")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        while alive(pid):
            pass


def pid_in(file: Path) -> int:
    while not (file.is_file() and file.read_text().strip()):
        pass
    return int(file.read_text())


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie, which only waits for its parent, does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

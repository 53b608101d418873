"""Offline means offline: the guard refuses connections and names the caller, and the kernel's trace confirms it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from netless import NOT_ALLOWED
from serving import make_bundle, serving
from template_names import TAUGHT

from tourkit.net import is_loopback

pytestmark = pytest.mark.starts

NETLESS = str(Path(__file__).with_name("netless.py"))


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the guard engaged. In its own process, because an audit hook cannot be removed."""
    source = f"from tourkit import offline\noffline.engage()\n{code}"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import socket; socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
        "import socket; socket.getaddrinfo('example.invalid', 80)",
        "import socket; socket.gethostbyname('example.invalid')",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/')",
        "import http.client; http.client.HTTPConnection('192.0.2.1').request('GET', '/')",
        "import asyncio; asyncio.run(asyncio.open_connection('192.0.2.1', 80))",
    ],
)
def test_every_way_out_is_refused_and_named(code: str) -> None:
    done = guarded(code)

    assert done.returncode != 0
    assert "OfflineError" in done.stderr or "offline: refused" in done.stderr
    assert "tourkit: offline: refused a connection to" in done.stderr
    assert re.search(r"asked for by \S+:\d+ in ", done.stderr)


def test_attempts_are_counted_with_their_caller() -> None:
    done = guarded(
        "import socket\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        socket.create_connection(('192.0.2.1', 80))\n"
        "    except OSError:\n"
        "        continue\n"
        "print(len(offline.attempts()), offline.attempts()[0].target, offline.attempts()[0].caller)"
    )

    assert done.stdout.split()[:2] == ["3", "192.0.2.1:80"]
    assert "<string>:6" in done.stdout


def test_loopback_and_unix_sockets_stay_open(tmp_path: Path) -> None:
    done = guarded(
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(('localhost', server.getsockname()[1])).close()\n"
        f"with socket.socket(socket.AF_UNIX) as server:\n"
        f"    server.bind({str(tmp_path / 's')!r}); server.listen()\n"
        f"    socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})\n"
        "print('through')"
    )

    assert done.stdout == "through\n", done.stderr


def test_every_opt_out_is_in_the_environment_of_children() -> None:
    done = guarded(
        "import os, subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"HF_HUB_OFFLINE\"], "
        'os.environ["VLLM_NO_USAGE_STATS"])\'], capture_output=True, text=True).stdout)'
    )

    assert done.stdout.split() == ["1", "1"]


def chat(url: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    body = json.dumps({"model": "tool", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no system calls to look at")
def test_no_system_call_of_gateway_or_worker_leaves_the_machine(tiny_gguf: Path, tmp_path: Path) -> None:
    """strace records every connect and every send of the whole process tree, native code included."""
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    with serving(bundle, tmp_path / "log", "--offline", "--context", "512", prefix=strace) as running:
        status = chat(running.url)
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
        for child in children:  # strace forwards no signals, so end the gateway itself
            os.kill(int(child), signal.SIGTERM)
        running.process.wait()

    assert status == 200
    calls = trace.read_text()
    addresses = re.findall(r'sin6?_addr=inet_[a-z]+\([^"]*"([^"]+)"', calls) + re.findall(
        r'inet_addr\("([^"]+)"', calls
    )
    assert "AF_UNIX" in calls
    assert [address for address in addresses if not is_loopback(address)] == []


def test_the_whole_trip_works_where_there_is_no_network_at_all(tmp_path: Path) -> None:
    """Mirror, lock, prefetch, verify, serve --offline and the templates, with loopback as the only interface."""
    probe = [
        sys.executable,
        NETLESS,
        sys.executable,
        "-c",
        "import socket; socket.create_connection(('192.0.2.1', 9), 5)",
    ]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode == NOT_ALLOWED:
        pytest.skip(f"this system allows no network namespaces: {tried.stderr.strip()}")
    assert "unreachable" in tried.stderr, tried.stderr

    command = [sys.executable, NETLESS, sys.executable, "-m", "tourkit", "demo", "--keep", str(tmp_path / "demo")]
    done = subprocess.run([*command, "--documents", "2"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes the place of the real models: the package index cannot be asked" in done.stdout.splitlines()[0]
    for name in TAUGHT:
        records = [json.loads(line) for line in (tmp_path / "demo" / f"{name}.out.jsonl").read_text().splitlines()]
        assert [record["ok"] for record in records] == [True, True], records
    facts = [(int(found), int(said)) for found, said in re.findall(r"(\d+) of (\d+) facts found", done.stdout)]
    assert len(facts) == len(TAUGHT), done.stdout
    assert sum(found for found, _ in facts) >= 0.8 * sum(said for _, said in facts), done.stdout
    assert "offline: refused" not in (tmp_path / "demo" / "serve.log").read_text()

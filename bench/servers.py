"""The servers for the benchmarks: tourkit, llama-server, llama_cpp.server, all with the same model and limits."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tourkit.hardware.probe import probe


@dataclass(frozen=True)
class Limits:
    """`slots` sequences of `context` tokens each."""

    slots: int
    context: int


class RefusedError(Exception):
    """A server answered with an error."""


@dataclass
class Server:
    """A running server, with methods to ask it."""

    name: str
    host: str
    model: str
    process: subprocess.Popen[str]

    def chat(self, content: str, **options: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.host, timeout=1200)
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **options}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        data = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise RefusedError(f"{self.name}: {data}")
        return dict(data)

    def first_token(self, content: str) -> float:
        """Return the seconds from the request to the first piece of text."""
        connection = http.client.HTTPConnection(self.host, timeout=1200)
        messages = [{"role": "user", "content": content}]
        body = {"model": self.model, "messages": messages, "max_tokens": 4, "stream": True, "temperature": 0}
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        took = 0.0
        for line in answer:
            if not took and re.search(rb'"content":\s*"[^"]', line):
                took = time.perf_counter() - started
        connection.close()
        return took

    def round_trip(self, method: str, path: str, body: Any = None, *, times: int) -> float:
        """Return the median milliseconds of `times` requests on one open connection."""
        with httpx2.Client(base_url=f"http://{self.host}", timeout=1200) as client:
            took = []
            for _ in range(times + 3):
                started = time.perf_counter()
                answer = client.request(method, path, json=body)
                took.append(time.perf_counter() - started)
                answer.raise_for_status()
        return 1000 * statistics.median(took[3:])  # the first three open the connection and fill the prompt cache

    def cpu_seconds(self) -> float:
        """Return the processor time of the process and its children until now."""
        ticks = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _family(self.process.pid))
        return sum(int(fields[11]) + int(fields[12]) for fields in ticks) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return the peak resident bytes of the process and its children."""
        return sum(_peak(pid) for pid in _family(self.process.pid))


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _peak(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Answer:
    """`texts`: one for each choice. `tokens`: generated ones, as the server counts them.

    `seconds`: until the whole answer had come. `first`: until the first text had come; the same if it was not streamed.
    """

    texts: tuple[str, ...]
    tokens: int
    seconds: float
    first: float


class Connection:
    """One kept-alive connection to a server, with TCP_NODELAY, which http.client always sets."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = http.client.HTTPConnection(server.host, timeout=1200)

    def ask(self, body: dict[str, Any]) -> Answer:
        """Send a chat request and read its answer. Raises RefusedError.

        llama-server closes a connection after a stream, without saying so. Then a new one is opened, as clients do.
        """
        try:
            return self._ask(body)
        except http.client.RemoteDisconnected:
            self._http.close()
            return self._ask(body)

    def _ask(self, body: dict[str, Any]) -> Answer:
        began = time.perf_counter()
        data = json.dumps({"model": self._server.model, **body})
        self._http.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        reply = self._http.getresponse()
        if reply.status != 200:
            raise RefusedError(f"{self._server.name}: {reply.read().decode()}")
        if body.get("stream"):
            return self._streamed(reply, began)
        whole = json.loads(reply.read())
        took = time.perf_counter() - began
        texts = tuple(choice["message"]["content"] or "" for choice in whole["choices"])
        return Answer(texts, whole["usage"]["completion_tokens"], took, took)

    def _streamed(self, reply: http.client.HTTPResponse, began: float) -> Answer:
        first, tokens, pieces = 0.0, 0, []
        for line in reply:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                first = first or (time.perf_counter() - began if piece else 0.0)
                pieces.append(piece)
        return Answer(("".join(pieces),), tokens, time.perf_counter() - began, first)

    def close(self) -> None:
        self._http.close()


@contextmanager
def tourkit(gguf: Path, limits: Limits, *more: str) -> Iterator[Server]:
    """Run `tourkit serve` on the file. `more`: extra options."""
    command = [sys.executable, "-m", "tourkit", "serve", str(gguf), "--port", "0", "--offline"]
    command += ["--slots", str(limits.slots), "--context", str(limits.context), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    host = next(found[1] for line in process.stdout if (found := re.search(r"http://([\d.:]+)/v1", line)))
    yield from _serving(Server("tourkit", host, "tool", process))


@contextmanager
def llama_server(
    gguf: Path, binaries: Path, limits: Limits, *more: str, name: str = "llama-server"
) -> Iterator[Server]:
    """Run llama-server. `more`: extra options, such as those of its n-gram speculation."""
    port = free_port()
    command = [str(binaries / "llama-server"), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", str(limits.slots), "-c", str(limits.slots * limits.context), "-t", str(probe().threads)]
    command += ["--jinja", "-cb", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    yield from _serving(Server(name, f"127.0.0.1:{port}", "bench", process))


@contextmanager
def llama_cpp_server(gguf: Path, limits: Limits) -> Iterator[Server]:
    """Run llama-cpp-python's own server: one sequence at a time."""
    port, threads = free_port(), str(probe().threads)
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", "bench"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(limits.context)]
    command += ["--n_threads", threads, "--n_threads_batch", threads]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    yield from _serving(Server("llama_cpp.server", f"127.0.0.1:{port}", "bench", process), ready="/v1/models")


def _serving(server: Server, ready: str = "/health") -> Iterator[Server]:
    try:
        _wait_ready(server, ready)
        yield server
    finally:
        server.process.terminate()
        server.process.communicate()


def _wait_ready(server: Server, path: str) -> None:
    pause = threading.Event()
    while True:
        if server.process.poll() is not None:
            raise RuntimeError(f"{server.name} ended with {server.process.returncode}")
        try:
            connection = http.client.HTTPConnection(server.host, timeout=10)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        pause.wait(0.05)

"""Steps of a rehearsal: the server from a cold start, an answer of every role, and the swaps between models."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tourkit.checks.desk import Desk
from tourkit.checks.findings import Finding, ok, warning
from tourkit.checks.steps import Result
from tourkit.checks.venue import size_option
from tourkit.errors import EngineError, one_line

SERVE, SWAP = "serve", "swap"
_LOOK = 0.1  # seconds between two looks at /health
_TOKENS = 96
_LEAST_TOKENS = 8  # fewer say nothing about the speed
_QUESTION = "Write a long text about water."
# A model that ends its answers early must go on too. No token of such a text is forced but the first and the last.
_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 150, "maxLength": 400}},
    "required": ["text"],
    "additionalProperties": False,
}
_EMBED, _RERANK = "embed", "rerank"
_DOCUMENTS = ("Water is wet.", "A stone is dry.")
_LONGEST = 1800.0  # seconds without a byte: a large model may be read from a slow drive first


@dataclass(frozen=True, slots=True)
class Server:
    """A running `tourkit serve`. `log`: what it writes on stderr."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def health(self) -> dict[str, Any]:
        """Return the body of /health. Raises EngineError if the server has ended."""
        if self.process.poll() is not None:
            raise EngineError(f"the server ended with code {self.process.returncode} ({_last_line(self.log)})")
        with _asked(self.url, "GET", "/health") as (_, body):
            health: dict[str, Any] = json.loads(body)
        return health


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds until the first token and until the end, and how many tokens the answer has."""

    first: float
    whole: float
    tokens: int

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one; None if there are too few."""
        after = self.whole - self.first
        return (self.tokens - 1) / after if self.tokens >= _LEAST_TOKENS and after > 0 else None


@contextmanager
def serving(desk: Desk, machine: Path) -> Iterator[Server]:
    """Run the installed `tourkit serve --offline` on a free port. Raises EngineError if it does not start."""
    log = desk.folder / "serve.log"
    arguments = ("--bundle", str(desk.bundle), "--port", "0", "--machine", str(machine))
    command = desk.tourkit("serve", *arguments, offline=True)
    if desk.venue.vram is not None:
        command += ["--vram", size_option(desk.venue.vram)]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            cwd=desk.folder / "home",
            env=desk.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    desk.watch(log)
    try:
        yield Server(_url(process, log), process, log)
    finally:
        process.terminate()
        process.communicate()


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from its memory, so that they are read from the drive again."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file, contextlib.suppress(OSError):  # it is only advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_start(server: Server, started: float, roles: tuple[str, ...]) -> Result:
    """Wait until every worker answers at once or in its turn. `started`: when the server was started.

    Raises EngineError if a worker cannot be loaded, or if a planned role is not served.
    """
    while (health := server.health())["status"] != "ok":
        for title, worker in health["workers"].items():
            if worker["state"] == "failed":
                raise EngineError(f"{title} cannot be loaded ({one_line(str(worker['error']))}): see `tourkit serve`")
        time.sleep(_LOOK)
    seconds = time.perf_counter() - started
    return Result(_served(health, seconds, roles), {"cold_start_s": round(seconds, 3)})


def _served(health: dict[str, Any], seconds: float, roles: tuple[str, ...]) -> Finding:
    served = {role for worker in health["workers"].values() for role in worker["roles"]}
    missing = [role for role in roles if role not in served]
    replaced = [
        f"{title}: {worker['answers']} answers" for title, worker in health["workers"].items() if worker["passed_over"]
    ]
    detail = f"ready {seconds:.1f} s after a cold start: {', '.join(sorted(served))}"
    if missing:
        fix = "rehearse on a machine with the venue's GPU"
        return warning(SERVE, f"{detail}; planned for the venue, not possible here: {', '.join(missing)}", fix)
    if replaced:
        return warning(SERVE, f"{detail}; a fallback stands in ({'; '.join(replaced)})", "see `tourkit doctor --load`")
    return ok(SERVE, detail)


def in_turn(health: Mapping[str, Any]) -> dict[str, bool]:
    """Return the served roles, each with whether a request to it swaps models when the roles are asked in this order.

    That is the first role of each worker that takes turns. `health`: the body of /health.
    """
    workers = health["workers"].values()
    return {
        role: bool(worker["takes_turns"]) and role == worker["roles"][0]
        for worker in workers
        for role in worker["roles"]
    }


def answer(server: Server, role: str) -> Result:
    """Ask a role twice: the first request may load its model. Raises EngineError if there is no answer."""
    waited = time.perf_counter()
    asked = {_EMBED: _embedding, _RERANK: _ranking}.get(role, _chat)
    asked(server.url, role, 1)
    waited = time.perf_counter() - waited
    second = asked(server.url, role, _TOKENS)
    figures = {"first_request_s": round(waited, 3), "first_token_s": round(second.first, 3)}
    detail = f"first token after {second.first:.2f} s"
    if role == _EMBED:
        detail = f"embedding after {second.whole:.2f} s"
    elif role == _RERANK:
        detail = f"{len(_DOCUMENTS)} documents ranked after {second.whole:.2f} s"
    elif second.rate is not None:
        figures["tokens_per_s"] = round(second.rate, 1)
        detail += f", {second.rate:.1f} tokens/s over {second.tokens} tokens"
    return Result(ok(f"role {role}", detail), figures)


def swap(waits: dict[str, float]) -> Result:
    """Return what the swaps took. `waits`: seconds of each request that waited for a swap, by its role."""
    if not waits:
        return Result(ok(SWAP, "none: all models stay loaded"))
    worst = max(waits.values())
    detail = f"at most {worst:.1f} s ({', '.join(f'{role} {seconds:.1f} s' for role, seconds in waits.items())})"
    return Result(ok(SWAP, detail), {"swap_s": round(worst, 3)})


def _chat(url: str, role: str, tokens: int) -> Answer:
    body = {
        "model": role,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": tokens,
        "temperature": 0,
        "response_format": {"type": "json_schema", "json_schema": {"name": "text", "schema": _SCHEMA, "strict": True}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    first, count = 0.0, 0
    with _asked(url, "POST", "/v1/chat/completions", body) as (response, _):
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise EngineError(f"{role} does not answer: {one_line(str(event['error'].get('message')))}")
            if not first and any(choice["delta"].get("content") for choice in event.get("choices") or ()):
                first = time.perf_counter() - start
            count = (event.get("usage") or {}).get("completion_tokens", count)
    if not first:
        raise EngineError(f"{role} gives an empty answer: see the server's log")
    return Answer(first, time.perf_counter() - start, count)


def _embedding(url: str, role: str, tokens: int) -> Answer:
    start = time.perf_counter()
    with _asked(url, "POST", "/v1/embeddings", {"model": role, "input": _QUESTION}) as (_, body):
        if not json.loads(body)["data"][0]["embedding"]:
            raise EngineError(f"{role} gives an empty embedding: see the server's log")
    whole = time.perf_counter() - start
    return Answer(whole, whole, 0)


def _ranking(url: str, role: str, tokens: int) -> Answer:
    start = time.perf_counter()
    asked = {"model": role, "query": _QUESTION, "documents": _DOCUMENTS}
    with _asked(url, "POST", "/v1/rerank", asked) as (_, body):
        if len(json.loads(body)["results"]) != len(_DOCUMENTS):
            raise EngineError(f"{role} ranks too few documents: see the server's log")
    whole = time.perf_counter() - start
    return Answer(whole, whole, 0)


@contextmanager
def _asked(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[tuple[Any, bytes]]:
    """Send a request. Yields the response and its body; the body is empty for a stream. Raises EngineError."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=_LONGEST)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        streamed = response.status == 200 and body is not None and "stream" in body
        read = b"" if streamed else response.read()
        if method == "POST" and response.status != 200:
            raise EngineError(f"{path} answers {response.status}: {one_line(read.decode(errors='replace'))}")
        yield response, read
    except (HTTPException, OSError) as exc:
        raise EngineError(f"{path} is not answered ({exc!r}): see the server's log") from exc
    finally:
        connection.close()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    for line in process.stdout or ():
        if found := re.search(r"tourkit serves at (http://\S+)/v1", line):
            return found[1]
    raise EngineError(_last_line(log))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("tourkit: ") if lines else "the server printed nothing"

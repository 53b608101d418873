"""`tourkit serve FILE`: a model of one's own, without manifest and lock; and what a running server prints."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gguf_files import BERT_WIDTH, rewrite, write_bert
from serving import Serving, make_bundle, serve_command, serving
from waiting import until

from tourkit.net import interface_addresses
from tourkit.server.gateway.request_log import RequestLog

pytestmark = pytest.mark.starts

TINY = Path(__file__).parent.parent / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
HELLO = [{"role": "user", "content": "Say hello"}]


def fetch(running: Serving, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(running.url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read(), dict(exc.headers)


def chat(running: Serving, model: str, **more: Any) -> tuple[int, bytes, dict[str, str]]:
    body = {"model": model, "messages": HELLO, "max_tokens": 4, "temperature": 0} | more
    return fetch(running, "/v1/chat/completions", body)


def ids(running: Serving) -> set[str]:
    return {model["id"] for model in json.loads(fetch(running, "/v1/models")[1])["data"]}


def test_one_file_answers_for_every_role_and_under_its_own_name(tmp_path: Path) -> None:
    with serve_command([str(TINY), "--offline"], tmp_path / "log") as running:
        answers = [chat(running, name) for name in ("tool", "tiny")]
        served = ids(running)

    assert [status for status, _, _ in answers] == [200, 200]
    assert {headers["x-tourkit-model"] for _, _, headers in answers} == {"tiny F16 llama_cpp"}
    assert served == {"brain", "fast", "tool", "graph", "tiny"}


def test_the_options_of_serve_hold_for_a_file_and_a_role_is_served_alone(tiny_gguf: Path, tmp_path: Path) -> None:
    first = rewrite(tiny_gguf, tmp_path / "split-Q8_0.gguf", parts=2)
    options = ["--role", "tool", "--context", "512", "--slots", "2", "--deterministic", "--api-key", "s3cret"]
    with serve_command([str(first), *options], tmp_path / "log") as running:
        refused, _, _ = chat(running, "tool")
        request = urllib.request.Request(f"{running.url}/v1/models", headers={"authorization": "Bearer s3cret"})
        with urllib.request.urlopen(request) as answer:
            models = json.loads(answer.read())["data"]

    assert refused == 401
    assert {model["id"]: model["max_model_len"] for model in models} == {"tool": 512, "split": 512}


def test_a_file_that_makes_embeddings_is_served_as_embed_only(tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert-F32.gguf")
    with serve_command([str(bert)], tmp_path / "log") as running:
        _, body, _ = fetch(running, "/v1/embeddings", {"model": "embed", "input": "the date"})
        served = ids(running)

    assert len(json.loads(body)["data"][0]["embedding"]) == BERT_WIDTH
    assert served == {"embed", "bert"}


@pytest.mark.parametrize("harm", ["unknown architecture", "cut short"])
def test_a_file_that_the_worker_cannot_load_ends_the_server_with_one_line(
    harm: str, tiny_gguf: Path, tmp_path: Path
) -> None:
    data, path = tiny_gguf.read_bytes(), tmp_path / "odd-F16.gguf"
    path.write_bytes(data.replace(b"llama", b"lamma") if harm == "unknown architecture" else data[: len(data) // 2])

    command = [sys.executable, "-m", "tourkit", "serve", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith(f"tourkit: odd F16 on llama_cpp: {path}: ")
    cut = "after the end of the file"  # its header says where each tensor begins
    assert ("unknown model architecture: 'lamma'" if harm == "unknown architecture" else cut) in line


def test_the_front_page_says_what_this_is_what_is_served_and_which_routes_there_are(served: Serving) -> None:
    status, body, headers = fetch(served, "/")

    text = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert "OpenAI-compatible" in text
    assert "brain, fast, tool, graph: tiny-random F16 on llama_cpp" in text
    for route in ("POST /v1/chat/completions", "POST /v1/embeddings", "GET /v1/models", "GET /health", "GET /metrics"):
        assert route in text


def request_lines(running: Serving) -> list[str]:
    return [line for line in running.log.read_text().splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]


def test_log_prints_one_line_a_request_with_model_status_tokens_and_seconds(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    with serving(bundle, tmp_path / "log", "--context", "512", "--log") as running:
        answered = json.loads(chat(running, "tool")[1])["usage"]
        chat(running, "fast", **usage)
        chat(running, "chef\nline")
        fetch(running, "/v1/models?x=1")
        until(lambda: len(request_lines(running)) == 4)
        lines = request_lines(running)

    tokens = f"{answered['prompt_tokens']}+{answered['completion_tokens']} tokens"
    shown = [re.sub(r"[\d.]+ s$", "SECONDS", line.split(" ", 1)[1]) for line in lines]
    assert shown == [
        f"POST /v1/chat/completions tool 200 {tokens} SECONDS",
        f"POST /v1/chat/completions fast 200 {tokens} SECONDS",
        r"POST /v1/chat/completions 'chef\nline' 404 SECONDS",
        "GET /v1/models - 200 SECONDS",
    ]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (
            b'"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{}}',
            "5+3 tokens",
        ),
        (b'"usage":{"input_tokens":5,"cache_read_input_tokens":20,"output_tokens":3}', "25+3 tokens"),
        (b'"prompt_eval_count":5,"prompt_eval_duration":70,"eval_count":3,"eval_duration":9}', "5+3 tokens"),
        (b'"usage":{"prompt_tokens":5,"total_tokens":5}', "5+0 tokens"),
        (b'"message":"no numbers"', ""),
    ],
)
def test_log_finds_the_tokens_in_the_answers_of_each_api(body: bytes, tokens: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})

    async def nothing(*_: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/"}
    lines: list[str] = []
    asyncio.run(RequestLog(app, lines.append)(scope, nothing, nothing))  # type: ignore[arg-type]

    assert re.sub(r" ?[\d.]+ s$", "", lines[0].partition(" 200 ")[2]) == tokens


def test_log_says_when_an_answer_was_cut_short() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async def nothing(*_: Any) -> None: ...

    async def ask(path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        await RequestLog(app, lines.append)(scope, nothing, nothing)  # type: ignore[arg-type]

    lines: list[str] = []
    for path in ("/begun", "/not-begun"):
        asyncio.run(ask(path))

    begun, not_begun = (line.split(" ", 1)[1] for line in lines)
    assert re.fullmatch(r"GET /begun - 200 [\d.]+ s cut short", begun)
    assert re.fullmatch(r"GET /not-begun - 499 [\d.]+ s cut short", not_begun)


def test_on_all_addresses_serve_prints_loopback_and_what_other_machines_can_use(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    with serve_command([str(tiny_gguf), "--host", "0.0.0.0", "--no-key"], tmp_path / "log") as running:
        status, _, _ = fetch(running, "/")
        running.process.terminate()
        assert running.process.stdout is not None
        rest = running.process.stdout.read()

    port = running.url.rpartition(":")[2]
    elsewhere = [f"http://{address}:{port}/v1" for address in interface_addresses()]
    assert status == 200
    assert running.url == f"http://127.0.0.1:{port}"
    assert rest == (f"from other machines: {', '.join(elsewhere)}\n" if elsewhere else "")

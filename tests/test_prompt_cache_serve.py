"""The prompt cache through `tourkit serve`: the plan's size reaches the engine, and all reports name it."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from serving import Serving, serve_command
from waiting import until

from tourkit.cli import cli
from tourkit.errors import UsageError

TINY = Path(__file__).parent.parent / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
DOCUMENT = "The bill of Anna Petrova for the paper, the ink and the boxes is 1200 rubles. " * 20
SIZE = 8 << 20  # bytes


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Serving]:
    kept = ("--prompt-cache", f"{SIZE >> 20}MiB", "--prompt-cache-dir", str(tmp_path / "kept"))
    arguments = [str(TINY), "--offline", "--role", "tool", "--slots", "2", "--context", "1024", *kept]
    with serve_command(arguments, tmp_path / "log") as running:
        yield running


def fetch(running: Serving, path: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(running.url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as exc:  # /health while the worker is loading
        with exc:
            return exc.read().decode()


def found(running: Serving, question: str) -> int:
    """Ask about the document. Return how many tokens of the prompt were found."""
    message = {"role": "user", "content": f"{DOCUMENT}\n{question}"}
    body = {"model": "tool", "messages": [message], "max_tokens": 4, "temperature": 0}
    usage = json.loads(fetch(running, "/v1/chat/completions", body))["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def health(running: Serving) -> dict[str, Any]:
    [worker] = json.loads(fetch(running, "/health"))["workers"].values()
    return dict(worker)


def figure(running: Serving, name: str) -> int:
    """Return a figure of the prompt cache; 0 if the worker gives none at the moment."""
    return int((health(running)["prompt_cache"] or {}).get(name, 0))


@pytest.mark.starts
def test_a_document_asked_again_is_found_also_by_the_next_process_of_its_worker(running: Serving) -> None:
    first, again = found(running, "Who pays?"), found(running, "How much is it?")
    assert (first < 64, again > 200) == (True, True)
    assert health(running)["prefix_sharing"] == "any prefix"

    until(lambda: figure(running, "disk_bytes") > 0 and figure(running, "bytes") > 0)
    until(lambda: SIZE - 4096 < figure(running, "limit_bytes") <= SIZE)  # a whole number of tokens
    scraped = dict(re.findall(r"^tourkit_prompt_cache_(\w+)\{.*\} (\S+)", fetch(running, "/metrics"), re.MULTILINE))
    assert SIZE - 4096 < float(scraped["limit_bytes"]) <= SIZE
    assert scraped.keys() == {"bytes", "limit_bytes", "disk_bytes", "entries", "hits_total", "tokens_total"}

    os.kill(health(running)["pid"], signal.SIGKILL)
    until(lambda: health(running)["restarts"] == 1 and health(running)["state"] == "ready")
    assert found(running, "What is it for?") > 200
    until(lambda: figure(running, "hits_total") == 1)


def test_a_folder_without_ram_is_refused_because_the_prompts_it_saves_come_from_there(tmp_path: Path) -> None:
    options = ["--prompt-cache", "0", "--prompt-cache-dir", str(tmp_path)]

    done = CliRunner().invoke(cli, ["serve", str(tmp_path / "no.gguf"), *options])

    assert isinstance(done.exception, UsageError)
    assert "choose one of them" in str(done.exception)


@pytest.mark.parametrize("size", ["0", "0GiB"])
def test_none_beside_deterministic_is_what_it_has_anyway(size: str, tmp_path: Path) -> None:
    """The command goes on to the file, which is not there."""
    done = CliRunner().invoke(cli, ["serve", str(tmp_path / "no.gguf"), "--deterministic", "--prompt-cache", size])

    assert isinstance(done.exception, UsageError)
    assert "no.gguf" in str(done.exception)

"""Steps: tokens per second of tourkit beside llama.cpp's own programs, on the same file with the same prompts."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.prompts import documents
from tools.gpu.findings import SPEED, Finding, check, measured, skipped
from tools.gpu.place import NO_GPU, ROOT, Place, cuda_libraries, is_installed

PROMPT, ANSWER = 512, 128  # tokens
SEQUENCES = (1, 4, 16)
_ROUNDS = 3
_MODEL = "8b-q8_0"
_NO_BUILD = "build/gpu has no CUDA build of llama.cpp"
_NO_LLAMA = "llama_cpp is not installed here, and no CUDA build was carried"


def batched_bench(place: Place) -> Iterator[Finding]:
    """Run llama-batched-bench: the upper limit, without HTTP and without a sampler."""
    program = place.program("llama-batched-bench")
    if place.dry or program is None:
        yield skipped("llama-batched-bench", NO_GPU if place.dry else _NO_BUILD)
        return
    command = [str(program), "-m", str(place.model(_MODEL)), "-ngl", "99", "-c", str(max(SEQUENCES) * 1024)]
    command += ["-b", "2048", "-ub", "512", "-npp", str(PROMPT), "-ntg", str(ANSWER)]
    command += ["-npl", ",".join(map(str, SEQUENCES)), "--output-format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_with_cuda()) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                yield bench_row(json.loads(line))
    yield check("llama-batched-bench ended well", process.returncode == 0, f"exit code {process.returncode}")


def bench_row(fields: dict[str, Any]) -> Finding:
    """Return the row of a line of llama-batched-bench."""
    count, seconds = int(fields["pl"]), float(fields["t_pp"]) + float(fields["t_tg"])
    speeds = {"tokens/s": int(fields["tg"]) * count / seconds, "decoding, tokens/s": float(fields["speed_tg"])}
    return measured("llama-batched-bench", SPEED, sequences=count, **speeds)


def engine(place: Place) -> Iterator[Finding]:
    """Run tourkit's engine without HTTP (bench/engine_speed.py), decoding as llama-batched-bench counts it."""
    path = place.model(_MODEL)
    if not is_installed("llama_cpp") or not path.is_file():
        yield skipped("tourkit's engine without HTTP", _NO_LLAMA)
        return
    if place.dry:
        yield skipped("tourkit's engine without HTTP", NO_GPU)
        return
    for count in SEQUENCES:
        command = [sys.executable, str(ROOT / "bench" / "engine_speed.py"), str(path), str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        speeds = {"decoding, tokens/s": figures["tokens/s"], "step, ms": figures["step"]}
        speeds["step under a grammar, ms"] = figures["constrained step"]
        yield measured("tourkit without HTTP", SPEED, sequences=count, **speeds)


def tourkit(place: Place) -> Iterator[Finding]:
    """Run `tourkit serve FILE` with clients."""
    if not is_installed("llama_cpp") or not place.model(_MODEL).is_file():
        yield skipped("tourkit serve", _NO_LLAMA)
        return
    if place.dry:
        yield skipped("tourkit serve", NO_GPU)
        return
    command = [sys.executable, "-m", "tourkit", "serve", str(place.model(_MODEL)), "--port", "0", "--offline"]
    command += ["--slots", str(max(SEQUENCES)), "--context", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        host = next(
            (found[1] for line in process.stdout or () if (found := re.search(r"http://([\d.:]+)/v1", line))), ""
        )
        yield check("tourkit serve starts", bool(host), "see stderr")
        try:
            if host:
                yield from _rows("tourkit serve", host)
        finally:
            process.terminate()


def llama_server(place: Place) -> Iterator[Finding]:
    """Run llama-server with the same clients."""
    program = place.program("llama-server")
    if place.dry or program is None:
        yield skipped("llama-server", NO_GPU if place.dry else _NO_BUILD)
        return
    with _llama_server(program, place.model(_MODEL)) as host:
        yield from _rows("llama-server", host)


@contextmanager
def _llama_server(program: Path, model: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    slots = max(SEQUENCES)
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-ngl", "99"]
    command += ["-np", str(slots), "-c", str(slots * 1024), "--jinja"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_with_cuda()) as process:
        try:
            _wait_ready(f"127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_ready(host: str, process: subprocess.Popen[bytes]) -> None:
    pause = threading.Event()
    while process.poll() is None:
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        pause.wait(0.1)
    raise RuntimeError(f"the server ended with {process.returncode}")


def _rows(name: str, host: str) -> Iterator[Finding]:
    """Ask a server for every number of sequences, several times, with new prompts each time."""
    asked(host, 1, 1)
    for count in SEQUENCES:
        rounds = [asked(host, count, 100 * count + number) for number in range(_ROUNDS)]
        speeds = sorted(each["tokens/s"] for each in rounds)
        lengths = statistics.mean(each["prompt, tokens"] for each in rounds)
        figures = {"tokens/s": statistics.median(speeds), "lowest": speeds[0], "highest": speeds[-1]}
        yield measured(name, SPEED, sequences=count, **figures, **{"prompt, tokens": lengths})


def asked(host: str, clients: int, seed: int, *, prompt: int = PROMPT, tokens: int = ANSWER) -> dict[str, float]:
    """Return the tokens per second of all clients together. The time for the prompts counts too."""
    prompts = documents(clients, 8, prompt - 24, seed)  # less the tokens of the chat template
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        usages = list(pool.map(partial(_chat, host, tokens, seed), prompts))
    seconds = time.perf_counter() - started
    made = sum(usage["completion_tokens"] for usage in usages)
    return {"tokens/s": made / seconds, "prompt, tokens": statistics.mean(usage["prompt_tokens"] for usage in usages)}


def _chat(host: str, tokens: int, seed: int, content: str) -> dict[str, int]:
    """Ask for one answer of `tokens` tokens. Return its usage."""
    body = {"model": "tool", "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    body |= {"temperature": 0.8, "seed": seed}
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{host}: HTTP {answer.status}: {data}")
    usage: dict[str, int] = data["usage"]
    return usage


def _with_cuda() -> dict[str, str]:
    """Return the environment of llama.cpp's own programs: they find CUDA's libraries beside torch."""
    folders = [*cuda_libraries(), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(folder for folder in folders if folder)}

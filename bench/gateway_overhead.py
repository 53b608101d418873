"""Measure the cost of the gateway: vLLM through `tourkit serve`, and `vllm serve` called directly.

`python bench/gateway_overhead.py [--model DIR] [--mode streams] [--rounds 7] [--json]`, in an environment with vLLM
(`make test-vllm`).
Both servers run at the same time and are asked in turns. They have the same options and variables; the direct one has
neither our middleware nor a gateway. Every answer has the same length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from servers import free_port

from tourkit.backends.vllm.arguments import environment, serve_arguments
from tourkit.backends.vllm.library import is_cpu_build
from tourkit.backends.vllm.weights import shape_of
from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, write_index
from tourkit.hardware.probe import probe
from tourkit.launch import Launch
from tourkit.manifest.models import VariantId
from tourkit.server.gateway.process import tuned

ROOT = Path(__file__).resolve().parents[1]
SLOTS, CONTEXT, TOKENS = 16, 1024, 128
MODES = {"whole answers": False, "streams": True}


@contextmanager
def direct(model: Path, work: Path) -> Iterator[str]:
    """Run `vllm serve` as tourkit starts it, but without the middleware. Yields its URL."""
    spec = Launch("bench", "vllm", str(model), SLOTS, CONTEXT, probe().threads)
    cpu, address = is_cpu_build(), f"127.0.0.1:{free_port()}"
    command_line = serve_arguments(spec, model, shape_of(model), address, ("tool",), middleware="a.Front", cpu=cpu)
    front = command_line.index("--middleware")
    del command_line[front : front + 2]
    scratch = work / "direct"
    scratch.mkdir()
    variables = tuned("vllm") | environment(spec, cpu=cpu) | {"TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *command_line]
    with running(command, work / "direct.log", variables, says=False) as process:
        while process.poll() is None and not answers(f"http://{address}/health"):
            time.sleep(0.2)
        yield f"http://{address}"


@contextmanager
def gateway(model: Path, work: Path) -> Iterator[str]:
    """Run `tourkit serve` on a bundle of the model. Yields its URL."""
    folder = work / "bundle" / VariantId("bench", "F16").folder
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    about = BundleModel("bench", "bench/bench", "none", CONTEXT, None, False)
    variant = BundleVariant("bench", "F16", "safetensors", "bench/bench", "main", "1" * 40)
    write_index(work / "bundle", build_index(work / "bundle", "bench", {"tool": ["bench"]}, [about], [variant]))
    command = [sys.executable, "-m", "tourkit", "serve", "--bundle", str(work / "bundle"), "--port", "0", "--offline"]
    command += ["--slots", str(SLOTS), "--context", str(CONTEXT)]
    with running(command, work / "gateway.log", dict(os.environ)) as process:
        url = next(found[1] for line in process.stdout or () if (found := re.search(r"(http://[\d.:]+)/v1", line)))
        while process.poll() is None and not answers(f"{url}/health"):
            time.sleep(0.2)
        yield url


@contextmanager
def running(
    command: list[str], log: Path, variables: dict[str, str], *, says: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """Run a server. `says`: its stdout goes to a pipe for the caller; else it goes to the log."""
    with log.open("w") as errors:
        to = subprocess.PIPE if says else errors
        process = subprocess.Popen(command, stdout=to, stderr=errors, text=True, env=variables, start_new_session=True)
    try:
        yield process
        if process.poll() is not None:
            sys.exit(f"{' '.join(command[:5])} ended: {log.read_text()[-2000:]}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def tokens_a_second(url: str, name: str, end: int, requests: int, *, stream: bool) -> float:
    """Return tokens per second for `requests` answers of TOKENS tokens; SLOTS requests run at once."""
    gate = asyncio.Semaphore(SLOTS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(index: int) -> None:
            content = f"Item {index} costs {index * 7} rubles. Write a long story about it."
            body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": content}]}
            body |= {"max_tokens": TOKENS, "temperature": 0, "stream": stream, "logit_bias": {str(end): -100}}
            body |= {"stream_options": {"include_usage": True}} if stream else {}
            async with gate, session.post(f"{url}/v1/chat/completions", json=body) as reply:
                assert reply.status == 200, await reply.text()
                raw = await reply.read()
                *_, last, done = raw.removesuffix(b"\n\n").split(b"\n\n") if stream else (raw, b"")
                assert done == (b"data: [DONE]" if stream else b"")
                assert json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"] == TOKENS

        started = time.perf_counter()
        await asyncio.gather(*map(ask, range(requests)))
        return requests * TOKENS / (time.perf_counter() - started)


def measure(model: Path, modes: list[str], rounds: int, requests: int) -> list[dict[str, Any]]:
    end = json.loads((model / "config.json").read_text())["eos_token_id"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with direct(model, work) as direct_url, gateway(model, work) as gateway_url:
            both = {"direct": (direct_url, "bench"), "gateway": (gateway_url, "tool")}
            rows = []
            for mode in modes:
                found: dict[str, list[float]] = {"direct": [], "gateway": []}
                for turn in range(rounds + 1):  # the first round is a warm-up
                    for side in sorted(both, reverse=turn % 2 == 1):
                        url, name = both[side]
                        speed = asyncio.run(tokens_a_second(url, name, end, requests, stream=MODES[mode]))
                        if turn:
                            found[side].append(speed)
                ratios = [ours / theirs for ours, theirs in zip(found["gateway"], found["direct"], strict=True)]
                rows.append(
                    {
                        "mode": mode,
                        "direct": statistics.median(found["direct"]),
                        "gateway": statistics.median(found["gateway"]),
                        "ratio": statistics.median(ratios),
                        "ratios": sorted(ratios),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "tiny" / "safetensors")
    parser.add_argument("--mode", choices=MODES, help="run only this mode")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    modes = [args.mode] if args.mode else list(MODES)
    rows = measure(args.model.resolve(), modes, args.rounds, args.requests)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{probe().threads} threads, {SLOTS} at once, {TOKENS} tokens per answer, {args.rounds} rounds in turns")
    print("| | vllm serve, tokens/s | through the gateway | ratio (lowest to highest round) |\n|---|---|---|---|")
    for row in rows:
        spread = f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}"
        print(f"| {row['mode']} | {row['direct']:.0f} | {row['gateway']:.0f} | {row['ratio']:.3f} ({spread}) |")


if __name__ == "__main__":
    main()

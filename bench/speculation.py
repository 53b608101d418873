"""Measure speculation by prompt lookup, on and off: the tiny model repairs JSON, so it copies most of its prompt.

`python bench/speculation.py [--gguf FILE] [--rounds 5] [--clients 1 8]`. Both get the same requests in turns. It prints
the seconds of both, the ratio of the medians, and the share of right guesses. The texts must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.data import TINY_DOCUMENTS, TINY_GGUF
from tourkit.generation import Constraint, Delta, Request, SamplingParams
from tourkit.hardware.probe import probe

SYSTEM = "Repair the broken JSON. Answer with the whole corrected JSON only."


def requests() -> list[Request]:
    """Return requests whose answers copy their prompts: broken JSON that is written again, by its schema."""
    found = []
    lines = (TINY_DOCUMENTS / "json_extraction" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    gold = (TINY_DOCUMENTS / "json_extraction" / "gold.jsonl").read_text(encoding="utf-8").splitlines()
    for document, answer in zip(map(json.loads, lines), map(json.loads, gold), strict=True):
        params = SamplingParams(max_tokens=300, temperature=0)
        written = json.dumps(answer["data"], ensure_ascii=False)
        messages: tuple[dict[str, Any], ...] = (
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": written[:-1]},
        )
        found.append(Request(messages=messages, params=params, constraint=Constraint.json_schema(document["schema"])))
    return found


def ask_all(engine: RunnerEngine, asked: list[Request], clients: int) -> tuple[list[str], float]:
    """Return the texts and the seconds, with `clients` requests at a time."""
    texts = [""] * len(asked)
    free = threading.Semaphore(clients)
    done = threading.Semaphore(0)

    def emit(place: int, delta: Delta) -> None:
        texts[place] += delta.text
        if delta.finish:
            free.release()
            done.release()

    started = time.perf_counter()
    for place, request in enumerate(asked):
        free.acquire()
        engine.submit(request, lambda delta, place=place: emit(place, delta))
    for _ in asked:
        done.acquire()
    return texts, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, default=TINY_GGUF)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    if not given.gguf.is_file() or not TINY_DOCUMENTS.is_dir():
        print(f"skipped: there is no {given.gguf.name} or no documents beside it", file=sys.stderr)
        return
    asked = requests()
    engines = {
        name: RunnerEngine(
            LlamaRunner(given.gguf, slots=8, context=2048, threads=probe().threads), "llama_cpp", speculate=speculate
        )
        for name, speculate in (("off", False), ("on", True))
    }
    for clients in given.clients:
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(given.rounds):
            texts = {}
            for name, engine in engines.items():
                texts[name], took = ask_all(engine, asked, clients)
                seconds[name].append(took)
            if texts["on"] != texts["off"]:
                differ = sum(a != b for a, b in zip(texts["on"], texts["off"], strict=True))
                print(f"  {differ} of {len(asked)} texts differ because of rounding")
        medians = {name: statistics.median(took) for name, took in seconds.items()}
        print(
            f"{clients} clients: off {medians['off']:.3f} s, on {medians['on']:.3f} s, "
            f"{medians['off'] / medians['on']:.2f} times as fast"
        )
    stats = engines["on"].stats()
    print(f"guesses right: {stats.accepted_tokens} of {stats.drafted_tokens}")


if __name__ == "__main__":
    main()

"""Compare the numpy sampler with llama.cpp's sampler chain: microseconds of processor time a token, at three
sizes of vocabulary.

`python bench/sampling.py [--rounds 60]`: the same logits and parameters, in turns. The median of all rounds counts, and
the fastest and the slowest stand beside it. llama.cpp's time is that of the chain alone: making its table of candidates
is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from functools import partial

import llama_cpp
import numpy as np

from tourkit.backends.llama_cpp.sampling import LlamaSampler
from tourkit.engine.sampling import NumpySampler
from tourkit.generation import SamplingParams

VOCABULARIES = (49_152, 128_256, 262_144)  # SmolLM2, Llama 3, Gemma 3
SPREADS = {"flat": 1.0, "peaked": 4.0}  # standard deviations of normal logits
PARAMS = {
    "temperature 0.8": SamplingParams(temperature=0.8),
    "top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "top_k 40": SamplingParams(temperature=0.8, top_k=40),
    "min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "top_k 40, top_p 0.95, min_p 0.05": SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
    "presence_penalty 1": SamplingParams(temperature=0.8, presence_penalty=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    print("| vocabulary | logits | parameters | numpy, µs | llama.cpp, µs | ratio |")
    print("|---:|---|---|---:|---:|---:|")
    for size in VOCABULARIES:
        for kind, spread in SPREADS.items():
            logits = (np.random.default_rng(1).standard_normal(size) * spread).astype(np.float32)
            for name, params in PARAMS.items():
                print(f"| {size:,} | {kind} | {name} | {compare(logits, params, given.rounds)} |")


def compare(logits: np.ndarray, params: SamplingParams, rounds: int) -> str:
    """Return the medians of both samplers with their spread, and the ratio llama.cpp / numpy."""
    ours = NumpySampler(lambda row: logits, params, 1)
    chain = LlamaSampler(llama_cpp, None, params, 1, len(logits))
    entries = (llama_cpp.llama_token_data * len(logits))()
    table = np.frombuffer(entries, dtype=[("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])
    times: dict[str, list[float]] = {"numpy": [], "llama.cpp": []}
    for _ in range(rounds):
        times["numpy"].append(seconds(lambda: ours.sample(0)))
        table["id"], table["logit"], table["p"] = np.arange(len(logits)), logits, 0
        array = llama_cpp.llama_token_data_array(data=entries, size=len(logits), selected=-1, sorted=False)
        apply = partial(llama_cpp.llama_sampler_apply, chain._chain, ctypes.byref(array))
        times["llama.cpp"].append(seconds(apply))
        chain.accept(array.data[array.selected].id)
    chain.close()
    shown = [f"{statistics.median(t) * 1e6:.0f} ({min(t) * 1e6:.0f}–{max(t) * 1e6:.0f})" for t in times.values()]
    ratio = statistics.median(times["llama.cpp"]) / statistics.median(times["numpy"])
    return f"{shown[0]} | {shown[1]} | {ratio:.2f}"


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call. Both samplers compute in the calling thread alone."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


if __name__ == "__main__":
    main()

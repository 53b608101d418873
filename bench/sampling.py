"""Compare the numpy sampler with llama.cpp's own: microseconds per token, with a vocabulary of 32,000.

`python bench/sampling.py [--rounds 200]`: the same logits and parameters, in turns. The fastest round counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapes

from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.llama_cpp.sampling import LlamaSampler
from tourkit.engine.sampling import NumpySampler
from tourkit.generation import SamplingParams

PARAMS = {
    "temperature 0.8": SamplingParams(temperature=0.8),
    "top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "top_k 40": SamplingParams(temperature=0.8, top_k=40),
    "min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "presence_penalty 1": SamplingParams(temperature=0.8, presence_penalty=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tourkit-bench-") as folder:
        gguf = Path(folder) / "12m.gguf"
        shapes.write(shapes.SHAPES["12m"], gguf)
        runner = LlamaRunner(gguf, slots=1, context=256)
        row = runner.add(5, 0, 0, logits=True)
        assert row is not None
        runner.decode()
        for kind, spread in (("flat", 1.0), ("sharp", 4.0)):
            logits = runner.logits(row)
            logits[:] = np.random.default_rng(1).standard_normal(runner.n_vocab) * spread
            for name, params in PARAMS.items():
                compare(f"{kind} logits, {name}", runner, row, params, given.rounds)
        runner.close()


def compare(title: str, runner: LlamaRunner, row: int, params: SamplingParams, rounds: int) -> None:
    ours = NumpySampler(runner.logits, params, 1)
    theirs = LlamaSampler(runner._lib, runner._context, params, 1, runner.n_vocab)
    best = {"numpy": float("inf"), "llama.cpp": float("inf")}
    for _ in range(rounds):
        for name, sampler in (("numpy", ours), ("llama.cpp", theirs)):
            best[name] = min(best[name], seconds(lambda sampler=sampler: sampler.sample(row)))
    theirs.close()
    ratio = best["llama.cpp"] / best["numpy"]
    print(f"{title:34} numpy {best['numpy'] * 1e6:7.0f}  llama.cpp {best['llama.cpp'] * 1e6:7.0f}  ratio {ratio:.2f}")


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

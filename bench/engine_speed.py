"""Measure the engine without HTTP: decoding with and without a grammar.

`python bench/engine_speed.py GGUF [SEQUENCES] [SAMPLING]` prints JSON: tokens per second after all prompts are
computed, as llama-batched-bench counts them, and the milliseconds of one step with and without a grammar. The grammar
forces no token, so every token is sampled. SEQUENCES: 8 unless given. SAMPLING: `temperature` (0.8; used unless given)
or `default`, the sampling of a request that says nothing, if its model states nothing either.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from prompts import documents

from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.defaults import FALLBACK, stated
from tourkit.generation import Constraint, Delta, Request, SamplingParams
from tourkit.hardware.probe import probe

SEQUENCES = int(sys.argv[2]) if len(sys.argv) > 2 else 8
SAMPLINGS = {"temperature": {"temperature": 0.8}, "default": stated(FALLBACK)}
SAMPLING: dict[str, Any] = SAMPLINGS[sys.argv[3] if len(sys.argv) > 3 else "temperature"]
PROMPT = 32
LONG_STRING = Constraint("regex", "[^\\x00-\\x1f]*")


def decode(engine: RunnerEngine, tokens: int, constraint: Constraint | None, seed: int) -> tuple[int, float, int]:
    """Return tokens, seconds and steps, from the first token of the last sequence to the end of all sequences."""
    began: dict[int, float] = {}
    steps_then: list[int] = []
    counted = [0]
    done = threading.Semaphore(0)

    def emit(place: int, delta: Delta) -> None:
        if len(began) == SEQUENCES:
            counted[0] += delta.n_tokens
        if place not in began:
            began[place] = time.perf_counter()
            if len(began) == SEQUENCES:
                steps_then.append(engine.stats().decode_steps)
        if delta.finish:
            done.release()

    for place, prompt in enumerate(documents(SEQUENCES, 8, PROMPT - 8, seed)):
        params = SamplingParams(max_tokens=tokens, seed=seed, **SAMPLING)
        engine.submit(
            Request(prompt=prompt, params=params, constraint=constraint), lambda delta, place=place: emit(place, delta)
        )
    for _ in range(SEQUENCES):
        done.acquire()
    ended = time.perf_counter()
    return counted[0], ended - max(began.values()), engine.stats().decode_steps - steps_then[0]


def main() -> None:
    # Without speculation: guesses in random text are seldom right, and both kinds must run the same steps.
    runner = LlamaRunner(Path(sys.argv[1]), slots=SEQUENCES, context=512, threads=probe().threads)
    engine = RunnerEngine(runner, "llama_cpp", speculate=False)
    decode(engine, 8, LONG_STRING, 0)
    tokens, free, steps = decode(engine, 96, None, 1)
    _, held, held_steps = decode(engine, 96, LONG_STRING, 1)
    engine.close()
    figures = {"tokens/s": tokens / free, "step": free / steps * 1000, "constrained step": held / held_steps * 1000}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

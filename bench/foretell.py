"""Compare the speed that `tourkit plan` foretells with the speed that is measured.

    python bench/foretell.py                          # the tiny model, SmolLM2, and random weights of 1.1 and 3 billion
    python bench/foretell.py --only tiny smollm2      # some of them
    python bench/foretell.py --gguf MODEL.gguf        # a model of your own

The rates of the machine are measured directly before each model, and the plan is made with them. Then a process loads
the model, and its engine computes a prompt, decodes for one client, and decodes for all slots. Guessing by prompt
lookup is off, because it makes text faster by a factor that depends on the text. Each sequence has about the number of
tokens that the plan's figures are for. Before the load, the page cache drops the file. Random weights are written into
a temporary folder (2 GB) and deleted. The exit code is 1 if a figure is wrong by more than the factor WITHIN.

Run it on a machine that does nothing else. llama.cpp waits for all its threads at every operation: if another process
takes one of the processors, decoding is several times slower than the rates of the machine allow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import prompts  # noqa: E402 - beside this file
import shapes  # noqa: E402
from memory_estimate import machine  # noqa: E402
from portable_vs_native import weights  # noqa: E402

from tourkit.backends.llama_cpp.runner import LlamaRunner  # noqa: E402
from tourkit.backends.runner_engine import RunnerEngine  # noqa: E402
from tourkit.generation import Delta, Request, SamplingParams  # noqa: E402
from tourkit.hardware.machine import Hardware  # noqa: E402
from tourkit.hardware.probe import probe  # noqa: E402
from tourkit.hardware.rates import with_rates  # noqa: E402
from tourkit.launch import NO_LAYERS, Launch  # noqa: E402
from tourkit.planning import planner  # noqa: E402
from tourkit.planning.limits import Limits  # noqa: E402
from tourkit.planning.plan import Placement, Speed  # noqa: E402
from tourkit.planning.speed import FILLED  # noqa: E402
from tourkit.planning.weights import read_weights  # noqa: E402
from tourkit.server.gateway.process import tuned  # noqa: E402
from tourkit.units import size_text  # noqa: E402

WITHIN = 1.5
SLOTS, CONTEXT = 4, 1024
ANSWER = 96  # tokens; half of them before a sequence has FILLED tokens, half of them after
ROUNDS = 3  # of each measurement; the fastest counts, because other programs only make it slower
FIGURES = ("one", "all", "prompt", "load")
RANDOM = {"1.1b": "Q8_0", "3b": "Q4_0"}
DISTINCT = 64  # rows of each random matrix that are drawn


@dataclass(frozen=True)
class Case:
    name: str
    path: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="a model of your own, instead of the four")
    parser.add_argument("--only", nargs="+", choices=("tiny", "smollm2", *RANDOM), help="some of the four")
    parser.add_argument("--rates", action="store_true", help="print the rates of the machine before each model too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Launch(**json.loads(options.child) | {"gpu_layers": NO_LAYERS}))
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}\n")
    heads = (f"{figure}: foretold, measured, ratio" for figure in ("one client", "all slots", "prompts", "until ready"))
    print(f"| model | weights | {' | '.join(heads)} | within {WITHIN} |\n|---{'|---' * 6}|")
    wrong = False
    for case in [Case(options.gguf.stem, options.gguf)] if options.gguf else cases(options.only):
        hardware = with_rates(probe(), case.path)
        placement = planned(case.path, hardware)
        measured = measure(placement.launch, case.path)
        wrong |= not within(placement.speed, measured)
        print(row(case, placement.speed, measured), flush=True)
        if options.rates:
            print(json.dumps({name: asdict(hardware)[name] for name in ("bandwidth", "kernels", "disk")}))
    sys.exit(wrong)


def cases(only: list[str] | None) -> Iterator[Case]:
    """Yield the models. Each random one exists only until the next is asked for."""
    chosen = only or ["tiny", "smollm2", *RANDOM]
    if "tiny" in chosen:
        yield Case("tiny", ROOT / "weights" / "tiny" / "gguf" / "tiny-q8_0.gguf")
    if "smollm2" in chosen:
        path = weights(ROOT / "build" / "smollm2")
        yield Case(path.stem, path)
    for name, quant in RANDOM.items():
        if name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"random-{name}-{quant}.gguf"
                shapes.write(shapes.SHAPES[name], path, quant=quant, distinct=DISTINCT)
                yield Case(path.stem, path)


def planned(path: Path, hardware: Hardware) -> Placement:
    """Return the placement of the one model, as `serve FILE` plans it on the CPU."""
    given = read_weights(path)
    roles = tuple(given.index.roles)[:1]
    made = planner.plan(
        given.index, hardware, roles=roles, context=CONTEXT, slots=SLOTS, shapes=given.shapes, limits=Limits(vram=0)
    )
    return made.placements[0]


def measure(launch: Launch, path: Path) -> Speed:
    """Load and run the model in a process of its own, in the environment of a worker."""
    spec = {name: getattr(launch, name) for name in ("model", "stack", "slots", "context", "threads", "cache_type")}
    forget(path)
    started = time.perf_counter()
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(spec | {"path": str(path)})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=tuned("llama_cpp")) as process:
        lines = process.stdout or ()
        loaded = next(iter(lines), "")
        load = time.perf_counter() - started
        found = next(iter(lines), "") if loaded else ""
    if not found:
        sys.exit(f"{path}: the process that should run it exited with {process.returncode}")
    return Speed(load=load, **json.loads(found))


def forget(path: Path) -> None:
    """Drop a file from the page cache, so that a load reads the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(launch: Launch) -> None:
    """Load the model, print a line, and print the measured rates as JSON."""
    import tourkit.server.worker.process  # noqa: F401 - a worker has this loaded too

    runner = LlamaRunner(
        Path(launch.path),
        slots=launch.slots,
        context=launch.context,
        threads=launch.threads,
        cache_type=launch.cache_type,
        gpu_layers=launch.gpu_layers,
    )
    engine = RunnerEngine(runner, "llama_cpp", speculate=False)
    print("loaded", flush=True)
    seeds = iter(range(1000))
    decode(engine, 1, 4, 4, next(seeds))
    rates = {
        "prompt": max(prompt_rate(engine, next(seeds)) for _ in range(ROUNDS)),
        "one": best(lambda: decode(engine, 1, FILLED - ANSWER // 2, ANSWER, next(seeds))),
        "all": best(lambda: decode(engine, launch.slots, FILLED - ANSWER // 2, ANSWER, next(seeds))),
    }
    engine.close()
    print(json.dumps(rates))


def best(rate: Callable[[], float]) -> float:
    return max(rate() for _ in range(ROUNDS))


def text(engine: RunnerEngine, tokens: int, seed: int) -> str:
    """Return a text of about this many tokens, whatever the vocabulary."""
    ids = engine.tokenize(prompts.words(tokens, seed), add_special=False)
    return engine.detokenize(ids[:tokens])


def prompt_rate(engine: RunnerEngine, seed: int) -> float:
    """Return tokens a second of a prompt that no other prompt begins like."""
    done = threading.Event()
    request = Request(prompt=text(engine, FILLED, seed), params=SamplingParams(max_tokens=1, temperature=0))
    started = time.perf_counter()
    submission = engine.submit(request, lambda delta: done.set() if delta.finish else None)
    done.wait()
    return submission.n_prompt / (time.perf_counter() - started)


def decode(engine: RunnerEngine, sequences: int, prompt: int, answer: int, seed: int) -> float:
    """Return tokens a second of all sequences together, from when each has its first token until the first ends."""
    seen: list[tuple[float, int]] = []  # when a delta came, and its tokens
    began: set[int] = set()
    whole: list[int] = []  # where in `seen` all sequences have begun, and where the first ended
    done = threading.Semaphore(0)
    lock = threading.Lock()

    def emit(place: int, delta: Delta) -> None:
        with lock:
            seen.append((time.perf_counter(), delta.n_tokens))
            if place not in began:
                began.add(place)
                if len(began) == sequences:
                    whole.append(len(seen))
            if delta.finish:
                if len(whole) == 1:
                    whole.append(len(seen))
                done.release()

    for place in range(sequences):
        params = SamplingParams(max_tokens=answer, temperature=0.8, seed=seed * 10 + place)
        request = Request(prompt=text(engine, prompt, seed * 10 + place), params=params)
        engine.submit(request, lambda delta, place=place: emit(place, delta))
    for _ in range(sequences):
        done.acquire()
    if len(whole) < 2 or whole[1] - whole[0] < 4:  # a text that ended at once
        return 0.0
    first, last = whole
    return sum(count for _, count in seen[first:last]) / (seen[last - 1][0] - seen[first - 1][0])


def within(foretold: Speed, measured: Speed) -> bool:
    return all(1 / WITHIN <= ratio(foretold, measured, figure) <= WITHIN for figure in FIGURES)


def ratio(foretold: Speed, measured: Speed, figure: str) -> float:
    return float(getattr(foretold, figure) or 0) / float(getattr(measured, figure))


def row(case: Case, foretold: Speed, measured: Speed) -> str:
    cells = [case.name, size_text(case.path.stat().st_size)]
    for figure in FIGURES:
        said, was = getattr(foretold, figure), getattr(measured, figure)
        digits = 1 if was < 100 else 0
        shown = "?" if said is None else f"{said:,.{digits}f}"
        cells.append(f"{shown}, {was:,.{digits}f}, {ratio(foretold, measured, figure):.2f}")
    return f"| {' | '.join(cells)} | {'yes' if within(foretold, measured) else 'NO'} |"


if __name__ == "__main__":
    main()

"""Compare the memory that `tourkit plan` predicts with the memory that the process takes.

    python bench/memory_estimate.py                                       # random models of nine shapes, on the CPU
    python bench/memory_estimate.py MODEL.gguf --context 8192 --slots 4   # a model of your own
    python bench/memory_estimate.py --gpu                                 # with every layer on the GPU

Each model is loaded in its own process with tourkit's engine. The engine then answers a long prompt in every slot with
a JSON Schema. In RAM the resident memory of the process is measured, on a GPU the loss of free memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import shapes  # noqa: E402 - beside this file

from tools import random_gguf  # noqa: E402
from tourkit.hardware.probe import probe  # noqa: E402
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch  # noqa: E402
from tourkit.planning import memory, model_shape  # noqa: E402
from tourkit.server.gateway.process import tuned  # noqa: E402
from tourkit.units import size_text  # noqa: E402

PROMPT = 700  # tokens: more than one call of the model can take
ANSWER = 16  # tokens
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
WITHIN = (0.05, 300 << 20)  # tolerance: this share of the measured bytes, or these bytes


@dataclass(frozen=True)
class Case:
    """One measurement. `shape` None: the tiny random model of tools/random_gguf.py."""

    shape: shapes.Shape | None
    context: int
    slots: int
    cache_type: str


CASES = (  # width, layers, heads, KV heads, feed-forward
    Case(None, 8192, 4, "f16"),
    Case(shapes.Shape(256, 8, 4, 4, 1024), 4096, 4, "f16"),
    Case(shapes.Shape(256, 8, 4, 4, 1024), 4096, 4, "q8_0"),
    Case(shapes.Shape(512, 8, 8, 2, 1536), 8192, 8, "f16"),
    Case(shapes.Shape(768, 12, 12, 12, 2048), 2048, 8, "q8_0"),
    Case(shapes.Shape(1024, 10, 16, 8, 3520), 4096, 4, "f16"),
    Case(shapes.Shape(1024, 10, 16, 8, 3520), 16_384, 2, "q8_0"),
    Case(shapes.Shape(1024, 6, 16, 1, 4096), 2048, 16, "f16"),
    Case(shapes.Shape(2048, 4, 32, 4, 5632), 8192, 4, "q8_0"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--cache-type", choices=tuple(memory.CACHE_BYTES), default="f16")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}\n")
    print("| layers x width | KV heads | weights | sequences | cache | predicted | measured | off by | within |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES if options.model is None else ():
            path = Path(folder) / "model.gguf"
            if case.shape is None:
                random_gguf.write_random_gguf(path)
            else:
                shapes.write(case.shape, path)
            print(row(path, case.context, case.slots, case.cache_type, options), flush=True)
    if options.model is not None:
        print(row(options.model, options.context, options.slots, options.cache_type, options))


def row(path: Path, context: int, slots: int, cache_type: str, options: argparse.Namespace) -> str:
    """Return a line of the table: one placement, predicted and measured."""
    shape = model_shape.of_file(path)
    if shape is None:
        sys.exit(f"{path}: no header with the model's shape")
    layers = ALL_LAYERS if options.gpu else NO_LAYERS
    size = path.stat().st_size
    context = min(context, shape.context or context)
    runtime = "cuda" if options.gpu else ""
    sizing = memory.Sizing("llama_cpp", size, shape, context, slots, cache_type, layers, runtime=runtime)
    estimate = memory.estimate(sizing)
    spec = {"model": path.stem, "stack": "llama_cpp", "path": str(path), "slots": slots, "context": context}
    spec |= {"threads": options.threads, "gpu_layers": asdict(layers), "cache_type": cache_type}
    measured = measure(spec, free_on_gpu if options.gpu else None)
    predicted = estimate.gpu.total if options.gpu else estimate.ram.total
    off = predicted - measured
    good = abs(off) <= max(WITHIN[0] * measured, WITHIN[1])
    head = shape.head or 1
    cells = (
        f"{shape.layers} x {shape.width}",
        str(max(shape.kv) // 2 // head),
        size_text(size),
        f"{slots} x {context}",
        cache_type,
        size_text(predicted),
        size_text(measured),
        f"{off / (1 << 20):+.0f} MiB, {100 * off / measured:+.1f} %",
        "yes" if good else "NO",
    )
    return f"| {' | '.join(cells)} |"


def measure(spec: dict[str, Any], free: Callable[[], int] | None) -> int:
    """Return the bytes that a process takes after it loaded the model and answered.

    `spec`: the fields of Launch, and perhaps `prompt` and `answer`, the tokens of each sequence. `free`: returns the
    free bytes of the GPU; None measures RAM.
    """
    free_before = free() if free is not None else 0
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(spec)]
    environment = tuned("llama_cpp")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        if process.stdout is None or process.stdin is None or not (line := process.stdout.readline()):
            sys.exit(f"{spec['path']}: the process that should load it exited with {process.wait()}")
        taken = free_before - free() if free is not None else int(line)
        process.stdin.close()  # the process ends now
    return taken


def child(spec: dict[str, Any]) -> None:
    """Load, answer in every slot, print the resident bytes, and wait to be measured."""
    import tourkit.server.worker.process  # noqa: F401 - a worker has this loaded too
    from tourkit import backends
    from tourkit.generation import Constraint, Delta, Request, SamplingParams

    layers = GpuLayers(**spec["gpu_layers"])
    prompt_tokens, answer_tokens = spec.pop("prompt", PROMPT), spec.pop("answer", ANSWER)
    engine = backends.load(Launch(**spec | {"gpu_layers": layers}))
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    length = min(prompt_tokens, spec["context"] - answer_tokens - 48)
    for slot in range(spec["slots"]):
        prompt = engine.detokenize([5 + (slot * 37 + i * 7) % 200 for i in range(length)])
        ids = engine.tokenize(prompt, add_special=False)[: length + 1]
        params = SamplingParams(max_tokens=answer_tokens, temperature=0)
        constraint = Constraint.json_schema(SCHEMA)
        engine.submit(Request(prompt=engine.detokenize(ids[:length]), params=params, constraint=constraint), deltas.put)
    ended = 0
    while ended < spec["slots"]:
        delta = deltas.get()
        if delta.error:
            sys.exit(f"{spec['path']}: {delta.error}")
        ended += delta.finish is not None
    print(resident(), flush=True)
    sys.stdin.read()
    engine.close()


def resident() -> int:
    """Return the bytes of this process in RAM."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    sys.exit("/proc/self/smaps_rollup has no Rss line")


def free_on_gpu() -> int:
    gpus = probe().gpus
    if not gpus:
        sys.exit("no GPU here: leave --gpu out")
    return gpus[0].free


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    here = probe()
    gpus = "".join(f", {gpu.name}" for gpu in here.gpus)
    stacks = ", ".join(f"{stack.name} {stack.version}" for stack in here.stacks)
    return f"{cpu}, {here.threads} threads, {size_text(here.ram)} of RAM{gpus}; {stacks}"


if __name__ == "__main__":
    main()

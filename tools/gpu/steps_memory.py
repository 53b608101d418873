"""Steps: the models of the check, and the GPU memory that the plan predicts beside what a worker takes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.gpu import random_blocks
from tools.gpu.ballast import free_memory
from tools.gpu.findings import MEMORY, Finding, measured, skipped
from tools.gpu.place import NO_GPU, Place, is_installed
from tourkit.launch import ALL_LAYERS, NO_LAYERS
from tourkit.planning import memory, model_shape

# name → shape and format
MODELS = {
    "8b-q8_0": (random_blocks.LLAMA_8B, "Q8_0"),
    "8b-q4_k": (random_blocks.LLAMA_8B, "Q4_K"),
    "1b-q8_0": (random_blocks.LLAMA_1B, "Q8_0"),
}
_MARGIN = 2 << 30  # bytes that stay free beside the models


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement. `context`: tokens a sequence. `prompt`: tokens of the prompt in each slot."""

    model: str
    cache_type: str
    slots: int
    context: int
    prompt: int


FIRST = Case("8b-q8_0", "f16", 4, 4096, 3600)


def files(place: Place) -> Iterator[Finding]:
    """Write the models of random blocks. A dry run writes tiny ones under the same names."""
    for name, (shape, kind) in MODELS.items():
        room = shutil.disk_usage(place.work).free
        if not place.dry and room < size_of(shape, kind) + _MARGIN:
            yield skipped(name, f"{place.work} has only {room / 2**30:.1f} GiB free")
            continue
        started = time.perf_counter()
        size = random_blocks.write(random_blocks.TINY if place.dry else shape, kind, place.model(name))
        yield measured(f"wrote {name}", bytes=size, seconds=time.perf_counter() - started)


def size_of(shape: Any, kind: str) -> int:
    """Return about how many bytes a model takes."""
    weights = 2 * random_blocks.VOCAB[shape] * shape.width
    attention = 2 * shape.width * (shape.width + shape.width // shape.heads * shape.kv_heads)
    weights += shape.layers * (attention + 3 * shape.width * shape.feed_forward)
    blocks = random_blocks.FORMATS[kind]
    return weights // blocks.values * blocks.size


def compare(case: Case, place: Place) -> Iterator[Finding]:
    """Load a model with tourkit's engine, answer a long prompt in every slot, and compare the memory with the plan's.

    A dry run predicts for the tiny file, and loads it on the CPU once.
    """
    from bench import memory_estimate

    path = place.model(case.model)
    title = f"{case.model}, {case.cache_type} KV cache, {case.slots} x {case.context}"
    if not place.dry and not place.flash:
        title += ", without FlashAttention"
    reason = _obstacle(case, place, path)
    if reason:
        yield skipped(title, reason)
        return
    shape = model_shape.of_file(path)
    if shape is None:
        raise RuntimeError(f"{path}: its header has no shape")
    layers = NO_LAYERS if place.dry else ALL_LAYERS
    context, prompt, answer = (256, 64, 8) if place.dry else (case.context, case.prompt, 256)
    sizing = memory.Sizing(
        *("llama_cpp", path.stat().st_size, shape, context, case.slots, case.cache_type, layers),
        runtime="" if place.dry else "cuda",
    )
    spec: dict[str, Any] = {"model": case.model, "stack": "llama_cpp", "path": str(path), "slots": case.slots}
    spec |= {"context": context, "threads": os.cpu_count() or 1, "gpu_layers": asdict(layers)}
    spec |= {"cache_type": case.cache_type, "prompt": prompt, "answer": answer}
    predicted = memory.estimate(sizing)
    if place.dry and case is FIRST:
        taken = memory_estimate.measure(spec, None)
        yield measured(f"{title}, tiny and on the CPU", predicted=predicted.ram.total, measured=taken)
    if place.dry:
        yield skipped(title, NO_GPU)
        return
    taken = memory_estimate.measure(spec, lambda: free_memory(os.environ))
    parts: dict[str, float | str] = {"predicted": predicted.gpu.total, "measured": taken}
    parts |= {"weights": predicted.gpu.weights, "cache": predicted.gpu.cache, "overhead": predicted.gpu.overhead}
    yield measured(title, MEMORY, **parts)


def _obstacle(case: Case, place: Place, path: Path) -> str:
    """Return why a case cannot be measured here; empty if it can."""
    if not is_installed("llama_cpp"):
        return "llama_cpp is not installed here, and no CUDA build was carried"
    if not path.is_file():
        return f"{path.name} was not written"
    if case.cache_type == "q8_0" and not place.dry and not place.flash:
        return "a q8_0 cache needs FlashAttention, and this build has none yet"
    return ""

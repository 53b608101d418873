"""The steps of the check in their order: the most valuable first, because a run may end early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tools.gpu import steps_memory, steps_probe, steps_serving, steps_speed, steps_torch
from tools.gpu.findings import Finding
from tools.gpu.place import Place
from tools.gpu.steps_memory import Case


@dataclass(frozen=True, slots=True)
class Step:
    """One step, in a process of its own.

    `limit`: the seconds after which it is ended. `after`: the step that writes its models, "" if it needs none.
    """

    name: str
    run: Callable[[Place], Iterator[Finding]]
    limit: float
    after: str = ""


def _memory(limit: float, case: Case) -> Step:
    name = f"memory-{case.model}-{case.cache_type}-{case.slots}x{case.context}"
    return Step(name, partial(steps_memory.compare, case), limit, after="files")


ALL = (
    Step("probe", steps_probe.devices, 30),
    Step("import", steps_probe.imports, 25),
    Step("files", steps_memory.files, 60),
    _memory(40, steps_memory.FIRST),
    Step("serving", steps_serving.site, 90, after="files"),
    Step("tiny-transformers", steps_torch.tiny, 45),
    _memory(40, Case("8b-q8_0", "q8_0", 4, 4096, 3600)),
    Step("speed-llama-batched-bench", steps_speed.batched_bench, 45, after="files"),
    Step("speed-tourkit", steps_speed.tourkit, 60, after="files"),
    Step("speed-llama-server", steps_speed.llama_server, 60, after="files"),
    Step("bitsandbytes", steps_torch.bitsandbytes, 50),
    _memory(60, Case("8b-q8_0", "q8_0", 4, 32_768, 16_000)),
    Step("packed-8b", steps_torch.packed, 90),
    Step("out-of-memory", steps_torch.out_of_memory, 45, after="packed-8b"),
    _memory(40, Case("8b-q4_k", "f16", 4, 4096, 3600)),
    Step("speed-engine", steps_speed.engine, 60, after="files"),
)
BY_NAME = {step.name: step for step in ALL}

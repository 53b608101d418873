"""Steps: what tourkit's probe says of the GPU beside what torch says, and how llama_cpp is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from tools.gpu.ballast import ballast, free_memory
from tools.gpu.findings import Finding, check, measured, skipped
from tools.gpu.place import NO_GPU, Place, is_installed
from tourkit.errors import one_line
from tourkit.hardware.probe import probe

_NEAR = 256 << 20  # bytes: two readings of the free memory may differ by this
_IMPORT = "import llama_cpp; print(llama_cpp.llama_supports_gpu_offload())"
_OUR_IMPORT = (
    "from tourkit.backends.llama_cpp import library; print(library.import_llama().llama_supports_gpu_offload())"
)


def devices(place: Place) -> Iterator[Finding]:
    """Compare the GPU that the probe finds with the one of torch, and measure contexts that hold nothing."""
    machine = probe()
    yield measured("the probe", gpus=len(machine.gpus), problems="; ".join(machine.problems) or "none")
    for stack in machine.stacks:
        yield measured(f"stack {stack.name} {stack.version}", gpu=stack.gpu or "none", problem=stack.problem or "none")
    if place.dry:
        yield skipped("the probe beside torch, and the bytes of a bare context", NO_GPU)
        return
    environment = dict(os.environ)
    yield check("the probe finds the GPU", len(machine.gpus) > 0, "it found none")
    alone = free_memory(environment)
    with ballast(environment):
        yield measured("a bare context of the driver", bytes=alone - free_memory(environment))
    if not is_installed("torch"):
        yield skipped("the probe beside torch", "torch is not installed here")
        return
    yield from _beside_torch(alone)


def _beside_torch(alone: int) -> Iterator[Finding]:
    """`alone`: the free bytes that the probe reads while nothing else uses the GPU."""
    import torch

    gpu = probe().gpus[0]
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    yield check("the probe's total is torch's", gpu.total == total, f"{gpu.total} and {total} bytes", bytes=total)
    yield check("the probe's name is torch's", gpu.name == properties.name, f"{gpu.name} and {properties.name}")
    capability = (properties.major, properties.minor)
    yield check("the probe's capability is torch's", gpu.capability == capability, f"{gpu.capability}, {capability}")
    identity = str(getattr(properties, "uuid", ""))
    yield check("the probe's id is torch's", identity in gpu.id, f"{gpu.id} and {identity}")
    near = abs(alone - free) < _NEAR
    yield check("both read about the same free memory", near, "they differ", probe=alone, torch=free)
    yield measured("torch's context and libraries, no tensor", bytes=alone - free_memory(os.environ))


def imports(place: Place) -> Iterator[Finding]:
    """Import llama_cpp by itself, and as a worker does, with the GPU's id in CUDA_VISIBLE_DEVICES."""
    if not is_installed("llama_cpp"):
        yield skipped("the import of llama_cpp", "llama_cpp is not installed here, and no CUDA build was carried")
        return
    plain = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    alone = _run(_IMPORT, plain)
    yield measured("import llama_cpp, without CUDA's libraries loaded before", result=alone)
    as_worker = plain | {"CUDA_VISIBLE_DEVICES": place.gpu}
    ours = _run(_OUR_IMPORT, as_worker)
    if place.dry:
        yield check("a worker's import of llama_cpp", ours in ("True", "False"), ours)
        yield skipped("a worker's import finds the GPU", NO_GPU)
        return
    yield check(f"a worker's import finds the GPU by its id {place.gpu}", ours == "True", ours)


def _run(code: str, environment: dict[str, str]) -> str:
    """Return the last line that some Python code prints, or the last line of its error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return one_line(lines[-1]) if lines else f"exit code {done.returncode}"

"""What a worker process gets: its environment, and a launch that survives the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch
from tourkit.planning.plan import CPU
from tourkit.server.contract import WorkerSpec
from tourkit.server.gateway.process import WorkerProcess

LAUNCH = Launch(model="m", stack="vllm", path="/m", slots=2, context=512, threads=1)
MIG = "MIG-1c5d5a1c-6f4f-5b32-9c1e-6d0f2a8a2a11"


def visible(device: str, layers: GpuLayers, **options: Any) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of a worker."""
    spec = WorkerSpec(replace(LAUNCH, gpu_layers=layers), ("tool",), "", "s", offline=False)
    return WorkerProcess(spec, device, **options)._environment("/tmp/scratch").get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("inherited", [None, "0", MIG])
def test_a_worker_on_the_only_gpu_keeps_the_variable_of_the_gateway(
    inherited: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM maps the id of a MIG slice to a number within its parent card, and needs NVML for any id."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)

    assert visible(MIG, ALL_LAYERS, only_gpu=True) == inherited


def test_a_worker_on_one_of_several_gpus_sees_this_one() -> None:
    assert visible(MIG, ALL_LAYERS) == MIG


@pytest.mark.parametrize("only_gpu", [True, False])
def test_a_worker_on_the_cpu_sees_no_gpu(only_gpu: bool) -> None:
    assert visible(CPU, NO_LAYERS, only_gpu=only_gpu) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"capability": (8, 0), "gpu_layers": ALL_LAYERS},
        {"capability": None, "gpu_layers": GpuLayers(3)},
        {"lora": ("a.gguf",), "quant": "Q4_K_M"},
    ],
)
def test_a_worker_reads_the_launch_that_the_gateway_wrote(more: dict[str, Any]) -> None:
    spec = WorkerSpec(replace(LAUNCH, **more), ("tool", "graph"), "/s", "secret", offline=True)

    assert WorkerSpec.of_json(spec.to_json()) == spec

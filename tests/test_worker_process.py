"""What a worker process gets: its environment, and a launch that survives the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tourkit.defaults import RoleDefaults, Sampling
from tourkit.hardware.machine_file import read_machine
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch
from tourkit.manifest import lock, manifest
from tourkit.planning import sources
from tourkit.planning.plan import CPU
from tourkit.planning.planner import plan
from tourkit.server.contract import WorkerSpec
from tourkit.server.gateway.launch import has_one_gpu
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


@pytest.mark.parametrize("name", ["a100-slice-cuda12", "a100-slice-cuda13", "two-gpus"])
def test_the_workers_of_a_tour_see_the_gpu_that_the_plan_gives_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the only slice of an A100 nothing is set; on one of two GPUs its id. The machines are described by hand."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = read_machine(Path(__file__).parent / "machines" / f"{name}.json")
    found = manifest.load("tour-20gb")
    offered = sources.index_of(found, lock.read(lock.path_of(found.path)))
    placements = plan(offered, machine, shapes=sources.shapes_of_manifest(found)).placements
    only_gpu = has_one_gpu(machine)

    seen = {each.device: visible(each.device, each.launch.gpu_layers, only_gpu=only_gpu) for each in placements}

    assert only_gpu is (name != "two-gpus")
    assert seen == {each.device: None if only_gpu else each.device for each in placements}
    assert CPU not in seen


@pytest.mark.parametrize(
    "more",
    [
        {"capability": (8, 0), "gpu_layers": ALL_LAYERS},
        {"capability": None, "gpu_layers": GpuLayers(3)},
        {"lora": ("a.gguf",), "quant": "Q4_K_M"},
        {"defaults": (RoleDefaults("tool", False, "low", 9, Sampling(0.5, None, 3), (("top_k", "a file"),)),)},
    ],
)
def test_a_worker_reads_the_launch_that_the_gateway_wrote(more: dict[str, Any]) -> None:
    spec = WorkerSpec(replace(LAUNCH, **more), ("tool", "graph"), "/s", "secret", offline=True)

    assert WorkerSpec.of_json(spec.to_json()) == spec

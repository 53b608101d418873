"""Plans for described machines with GPUs (tests/machines/), and what the user lets a plan use of a machine.

No GPU is needed: the plan reads nothing but the description.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from described_index import index

from tourkit.cli import main
from tourkit.errors import NotSo, UsageError
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.machine_file import machine_json, read_machine
from tourkit.hardware.probe import imagined
from tourkit.launch import ALL_LAYERS
from tourkit.manifest import lock, manifest
from tourkit.planning import sources
from tourkit.planning.limits import UNLIMITED, Limits
from tourkit.planning.model_shape import Shape
from tourkit.planning.plan import Placement, Plan
from tourkit.planning.planner import plan
from tourkit.units import GIB

MACHINES = Path(__file__).parent / "machines"
SMALL = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)  # 8 KiB per token
WIDE = Shape((2048,) * 32, (0,) * 32, 512, 2048, 1000, 4096, "a test", head=64)  # 2 GiB for 4 x 4096 tokens in f16


def machine(name: str) -> Hardware:
    return read_machine(MACHINES / f"{name}.json")


def tour(hardware: Hardware, limits: Limits = UNLIMITED) -> Plan:
    """Return the plan for manifests/tour-20gb and its lock."""
    found = manifest.load("tour-20gb")
    offered = sources.index_of(found, lock.read(lock.path_of(found.path)))
    return plan(offered, hardware, shapes=sources.shapes_of_manifest(found), limits=limits)


def one(quants: dict[str, float], hardware: Hardware, shape: Shape = SMALL, limits: Limits = UNLIMITED) -> Plan:
    """Return the plan for one model. `quants`: GiB of weights by quant."""
    offered = index({"brain": ("m",)}, {"m": quants})
    return plan(offered, hardware, shapes={variant.id: shape for variant in offered.variants}, limits=limits)


def reason(made: Plan, quant: str) -> str:
    return next(each.reason for each in made.passed_over if each.quant == quant)


def warnings(made: Plan) -> list[str]:
    return [note for note in made.notes if note.startswith("WARNING: ")]


def gpu(gib: float, capability: tuple[int, int] = (8, 0), runtime: str = "cuda") -> Gpu:
    return Gpu("GPU-0", "a GPU", runtime, int(gib * GIB), int(gib * GIB), capability)


def ready(*stacks: InstalledStack, on: Gpu, driver: str = "13.0") -> Hardware:
    return Hardware(4, 64 * GIB, gpus=(on,), stacks=stacks, driver=driver, compiler="cc", python_headers=True)


LLAMA = InstalledStack("llama_cpp", "1", "cuda 12.4")
VLLM = InstalledStack("vllm", "1", "cuda 12.8", cpu=False, bitsandbytes=True)
HF = InstalledStack("transformers", "1", "cuda 12.8", bitsandbytes=True)

# --- the machine at the venue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a100-slice-cuda12", "a100-slice-cuda13"])
def test_a_20_gb_slice_holds_all_four_roles_through_llama_cpp(name: str) -> None:
    made = tour(machine(name))

    assert {role for placement in made.placements for role in placement.roles} == {"brain", "fast", "tool", "graph"}
    assert made.unfilled == ()
    for placement in made.placements:
        assert (placement.resident, placement.device) == (True, machine(name).gpus[0].id)
        assert (placement.launch.stack, placement.launch.gpu_layers) == ("llama_cpp", ALL_LAYERS)
        assert (placement.launch.slots, placement.launch.context) == (4, 4096)
        assert placement.launch.capability == (8, 0)
    assert made.devices[0].used <= made.devices[0].usable < 19.5 * GIB


def test_the_launch_of_a_placement_on_the_cpu_has_no_capability() -> None:
    made = tour(machine("a100-slice-cuda12"))
    on_cpu = [fallback for each in made.placements for fallback in each.fallbacks if fallback.device == "cpu"]

    assert {fallback.launch.capability for fallback in on_cpu} == {None}


def test_with_an_old_driver_and_no_compiler_vllm_is_refused_with_both_versions_and_both_fixes() -> None:
    made = one({"FP8": 8, "Q8_0": 8}, machine("a100-slice-cuda12"))

    assert made.placements[0].launch.stack == "llama_cpp"
    assert reason(made, "FP8") == (
        "vllm is built for CUDA 13.0, and the driver runs CUDA 12.4: update the driver to R580 or newer, or install "
        "a build for CUDA 12; vllm compiles code for the GPU and finds no C compiler and no Python.h: install gcc and "
        "the package python3.12-dev"
    )
    assert [line.split(" (")[0] for line in warnings(made)] == [
        "WARNING: vllm does not use the GPU",
        "WARNING: transformers does not use the GPU",
    ]


def test_no_stack_is_warned_about_that_no_variant_needs() -> None:
    assert warnings(one({"Q8_0": 8}, machine("a100-slice-cuda12"))) == []


@pytest.mark.parametrize(
    ("quant", "stack"),
    [("AWQ-INT4", "vllm"), ("FP8", "vllm"), ("BF16", "vllm"), ("bnb-4bit", "transformers"), ("Q8_0", "llama_cpp")],
)
def test_with_compiler_and_new_driver_each_quant_goes_to_a_stack_that_loads_it(quant: str, stack: str) -> None:
    made = one({quant: 6}, machine("a100-slice-cuda13"))

    [placement] = made.placements
    assert (placement.launch.stack, placement.device) == (stack, machine("a100-slice-cuda13").gpus[0].id)
    assert placement.launch.capability == (8, 0)
    assert warnings(made) == []


def test_of_all_of_them_vllm_gets_the_best_that_fits_and_bitsandbytes_is_a_fallback_on_transformers() -> None:
    made = one({"AWQ-INT4": 5, "FP8": 8, "BF16": 18.5, "bnb-4bit": 5.5}, machine("a100-slice-cuda13"))

    [placement] = made.placements
    assert (placement.launch.quant, placement.launch.stack) == ("FP8", "vllm")
    assert [(each.launch.quant, each.launch.stack) for each in placement.fallbacks][:2] == [
        ("AWQ-INT4", "vllm"),
        ("bnb-4bit", "transformers"),
    ]
    assert all(each.launch.capability == (8, 0) for each in placement.fallbacks[:2])
    assert "not enough memory" in reason(made, "BF16")


def test_a_bitsandbytes_variant_is_never_given_to_vllm() -> None:
    bare = replace(machine("a100-slice-cuda13"), stacks=(LLAMA, VLLM))

    with pytest.raises(NotSo, match="bnb-4bit: needs transformers; not installed"):
        one({"bnb-4bit": 4}, bare)


def test_a_llama_cpp_for_the_cpu_is_told_before_all_other_notes_with_the_fix() -> None:
    made = tour(machine("a100-slice-cpu-llama"))

    assert {placement.device for placement in made.placements} == {"cpu"}
    assert made.notes[0] == (
        "WARNING: llama_cpp does not use the GPU (NVIDIA A100-SXM4-80GB MIG 2g.20gb): llama_cpp 0.3.36 is built for "
        "the CPU only: install a CUDA wheel of llama-cpp-python (docs/gpu-wheels.md)"
    )


# --- what keeps a stack from a GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "built", "runs"),
    [
        ("12.4", "cuda 12.8", True),
        ("12.2", "cuda 11.8", True),
        ("13.0", "cuda 13.2", True),
        ("12.9", "cuda 13.0", False),
        ("11.8", "cuda 12", False),
        ("", "cuda 13.0", True),  # not known
        ("12.4", "cuda", True),  # not known
    ],
)
def test_the_major_versions_of_driver_and_build_decide(driver: str, built: str, runs: bool) -> None:
    [placement] = one({"Q8_0": 8}, ready(replace(LLAMA, gpu=built), on=gpu(20), driver=driver)).placements

    assert (placement.device != "cpu") is runs


@pytest.mark.parametrize(
    ("lacks", "line"),
    [
        ({"compiler": ""}, "finds no C compiler: install gcc"),
        ({"python_headers": False}, "finds no Python.h: install the package python3-dev"),
    ],
)
def test_vllm_without_compiler_or_headers_is_refused_in_one_line(lacks: dict[str, Any], line: str) -> None:
    bare = replace(ready(VLLM, HF, on=gpu(20)), **lacks)

    made = one({"FP8": 8, "BF16": 8}, bare)

    assert made.placements[0].launch.stack == "transformers"
    assert reason(made, "FP8").endswith(line)
    assert len(warnings(made)) == 1


def test_the_problem_of_a_stack_is_the_reason_with_its_own_words() -> None:
    broken = replace(LLAMA, problem="libcudart.so.12 cannot be loaded: install nvidia-cuda-runtime-cu12")

    made = one({"Q8_0": 8}, ready(broken, on=gpu(20)))

    assert made.placements[0].device == "cpu"
    assert made.notes[0].endswith(broken.problem)


@pytest.mark.parametrize("built", [{}, {"gpu": "cuda 12", "cpu": False}], ids=["for nothing", "for a GPU only"])
def test_a_stack_with_a_problem_and_no_use_of_the_cpu_is_not_used_at_all(built: dict[str, Any]) -> None:
    broken = InstalledStack("llama_cpp", problem="cannot be imported: reinstall it", **built)

    with pytest.raises(NotSo, match="cannot be imported: reinstall it"):
        one({"Q8_0": 8}, Hardware(4, 64 * GIB, stacks=(broken,)))


def test_a_build_for_another_runtime_is_named_with_the_one_it_is_for() -> None:
    [line] = warnings(one({"Q8_0": 8}, ready(replace(LLAMA, gpu="cuda 12"), on=gpu(20, runtime="rocm"))))

    assert line.endswith("llama_cpp 1 is built for cuda 12: install a build for rocm")


@pytest.mark.parametrize(
    ("quant", "capability", "needed"),
    [
        ("NVFP4", (7, 0), "7.5"),
        ("NVFP4", (7, 5), ""),
        ("MXFP4", (7, 5), "8.0"),
        ("MXFP4", (8, 0), ""),
        ("FP8", (7, 0), "7.5"),
        ("FP8", (7, 5), ""),
    ],
)
def test_a_kind_of_weights_needs_the_capability_that_vllm_asks_for(
    quant: str, capability: tuple[int, int], needed: str
) -> None:
    made = one({quant: 4, "Q4_K_M": 4}, ready(LLAMA, VLLM, on=gpu(20, capability)))

    if needed:
        assert reason(made, quant) == f"needs a GPU of compute capability {needed}"
    else:
        assert [placement.launch.quant for placement in made.placements] == [quant]


def test_of_two_gpus_the_older_one_decides_because_either_may_be_used() -> None:
    old, new = replace(gpu(20, (7, 0)), id="old"), replace(gpu(20, (8, 0)), id="new")
    both = replace(ready(LLAMA, VLLM, on=old), gpus=(old, new))

    assert "compute capability 7.5" in reason(one({"FP8": 8, "Q4_K_M": 4}, both), "FP8")
    [placement] = one({"FP8": 8, "Q4_K_M": 4}, both, limits=Limits(gpu="new")).placements
    assert (placement.launch.stack, placement.launch.capability) == ("vllm", (8, 0))


# --- the order on a GPU ---------------------------------------------------------------------------------------------


def settings(made: Plan) -> tuple[str, str]:
    [placement] = made.placements
    return placement.launch.quant, placement.launch.cache_type


def test_on_a_gpu_an_f16_cache_comes_before_more_bits_and_q8_0_is_the_floor() -> None:
    quants: dict[str, float] = {"Q4_K_M": 4, "Q6_K": 5.5}

    assert settings(one(quants, ready(LLAMA, on=gpu(6.2)), WIDE)) == ("Q4_K_M", "q8_0")
    assert settings(one(quants, ready(LLAMA, on=gpu(7.6)), WIDE)) == ("Q4_K_M", "f16")
    assert settings(one(quants, ready(LLAMA, on=gpu(9)), WIDE)) == ("Q6_K", "f16")


def test_on_a_cpu_more_bits_still_come_before_an_f16_cache() -> None:
    bare = Hardware(4, int(8 * GIB), stacks=(InstalledStack("llama_cpp"),))

    assert settings(one({"Q4_K_M": 4, "Q6_K": 5.5}, bare, WIDE)) == ("Q6_K", "q8_0")


def two(hardware: Hardware) -> dict[str, Placement]:
    offered = index({"brain": ("a",), "fast": ("b",)}, {each: {"FP8": 8, "Q6_K": 6.5} for each in "ab"})
    made = plan(offered, hardware, shapes={variant.id: SMALL for variant in offered.variants})
    return {placement.launch.model: placement for placement in made.placements}


def test_models_that_take_turns_on_a_gpu_prefer_llama_cpp_and_vllm_is_a_fallback() -> None:
    turns = two(ready(LLAMA, VLLM, on=gpu(13)))
    together = two(ready(LLAMA, VLLM, on=gpu(24)))

    assert {(each.resident, each.launch.stack) for each in turns.values()} == {(False, "llama_cpp")}
    assert {(each.resident, each.launch.stack) for each in together.values()} == {(True, "vllm")}
    assert turns["a"].fallbacks[0].launch.stack == "vllm"


def test_the_reason_against_vllm_in_turns_is_its_slow_start() -> None:
    offered = index({"brain": ("a",), "fast": ("b",)}, {each: {"FP8": 8, "Q6_K": 6.5} for each in "ab"})
    made = plan(offered, ready(LLAMA, VLLM, on=gpu(13)), shapes={variant.id: SMALL for variant in offered.variants})

    assert reason(made, "FP8") == "takes turns, and vllm starts too slowly for every turn; Q6_K is on llama_cpp"


def test_models_that_take_turns_keep_vllm_if_nothing_else_loads_them() -> None:
    offered = index({"brain": ("a",), "fast": ("b",)}, {each: {"FP8": 8, "AWQ-INT4": 5} for each in "ab"})
    made = plan(offered, ready(VLLM, on=gpu(13)), shapes={variant.id: SMALL for variant in offered.variants})

    assert {(each.resident, each.launch.quant) for each in made.placements} == {(False, "FP8")}


# --- a part of the machine ------------------------------------------------------------------------------------------


def usable(limits: Limits, hardware: Hardware) -> list[float]:
    made = one({"Q4_K_M": 1}, hardware, limits=limits)
    return [round(device.usable / GIB, 2) for device in made.devices]


def test_vram_limits_what_is_used_of_each_gpu_and_more_than_it_has_changes_nothing() -> None:
    both = machine("two-gpus")

    assert usable(Limits(vram=16 * GIB), both)[:2] == [16, 16]
    assert usable(Limits(vram=80 * GIB), both) == usable(UNLIMITED, both)


def test_a_reserve_is_kept_free_on_each_gpu_and_not_in_ram() -> None:
    both = machine("two-gpus")
    first, second, ram = usable(UNLIMITED, both)

    assert usable(Limits(reserve=2 * GIB), both) == [round(first - 2, 2), round(second - 2, 2), ram]


def test_without_a_gpu_the_reserve_is_kept_free_in_ram() -> None:
    bare = Hardware(4, 20 * GIB, stacks=(InstalledStack("llama_cpp"),))

    assert usable(Limits(reserve=2 * GIB), bare) == [16]
    assert usable(Limits(reserve=2 * GIB, vram=0), replace(bare, gpus=(gpu(20),))) == [16]


def test_limit_and_reserve_hold_both() -> None:
    limits = Limits(vram=16 * GIB, reserve=2 * GIB)

    assert usable(limits, ready(LLAMA, on=gpu(20)))[0] == 16
    assert usable(limits, ready(LLAMA, on=gpu(16)))[0] == round(16 * 0.98 - 2, 2)


def test_a_reserve_in_unified_memory_is_not_given_to_the_ram() -> None:
    metal = replace(gpu(12, runtime="metal"), capability=None)
    mac = Hardware(8, 16 * GIB, gpus=(metal,), stacks=(InstalledStack("llama_cpp", gpu="metal"),))

    assert sum(usable(Limits(reserve=2 * GIB), mac)) <= 16 * 0.9 - 2 + 0.01


@pytest.mark.parametrize("asked", ["1", "GPU-77a1c2d3-11aa-4b22-9c33-5d44e66f7788"])
def test_one_gpu_is_chosen_by_its_number_or_its_id(asked: str) -> None:
    [placement] = one({"Q4_K_M": 1}, machine("two-gpus"), limits=Limits(gpu=asked)).placements

    assert (placement.device, placement.launch.capability) == (machine("two-gpus").gpus[1].id, (8, 9))


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"--gpu 2: no such GPU: choose one of 0 \(GPU-0b8f.*A100.*\), 1 \(GPU-77a1"):
        one({"Q4_K_M": 1}, machine("two-gpus"), limits=Limits(gpu="2"))
    with pytest.raises(UsageError, match="--gpu 0: this machine has no GPU: leave the option out"):
        one({"Q4_K_M": 1}, Hardware(4, 8 * GIB), limits=Limits(gpu="0"))


# --- the commands ---------------------------------------------------------------------------------------------------


def planned(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", "tour-20gb", "--json", *arguments]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_what_plan_json_prints_can_be_given_as_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = MACHINES / "a100-slice-cuda12.json"

    first = planned("--machine", str(file), capsys=capsys)
    (tmp_path / "printed.json").write_text(json.dumps(first))
    again = planned("--machine", str(tmp_path / "printed.json"), capsys=capsys)

    assert read_machine(tmp_path / "printed.json") == read_machine(file)
    assert again == first


def usable_of(made: dict[str, Any]) -> list[tuple[str, int]]:
    return [(device["name"], device["usable"]) for device in made["devices"]]


def test_plan_takes_vram_as_a_limit_of_the_machines_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(MACHINES / "two-gpus.json")

    made = planned("--machine", file, "--gpu", "1", "--vram", "16GiB", "--reserve", "1GiB", capsys=capsys)

    assert usable_of(made)[:-1] == [("NVIDIA GeForce RTX 4090", 16 * GIB)]


@pytest.mark.parametrize("described", [machine("a100-slice-cuda12"), Hardware(4, 64 * GIB, stacks=(LLAMA,))])
def test_more_vram_than_the_machine_has_stands_for_another_gpu_that_its_stacks_can_use(
    described: Hardware, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here.json").write_text(json.dumps(machine_json(described)))

    made = planned("--machine", str(tmp_path / "here.json"), "--vram", "48GiB", capsys=capsys)

    assert [name for name, _ in usable_of(made)] == ["requested GPU", "RAM"]
    assert not any("WARNING" in note for note in made["notes"])


def test_no_vram_stands_for_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    made = planned("--machine", str(MACHINES / "a100-slice-cuda12.json"), "--vram", "0", capsys=capsys)

    assert [name for name, _ in usable_of(made)] == ["RAM"]


def test_a_stack_that_is_not_installed_is_assumed_to_be_built_for_the_machines_gpu() -> None:
    there = imagined(machine("a100-slice-cpu-llama"), stacks=["vllm", "onnx"])

    assert [(stack.name, stack.gpu) for stack in there.stacks] == [("vllm", "cuda"), ("onnx", "")]


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--machine", "missing.json"], 2, "missing.json: cannot be read"),
        (["--machine", str(MACHINES / "two-gpus.json"), "--gpu", "7"], 2, "--gpu 7: no such GPU: choose one of 0 ("),
        (["--machine", str(MACHINES / "two-gpus.json"), "--vram", "0", "--reserve", "99GiB"], 1, "fits 0 B of RAM"),
    ],
)
def test_serve_plans_for_the_described_machine_within_the_limits(
    options: list[str], code: int, line: str, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny_gguf), *options]) == code
    assert line in capsys.readouterr().err

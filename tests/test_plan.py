"""The variant and the context that each role gets on a machine, and why other variants are passed over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from described_index import index
from serving import make_bundle, serving

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, Index, write_index
from tourkit.commands.planning import plan_json
from tourkit.errors import NotSo, UsageError
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.probe import imagined
from tourkit.launch import ALL_LAYERS, NO_LAYERS
from tourkit.manifest import lock, manifest, models
from tourkit.manifest.models import VariantId
from tourkit.planning import sources
from tourkit.planning.memory import Sizing, cache_size
from tourkit.planning.model_shape import Shape
from tourkit.planning.options import Rank
from tourkit.planning.plan import Placement, Plan
from tourkit.planning.planner import plan
from tourkit.server.gateway.launch import placements_at

GIB = 2**30
SMALL = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)  # 8 KiB per token
LLAMA_CPP = InstalledStack("llama_cpp", gpu="cuda")


def cpu(ram: float, *stacks: InstalledStack, threads: int = 4) -> Hardware:
    return Hardware(threads, int(ram * GIB), stacks=stacks or (LLAMA_CPP,))


def with_gpus(*vram: float, stacks: tuple[InstalledStack, ...] = (LLAMA_CPP,), ram: float = 64) -> Hardware:
    """Return a machine with GPUs, as the probe would report it. Such a machine cannot exist here."""
    gpus = tuple(
        Gpu(f"GPU-{i}", f"A100 {i}", "cuda", int(size * GIB), int(size * GIB), (8, 0)) for i, size in enumerate(vram)
    )
    return Hardware(4, int(ram * GIB), gpus=gpus, stacks=stacks, driver="13.0", compiler="cc", python_headers=True)


def planned(bundle: Index, hardware: Hardware, shape: Shape = SMALL, **options: int | None) -> Plan:
    shapes = {variant.id: shape for variant in bundle.variants}
    return plan(bundle, hardware, shapes=shapes, **options)  # type: ignore[arg-type]


def chosen(made: Plan) -> dict[str, str]:
    return {role: f"{each.launch.model} {each.launch.quant}" for each in made.placements for role in each.roles}


def reasons(made: Plan) -> dict[str, str]:
    return {f"{each.model} {each.quant}": each.reason for each in made.passed_over}


# --- the set for a tour, as it is locked ----------------------------------------------------------------------------


def tour(vram: float, ram: float = 32) -> Plan:
    """Return the plan for manifests/tour-20gb and its lock on a machine with llama.cpp."""
    found = manifest.load("tour-20gb")
    offered = sources.index_of(found, lock.read(lock.path_of(found.path)))
    machine = imagined(cpu(ram, InstalledStack("llama_cpp")), vram=int(vram * GIB))
    return plan(offered, machine, shapes=sources.shapes_of_manifest(found))


def test_a_20_gib_gpu_keeps_all_four_roles_of_the_tour_resident() -> None:
    made = tour(20)

    assert chosen(made).keys() == {"brain", "fast", "tool", "graph"}
    for placement in made.placements:
        assert placement.resident
        assert placement.launch.gpu_layers == ALL_LAYERS
        assert placement.launch.context >= 4096
        assert placement.launch.slots >= 4
    assert made.devices[0].used <= made.devices[0].usable < 20 * GIB


def test_an_8_gib_gpu_marks_which_roles_of_the_tour_take_turns() -> None:
    made = tour(8)

    assert chosen(made).keys() == {"brain", "fast", "tool", "graph"}
    in_turn = [role for placement in made.placements if not placement.resident for role in placement.roles]
    assert {"brain", "fast"} <= set(in_turn)
    assert any("take turns" in note for note in made.notes)
    assert all(placement.device == made.devices[0].id for placement in made.placements)
    assert made.devices[0].used <= made.devices[0].usable


def test_every_variant_of_the_tour_is_used_or_passed_over_with_a_reason() -> None:
    made = tour(20)
    used = {(placement.launch.model, placement.launch.quant) for placement in made.placements}
    passed = {(each.model, each.quant) for each in made.passed_over}
    found = manifest.load("tour-20gb")

    assert used | passed == {(model.id, variant.quant) for model in found.models.values() for variant in model.variants}
    assert not used & passed
    assert all(each.reason for each in made.passed_over)


def test_an_encoder_of_safetensors_runs_on_the_stack_that_serves_it() -> None:
    encoder = Shape((0,) * 4, (0,) * 4, 64, 256, 1000, 512, "a test", embeds=True)
    bundle = index({"embed": ("e5",)}, {"e5": {"F32": 0.5}})

    found = planned(bundle, cpu(16, InstalledStack("vllm"), InstalledStack("transformers")), encoder)

    assert [placement.launch.stack for placement in found.placements] == ["transformers"]
    with pytest.raises(NotSo, match="makes embeddings, which needs llama_cpp or transformers"):
        planned(bundle, cpu(16, InstalledStack("vllm")), encoder)


def test_a_variant_whose_size_the_lock_does_not_know_is_passed_over_with_the_fix() -> None:
    assert "tourkit lock" in reasons(tour(20))["gemma-2-9b-it Q6_K"]


# --- what is preferred ----------------------------------------------------------------------------------------------


def test_a_rank_is_by_bits_then_by_the_stack_then_by_size() -> None:
    ranks = [Rank(8, -1, 1), Rank(4, -1, 9), Rank(4, -1, 8), Rank(4, -2, 99), Rank(0, -1, 999)]

    assert sorted(ranks, reverse=True) == ranks
    assert [rank.is_last for rank in ranks] == [False, False, False, False, True]


def test_the_most_bits_that_leave_room_for_all_roles_are_taken() -> None:
    bundle = index(
        {"brain": ("big",), "tool": ("small",)},
        {"big": {"Q4_K_M": 5, "Q8_0": 9}, "small": {"Q4_K_M": 2, "Q8_0": 4, "F16": 8}},
    )

    made = planned(bundle, cpu(20))

    assert chosen(made) == {"brain": "big Q8_0", "tool": "small Q8_0"}
    assert [each.launch.threads for each in made.placements] == [4, 4]


def test_the_model_with_the_fewest_bits_is_raised_first() -> None:
    quants: dict[str, float] = {"Q4_K_M": 4, "Q6_K": 6, "Q8_0": 8}
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": quants, "b": quants})

    assert chosen(planned(bundle, with_gpus(14))) == {"brain": "a Q6_K", "fast": "b Q6_K"}


def test_nobody_gets_16_bits_before_all_have_8() -> None:
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": {"Q4_K_M": 4, "F16": 8}, "b": {"Q4_K_M": 4, "Q8_0": 8}})

    assert chosen(planned(bundle, with_gpus(14))) == {"brain": "a Q4_K_M", "fast": "b Q8_0"}


def test_more_bits_go_before_a_longer_context() -> None:
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 4, "Q8_0": 8}}, context=65_536)
    wide = Shape((2048,) * 32, (0,) * 32, 512, 2048, 1000, 65_536, "a test", head=64)  # 2 GiB for 4 x 4096 tokens

    (tight,) = planned(bundle, with_gpus(12), wide).placements
    (roomy,) = planned(bundle, with_gpus(40), wide).placements

    assert (tight.launch.quant, tight.launch.context) == ("Q8_0", 4096)
    assert (roomy.launch.quant, roomy.launch.context) == ("Q8_0", 32_768)


def test_a_finer_cache_goes_before_a_longer_context() -> None:
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 4}}, context=65_536)
    wide = Shape((2048,) * 32, (0,) * 32, 512, 2048, 1000, 65_536, "a test", head=64)

    (small,) = planned(bundle, with_gpus(6.5), wide).placements
    (large,) = planned(bundle, with_gpus(8), wide).placements

    assert (small.launch.cache_type, small.launch.context) == ("q8_0", 4096)
    assert (large.launch.cache_type, large.launch.context) == ("f16", 4096)


def test_heads_that_q8_0_blocks_do_not_divide_keep_the_f16_cache() -> None:
    """Examples: the heads of Phi-2 have 80 values, those of the tiny model 16."""
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 4}})
    odd = Shape((2048,) * 32, (0,) * 32, 512, 2048, 1000, 8192, "a test", head=80)

    made = planned(bundle, with_gpus(6.5), odd)

    assert {each.launch.cache_type for each in made.placements} == {"f16"}


def test_all_roles_resident_goes_before_the_model_named_first() -> None:
    bundle = index(
        {"tool": ("small",), "graph": ("special", "small")}, {"small": {"Q4_K_M": 4}, "special": {"Q8_0": 4}}
    )

    made = planned(bundle, with_gpus(8))

    assert chosen(made) == {"tool": "small Q4_K_M", "graph": "small Q4_K_M"}
    assert len(made.placements) == 1
    assert "graph: special passed over" in made.notes[0]
    assert "does not fit beside the others" in made.notes[0]


def test_roles_on_the_same_model_share_one_placement() -> None:
    bundle = index({"tool": ("small",), "graph": ("special", "small")}, {"small": {"Q4_K_M": 2}})

    made = planned(bundle, cpu(8))

    assert [(each.roles, each.launch.model) for each in made.placements] == [(("tool", "graph"), "small")]
    assert made.notes == ("graph: special passed over: the bundle has no variant of it",)


def test_a_model_that_does_not_fit_gives_way_to_the_next_with_the_reason() -> None:
    bundle = index({"brain": ("huge", "fits")}, {"huge": {"Q4_K_M": 40}, "fits": {"Q4_K_M": 5}})

    made = planned(bundle, cpu(16))

    assert chosen(made) == {"brain": "fits Q4_K_M"}
    assert "huge passed over: needs at least 40." in made.notes[0]
    assert "even alone" in made.notes[0]


def test_context_and_slots_can_be_asked_for_up_to_what_the_model_has() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 1}})

    made = planned(bundle, cpu(8), context=100_000, slots=2)

    assert (made.placements[0].launch.context, made.placements[0].launch.slots) == (8192, 2)
    assert made.notes == ("m: 8192 tokens a sequence, not --context 100000: the model has no more",)


@pytest.mark.parametrize("context", [None, 8192])
def test_no_note_says_that_a_model_has_no_more_context_than_was_asked_for(context: int | None) -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 1}})

    assert planned(bundle, cpu(8), context=context).notes == ()


def test_where_four_sequences_do_not_fit_there_are_fewer_and_a_note_says_so() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 4}})
    wide = Shape((2048,) * 32, (0,) * 32, 512, 2048, 1000, 8192, "a test")

    (placement,) = planned(bundle, cpu(6), wide).placements

    assert placement.launch.slots == 2
    assert "2 sequences of 4096 tokens at once" in planned(bundle, cpu(6), wide).notes[0]


def test_what_is_used_already_is_not_planned_with() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 4}})
    busy = Hardware(4, 32 * GIB, ram_free=3 * GIB, stacks=(LLAMA_CPP,))

    with pytest.raises(NotSo, match=r"3.0 GiB of RAM"):
        planned(bundle, busy)


# --- taking turns ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_takes_turns_and_the_rest_stays() -> None:
    bundle = index(
        {"brain": ("a",), "fast": ("b",), "tool": ("c",)}, {"a": {"Q4_K_M": 8}, "b": {"Q4_K_M": 8}, "c": {"Q4_K_M": 2}}
    )

    made = planned(bundle, with_gpus(14))

    assert {role: each.resident for each in made.placements for role in each.roles} == {
        "brain": False,
        "fast": False,
        "tool": True,
    }
    assert made.notes == ("brain, fast: take turns; not enough memory for all models at once",)


def test_the_device_holds_what_stays_and_the_largest_of_what_takes_turns() -> None:
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": {"Q4_K_M": 8}, "b": {"Q4_K_M": 7}})

    made = planned(bundle, with_gpus(10))

    largest = max(memory.total for each in made.placements for memory in each.memory if memory.device == "GPU-0")
    assert made.devices[0].used == largest


def test_taking_turns_on_the_gpu_goes_before_a_cpu() -> None:
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": {"Q4_K_M": 8}, "b": {"Q4_K_M": 8}})

    made = planned(bundle, with_gpus(12, ram=128))

    assert {each.device for each in made.placements} == {"GPU-0"}


# --- devices --------------------------------------------------------------------------------------------------------


def test_each_of_two_gpus_gets_what_fits_it() -> None:
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": {"Q4_K_M": 16}, "b": {"Q4_K_M": 8}})

    made = planned(bundle, with_gpus(10, 20))

    assert {each.launch.model: each.device for each in made.placements} == {"a": "GPU-1", "b": "GPU-0"}
    assert all(each.resident for each in made.placements)


def test_what_no_gpu_holds_is_split_as_many_layers_as_fit() -> None:
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 16}})

    (placement,) = planned(bundle, with_gpus(10)).placements

    assert 0 < (placement.launch.gpu_layers.count or 0) < SMALL.layers
    on_gpu, in_ram = placement.memory
    assert (on_gpu.device, in_ram.device) == ("GPU-0", "cpu")
    assert on_gpu.weights + in_ram.weights == pytest.approx(16 * GIB)


def test_a_stack_without_gpu_support_runs_on_the_cpu_beside_a_gpu() -> None:
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 4}})

    (placement,) = planned(bundle, with_gpus(20, stacks=(InstalledStack("llama_cpp"),))).placements

    assert (placement.device, placement.launch.gpu_layers) == ("cpu", NO_LAYERS)


def test_unified_memory_is_shared_between_gpu_and_ram() -> None:
    bundle = index({"brain": ("a",)}, {"a": {"Q4_K_M": 4}})
    gpu = Gpu("0", "Apple M3", "metal", 12 * GIB, 12 * GIB)
    mac = Hardware(8, 16 * GIB, gpus=(gpu,), stacks=(InstalledStack("llama_cpp", gpu="metal"),))

    made = planned(bundle, mac)

    assert made.placements[0].device == "0"
    assert sum(device.usable for device in made.devices) <= 16 * GIB


# --- stacks and quants ----------------------------------------------------------------------------------------------

ALL_STACKS = (
    InstalledStack("llama_cpp", gpu="cuda"),
    InstalledStack("vllm", gpu="cuda 12.8", cpu=False, bitsandbytes=True),
    InstalledStack("transformers", gpu="cuda 12.8", bitsandbytes=True),
    InstalledStack("onnx"),
)


def test_of_equally_many_bits_vllm_comes_first_on_a_gpu() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"FP8": 8, "Q8_0": 8}})

    (placement,) = planned(bundle, with_gpus(20, stacks=ALL_STACKS)).placements

    assert (placement.launch.quant, placement.launch.stack) == ("FP8", "vllm")


def test_llama_cpp_comes_first_on_a_cpu() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 4, "ONNX-INT4": 4, "BF16": 16}})

    made = planned(bundle, cpu(64, *ALL_STACKS))

    assert (made.placements[0].launch.quant, made.placements[0].launch.stack) == ("Q4_K_M", "llama_cpp")
    assert "half as fast" in reasons(made)["m BF16"]


def test_a_variant_goes_to_a_stack_that_loads_it() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"bnb-4bit": 4}})

    (placement,) = planned(bundle, with_gpus(20, stacks=(ALL_STACKS[2],))).placements

    assert placement.launch.stack == "transformers"


REFUSED = {
    "not installed": ("FP8", (LLAMA_CPP,), 20, "needs vllm; not installed"),
    "of no format that is installed": ("ONNX-INT4", (LLAMA_CPP,), 20, "needs onnx; not installed"),
    "without bitsandbytes": ("bnb-4bit", (InstalledStack("transformers", gpu="cuda"),), 20, "bitsandbytes"),
    "for a GPU that is not there": ("FP8", ALL_STACKS, 0, "needs a GPU"),
    "quantised, with transformers alone": (
        "AWQ-INT4",
        (InstalledStack("transformers"),),
        0,
        "needs vllm; not installed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_variant_that_cannot_run_here_is_passed_over_with_the_reason(case: str) -> None:
    quant, stacks, vram, reason = REFUSED[case]
    bundle = index({"brain": ("m",)}, {"m": {quant: 4, "Q4_K_M": 4}})
    stacks = tuple({stack.name: stack for stack in (*stacks, LLAMA_CPP)}.values())

    made = planned(bundle, with_gpus(vram, stacks=stacks) if vram else cpu(64, *stacks))

    assert chosen(made) == {"brain": "m Q4_K_M"}
    assert reason in reasons(made)[f"m {quant}"]


def test_each_other_variant_says_why_it_is_not_used() -> None:
    bundle = index(
        {"brain": ("m", "other")}, {"m": {"Q4_K_M": 4, "Q6_K": 6, "Q8_0": 8}, "other": {"Q4_K_M": 1}}, context=4096
    )

    found = reasons(planned(bundle, cpu(8)))

    assert found["m Q4_K_M"] == "Q6_K on llama_cpp is better and fits"
    assert found["m Q8_0"].startswith("needs 1.9 GiB more than Q6_K; not enough memory")
    assert found["other Q4_K_M"] == "its roles use another model"


# --- when a placement cannot be loaded ------------------------------------------------------------------------------


def chain(placement: Placement) -> list[tuple[str, str, str]]:
    return [(each.launch.quant, each.launch.stack, each.device) for each in (placement, *placement.fallbacks)]


def test_the_chain_goes_from_vllm_to_gguf_on_the_gpu_to_gguf_on_the_cpu() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"FP8": 8, "Q8_0": 8}})

    (placement,) = planned(bundle, with_gpus(20, stacks=ALL_STACKS[:2])).placements

    assert chain(placement) == [
        ("FP8", "vllm", "GPU-0"),
        ("Q8_0", "llama_cpp", "GPU-0"),
        ("Q8_0", "llama_cpp", "cpu"),
    ]
    assert [each.launch.gpu_layers for each in (placement, *placement.fallbacks)] == [ALL_LAYERS, ALL_LAYERS, NO_LAYERS]


def test_every_fallback_fits_in_the_place_of_what_it_stands_in_for() -> None:
    bundle = index({"brain": ("a",), "fast": ("b",)}, {"a": {"FP8": 8, "Q8_0": 13}, "b": {"Q4_K_M": 4}})

    brain = planned(bundle, with_gpus(18, stacks=ALL_STACKS[:2])).placements[0]

    assert chain(brain) == [("FP8", "vllm", "GPU-0"), ("Q8_0", "llama_cpp", "cpu")]


def test_the_lightest_variant_of_the_same_stack_is_in_the_chain_for_want_of_memory() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"Q4_K_M": 4, "Q6_K": 6, "Q8_0": 8}})

    (placement,) = planned(bundle, cpu(16)).placements

    assert chain(placement) == [("Q8_0", "llama_cpp", "cpu"), ("Q4_K_M", "llama_cpp", "cpu")]


def test_the_next_models_of_the_role_end_the_chain() -> None:
    bundle = index(
        {"graph": ("special", "small"), "tool": ("small",)}, {"special": {"Q8_0": 4}, "small": {"Q4_K_M": 2}}
    )

    tool, graph = planned(bundle, cpu(16)).placements

    assert [each.launch.model for each in graph.fallbacks] == ["small"]
    assert (graph.fallbacks[0].launch.quant, graph.fallbacks[0].launch.context) == (
        tool.launch.quant,
        tool.launch.context,
    )
    assert tool.fallbacks == ()


def test_what_is_to_be_started_carries_device_cache_and_chain(tmp_path: Path) -> None:
    bundle = index({"brain": ("m",), "fast": ("n",)}, {"m": {"FP8": 8, "Q8_0": 8}, "n": {"Q4_K_M": 10}})
    made = planned(bundle, with_gpus(16, stacks=ALL_STACKS[:2]))

    brain, _ = placements_at(tmp_path.joinpath, made)

    assert (brain.device, brain.resident) == ("GPU-0", False)
    assert (brain.launch.stack, brain.launch.gpu_layers, brain.launch.cache_type) == ("llama_cpp", ALL_LAYERS, "f16")
    assert brain.launch.path == str(tmp_path / "models/m/Q8_0/m.gguf")
    assert [(each.launch.stack, each.device, each.launch.gpu_layers) for each in brain.fallbacks] == [
        ("vllm", "GPU-0", ALL_LAYERS),
        ("llama_cpp", "cpu", NO_LAYERS),
    ]
    assert brain.fallbacks[0].launch.path == str(tmp_path / "models/m/FP8")


def test_a_chat_template_of_the_manifest_goes_with_every_form_of_its_model(tmp_path: Path) -> None:
    bundle = index({"brain": ("m",)}, {"m": {"FP8": 8, "Q8_0": 8}})

    [brain] = placements_at(
        tmp_path.joinpath, planned(bundle, with_gpus(16, stacks=ALL_STACKS[:2])), chat_templates={"m": "{{ x }}"}
    )

    assert {launch.launch.chat_template for launch in (brain, *brain.fallbacks)} == {"{{ x }}"}


# --- adapters -------------------------------------------------------------------------------------------------------


def adapted() -> Index:
    """Return a base with a GGUF and a safetensors variant, and a LoRA adapter of it for the graph role."""
    bundle = index(
        {"tool": ("base",), "graph": ("adapter",)}, {"base": {"Q4_K_M": 4, "BF16": 8}, "adapter": {"F16": 1}}
    )
    base, adapter = bundle.models
    made = BundleModel(adapter.id, adapter.repo, "mit", 8192, None, False, adapts=base.id)
    return Index(bundle.name, "", "", bundle.roles, (base, made), bundle.variants, bundle.files)


def test_an_adapter_runs_on_the_gguf_of_its_base_in_a_worker_of_its_own() -> None:
    tool, graph = planned(adapted(), cpu(32, *ALL_STACKS)).placements

    assert (tool.launch.model, tool.launch.path, tool.launch.lora) == ("base", "models/base/Q4_K_M/base.gguf", ())
    assert (graph.launch.model, graph.launch.path) == ("adapter", tool.launch.path)
    assert graph.launch.lora == ("models/adapter/F16/adapter.gguf",)
    assert graph.size == tool.size + GIB


# --- what cannot be filled ------------------------------------------------------------------------------------------


def test_nothing_that_fits_is_said_so() -> None:
    with pytest.raises(NotSo, match="role brain: nothing in the bundle fits"):
        planned(index({"brain": ("huge",)}, {"huge": {"Q4_K_M": 40}}), cpu(8))


def test_a_role_that_cannot_be_filled_does_not_keep_the_others_from_being() -> None:
    bundle = index({"brain": ("huge",), "tool": ("small",)}, {"huge": {"Q4_K_M": 40}, "small": {"Q4_K_M": 2}})

    made = planned(bundle, cpu(8))

    assert chosen(made) == {"tool": "small Q4_K_M"}
    assert made.unfilled[0].startswith("role brain: nothing in the bundle fits 7.2 GiB of RAM")


def test_a_role_that_was_asked_for_and_cannot_be_filled_is_an_error() -> None:
    bundle = index({"brain": ("huge",), "tool": ("small",)}, {"huge": {"Q4_K_M": 40}, "small": {"Q4_K_M": 2}})

    with pytest.raises(NotSo, match="role brain"):
        plan(bundle, cpu(8), roles=("brain", "tool"))


def test_a_role_the_bundle_does_not_fill_is_refused_with_those_it_does() -> None:
    with pytest.raises(UsageError, match="'embed': the bundle has only brain"):
        plan(index({"brain": ("m",)}, {"m": {"Q4_K_M": 1}}), cpu(8), roles=("embed",))


# --- where the numbers are from -------------------------------------------------------------------------------------


def test_a_bundles_shapes_come_from_the_files_headers(tiny_gguf: Path, tmp_path: Path) -> None:
    root = make_bundle(tmp_path, tiny_gguf)
    made = plan_of(root)

    assert made.placements[0].numbers_from == "the GGUF header"
    shape = sources.shapes_of_bundle(root, _read(root))[VariantId("tiny-random", "F16")]
    placement = made.placements[0]
    expected = cache_size(Sizing("llama_cpp", 0, shape, placement.launch.context, placement.launch.slots))
    assert placement.memory[0].cache == expected


def test_without_a_header_the_catalogue_tells_and_else_the_size_with_a_note(tmp_path: Path) -> None:
    for model in ("phi-3-mini-4k-instruct", "unheard-of"):
        folder = tmp_path / VariantId(model, "Q4_K_M").folder
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(b"cut off")
    models = [
        BundleModel(model, "me/x", "mit", 4096, None, False) for model in ("phi-3-mini-4k-instruct", "unheard-of")
    ]
    variants = [BundleVariant(model.id, "Q4_K_M", "gguf", "me/x", "main", "1" * 40) for model in models]
    roles = {"tool": ["phi-3-mini-4k-instruct"], "graph": ["unheard-of"]}
    write_index(tmp_path, build_index(tmp_path, "set", roles, models, variants))

    made = plan_of(tmp_path)

    assert [each.numbers_from for each in made.placements] == ["the catalogue", "the file's size alone"]
    assert any("unheard-of" in note and "guess" in note for note in made.notes)


def _read(root: Path) -> Index:
    from tourkit.bundle.index import read_index

    return read_index(root)


def plan_of(root: Path) -> Plan:
    found = _read(root)
    return plan(found, cpu(16), shapes=sources.shapes_of_bundle(root, found))


# --- the commands ---------------------------------------------------------------------------------------------------


MACHINE = ("--machine", str(Path(__file__).parent / "machines" / "cpu-llama.json"))  # so that nothing is measured


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tourkit", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.starts
def test_the_table_has_the_memory_of_each_placement_and_device() -> None:
    done = run("plan", "tour-20gb", "--vram", "20GiB", "--ram", "32GiB", "--threads", "8", *MACHINE)

    assert done.returncode == 0
    first, _, head, *lines = done.stdout.splitlines()
    assert first.startswith("8 threads; 32.0 GiB of RAM, read at 20.0 GB/s; requested GPU")
    assert head.split() == "roles model stack sequences on weights KV cache other total".split()
    assert [line.split()[0] for line in lines[:6:2]] == ["brain", "fast", "tool+graph"]
    assert all("GPU" in gpu and "RAM" in ram for gpu, ram in zip(lines[:6:2], lines[1:6:2], strict=True))
    assert "Passed over:" in lines


PLACEMENT_KEYS = (
    "roles model quant stack path size context slots threads device gpu_layers cache_type prompt_cache resident memory "
    "numbers_from speed lora fallbacks"
).split()


def test_the_json_of_a_placement_is_flat_and_so_is_that_of_its_fallbacks() -> None:
    bundle = index({"brain": ("m",)}, {"m": {"FP8": 8, "Q8_0": 8}})
    made = planned(bundle, with_gpus(20, stacks=ALL_STACKS[:2]))

    (brain,) = json.loads(json.dumps(plan_json(made)))["placements"]

    assert list(brain) == PLACEMENT_KEYS
    assert [list(fallback) for fallback in brain["fallbacks"]] == [PLACEMENT_KEYS] * 2
    assert (brain["roles"], brain["model"], brain["quant"], brain["stack"]) == (["brain"], "m", "FP8", "vllm")
    assert (brain["path"], brain["size"]) == ("models/m/FP8", 8 * GIB)
    assert brain["memory"][0]["device"] == brain["device"] == "GPU-0"
    assert [each["fallbacks"] for each in brain["fallbacks"]] == [[], []]


def test_the_json_has_gpu_layers_as_a_number_which_is_minus_1_for_all() -> None:
    fp8 = planned(index({"brain": ("m",)}, {"m": {"FP8": 8, "Q8_0": 8}}), with_gpus(20, stacks=ALL_STACKS[:2]))
    split = planned(index({"brain": ("a",)}, {"a": {"Q4_K_M": 16}}), with_gpus(10))

    (brain,) = plan_json(fp8)["placements"]
    (part,) = plan_json(split)["placements"]

    assert [each["gpu_layers"] for each in (brain, *brain["fallbacks"])] == [-1, -1, 0]
    assert 0 < part["gpu_layers"] == split.placements[0].launch.gpu_layers.count < SMALL.layers


@pytest.mark.starts
def test_the_json_of_a_plan_has_the_machine_the_placements_and_the_reasons() -> None:
    done = run("plan", "cpu-16gb", "--ram", "16GiB", "--vram", "0", "--json", *MACHINE)

    made = json.loads(done.stdout)
    assert made["machine"]["ram"] == 16 * GIB
    assert {role for placement in made["placements"] for role in placement["roles"]} == set(models.CHAT_ROLES)
    for placement in made["placements"]:
        assert list(placement) == PLACEMENT_KEYS
        assert placement["gpu_layers"] == 0
        for memory in placement["memory"]:
            assert memory["total"] == memory["weights"] + memory["cache"] + memory["overhead"]
    assert made["devices"][-1]["id"] == "cpu"


@pytest.mark.starts
def test_a_plan_that_leaves_a_role_unfilled_ends_with_1() -> None:
    done = run("plan", "cpu-16gb", "--ram", "4GiB", "--vram", "0", *MACHINE)

    assert done.returncode == 1
    assert "tool" in done.stdout
    assert done.stderr.startswith("tourkit: role brain: nothing in the manifest cpu-16gb fits")


@pytest.mark.starts
def test_a_plan_can_be_made_with_stacks_that_are_not_installed() -> None:
    done = run(
        "plan", "tour-20gb", "--ram", "64GiB", "--vram", "0", "--stack", "onnx", "--role", "tool", "--json", *MACHINE
    )

    assert [placement["stack"] for placement in json.loads(done.stdout)["placements"]] == ["onnx"]


@pytest.mark.starts
def test_an_unknown_stack_is_refused_with_the_known_ones() -> None:
    done = run("plan", "tour-20gb", "--stack", "ollama")

    assert done.returncode == 2
    assert "'ollama': choose one of llama_cpp," in done.stderr


@pytest.mark.parametrize("size", ["20", "20 cows", "-1GiB"])
@pytest.mark.starts
def test_a_size_without_a_unit_is_refused_with_an_example(size: str) -> None:
    done = run("plan", "cpu-16gb", f"--vram={size}")

    assert done.returncode == 2
    assert "such as 20GiB" in done.stderr


@pytest.mark.starts
def test_planning_imports_no_inference_library() -> None:
    heavy = {"llama_cpp", "vllm", "torch", "transformers", "onnxruntime", "onnxruntime_genai", "numpy"}
    code = (
        "import sys, tourkit.cli\n"
        "code = tourkit.cli.main(['plan', 'cpu-16gb', '--ram', '32GiB'])\n"
        f"sys.exit(code or len({heavy!r} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0


@pytest.fixture
def half_filled(tiny_gguf: Path, tmp_path: Path) -> Path:
    """Return a bundle whose embed role has a model without a weight file."""
    for model, name in (("tiny-random", "tiny.gguf"), ("lost", "README.md")):
        folder = tmp_path / "bundle" / VariantId(model, "F16").folder
        folder.mkdir(parents=True)
        (folder / name).write_bytes(tiny_gguf.read_bytes() if name.endswith("gguf") else b"see the hub\n")
    models = [BundleModel(model, "me/x", "mit", 8192, None, False) for model in ("tiny-random", "lost")]
    variants = [BundleVariant(model.id, "F16", "gguf", "me/x", "main", "1" * 40) for model in models]
    roles = {"tool": ["tiny-random"], "embed": ["lost"]}
    write_index(tmp_path / "bundle", build_index(tmp_path / "bundle", "set", roles, models, variants))
    return tmp_path / "bundle"


@pytest.mark.starts
def test_serve_reports_a_role_without_a_usable_variant_at_start(half_filled: Path, tmp_path: Path) -> None:
    with serving(half_filled, tmp_path / "log", "--context", "512"):
        said = (tmp_path / "log").read_text()

    assert "role embed: nothing in the bundle fits" in said
    assert "lost: F16: the bundle has no .gguf file of it" in said

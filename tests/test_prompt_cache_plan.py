"""How much RAM the plan gives each model for earlier prompts, and what it says about it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from described_index import index

from tourkit.commands import planning as tables
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.probe import imagined
from tourkit.planning.limits import UNLIMITED, Limits
from tourkit.planning.model_shape import Shape
from tourkit.planning.plan import Placement, Plan
from tourkit.planning.planner import plan
from tourkit.server.gateway.launch import useless_folder
from tourkit.units import GIB, MIB

SMALL = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)  # 8 KiB per token
TRIALS = 576 * MIB  # of each worker


def machine(ram: float, *, free: float | None = None, vram: float = 0, stacks: Iterable[str] = ()) -> Hardware:
    gpus = (Gpu("GPU-0", "A100", "cuda", int(vram * GIB), int(vram * GIB), (8, 0)),) if vram else ()
    here = tuple(InstalledStack(name, gpu="cuda" if vram else "") for name in stacks or ("llama_cpp",))
    return Hardware(4, int(ram * GIB), None if free is None else int(free * GIB), gpus, here, driver="13.0")


def planned(
    sizes: dict[str, dict[str, float]], here: Hardware, limits: Limits = UNLIMITED, shape: Shape = SMALL
) -> Plan:
    """Return the plan for models that fill a role each, in the order of the roles."""
    bundle = index({role: (model,) for role, model in zip(("brain", "fast", "tool"), sizes, strict=False)}, sizes)
    return plan(bundle, here, shapes={each.id: shape for each in bundle.variants}, context=4096, limits=limits)


def shares(made: Plan) -> list[int | None]:
    return [placement.launch.prompt_cache for placement in made.placements]


def taken(placement: Placement) -> int:
    return sum(memory.total for memory in placement.memory if memory.device == "cpu")


def text(made: Plan) -> list[str]:
    return [line for line in tables.lines(made) if line.startswith("prompt cache")]


def test_it_is_a_quarter_of_the_ram_that_the_model_and_its_trials_leave() -> None:
    made = planned({"a": {"Q4_K_M": 4}}, machine(16))
    left = 16 * GIB - taken(made.placements[0]) - TRIALS

    assert made.prompt_cache is not None
    assert made.prompt_cache.left == left
    assert made.prompt_cache.most == left // 4
    assert shares(made) == [made.prompt_cache.tokens * 8192]
    assert 0 <= made.prompt_cache.most - made.prompt_cache.tokens * 8192 < 8192
    assert made.notes == ()


def test_only_free_memory_counts_and_what_the_user_reserves_does_not() -> None:
    whole, busy = planned({"a": {"Q4_K_M": 4}}, machine(16)), planned({"a": {"Q4_K_M": 4}}, machine(16, free=10))
    reserved = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(reserve=2 * GIB))

    found = [made.prompt_cache for made in (whole, busy, reserved)]
    assert all(each is not None for each in found)
    lefts = [each.left for each in found if each is not None]
    assert (lefts[0] - lefts[1], lefts[0] - lefts[2]) == (6 * GIB, 2 * GIB)


def test_another_machine_has_its_own() -> None:
    here = imagined(machine(16, free=12), ram=8 * GIB)

    assert planned({"a": {"Q4_K_M": 4}}, here).prompt_cache == planned({"a": {"Q4_K_M": 4}}, machine(8)).prompt_cache


def test_loaded_models_share_it_so_that_each_keeps_as_many_tokens() -> None:
    sizes = {"a": {"Q4_K_M": 4.0}, "b": {"Q4_K_M": 2.0}}
    bundle = index({"brain": ("a",), "tool": ("b",)}, sizes)
    wide = Shape((1536,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)  # 24 KiB per token
    shapes = {each.id: wide if each.model == "b" else SMALL for each in bundle.variants}

    made = plan(bundle, machine(32), shapes=shapes, context=4096)

    assert made.prompt_cache is not None
    assert shares(made) == [made.prompt_cache.tokens * 8192, made.prompt_cache.tokens * 3 * 8192]
    assert sum(filter(None, shares(made))) <= made.prompt_cache.most


def test_models_that_take_turns_get_the_same_bytes_because_one_of_them_is_loaded() -> None:
    made = planned({"a": {"Q4_K_M": 6}, "b": {"Q4_K_M": 5}, "c": {"Q4_K_M": 1}}, machine(10))

    assert [placement.resident for placement in made.placements] == [False, False, True]
    assert made.prompt_cache is not None
    a, b, c = shares(made)
    assert a == b == c == made.prompt_cache.tokens * 8192
    assert taken(made.placements[0]) + taken(made.placements[2]) + a + c + 2 * TRIALS < 10 * GIB


def test_a_stack_that_cannot_keep_prompts_an_embedder_and_a_model_without_cells_get_none() -> None:
    embedder = Shape((0,) * 4, (0,) * 4, 64, 256, 1000, 512, "a test", embeds=True)
    recurrent = Shape((0,) * 4, (0,) * 4, 64, 256, 1000, 8192, "a test", state=MIB)

    onnx = planned({"a": {"ONNX-INT4": 1}}, machine(16, stacks=["onnx"]))
    embeds = planned({"a": {"Q8_0": 1}}, machine(16), shape=embedder)
    no_cells = planned({"a": {"Q8_0": 1}}, machine(16), shape=recurrent)

    for made in (onnx, embeds, no_cells):
        assert shares(made) == [None]
        assert made.prompt_cache is None
        assert text(made) == []


def test_a_hybrid_model_has_room_for_a_checkpoint_every_thousand_tokens() -> None:
    hybrid = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64, state=MIB)

    made = planned({"a": {"Q4_K_M": 4}}, machine(16), shape=hybrid)

    assert made.prompt_cache is not None
    assert shares(made) == [made.prompt_cache.tokens * (8192 + 1024)]


def test_a_fallback_has_what_is_left_with_the_fallback_in_place() -> None:
    """On the GPU the model leaves all RAM; the same model on the CPU does not."""
    made = planned({"a": {"Q4_K_M": 4}}, machine(16, vram=12))
    [placement] = made.placements
    [fallback] = placement.fallbacks

    assert fallback.device == "cpu"
    assert fallback.launch.prompt_cache is not None
    assert fallback.launch.prompt_cache // 8192 == (16 * GIB - taken(fallback) - TRIALS) // 4 // 8192
    assert placement.launch.prompt_cache is not None
    assert fallback.launch.prompt_cache < placement.launch.prompt_cache


@pytest.mark.parametrize("asked", [0, 100 * MIB, 3 * GIB])
def test_a_size_that_fits_is_taken(asked: int) -> None:
    made = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(prompt_cache=asked))

    assert shares(made) == [asked // 8192 * 8192]
    assert made.notes == ()


def test_a_size_that_does_not_fit_is_cut_and_the_plan_says_so() -> None:
    made = planned({"a": {"Q4_K_M": 4}}, machine(8), Limits(prompt_cache=20 * GIB))

    assert made.prompt_cache is not None
    assert made.prompt_cache.most == made.prompt_cache.left * 3 // 4
    [note] = made.notes
    assert note.startswith("--prompt-cache 20.0 GiB: the models leave 3.2 GiB of RAM, and the cache gets three")


def test_a_machine_that_the_models_fill_has_none() -> None:
    full = planned({"a": {"Q4_K_M": 4}}, machine(5))
    none = machine(16, free=taken(full.placements[0]) / GIB + 0.1)

    made = planned({"a": {"Q4_K_M": 4}}, none)

    assert shares(made) == [0]
    assert text(made) == ["prompt cache: none; the models leave no RAM for it"]


def test_a_folder_that_stays_empty_is_pointed_out() -> None:
    full = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(prompt_cache=0))
    onnx = planned({"a": {"ONNX-INT4": 1}}, machine(16, stacks=["onnx"]))

    assert useless_folder(full).startswith("the models leave no RAM")
    assert useless_folder(onnx).startswith("no model here runs on a stack that keeps prompts")
    assert useless_folder(planned({"a": {"Q4_K_M": 4}}, machine(16))) == ""


def test_the_table_says_how_much_why_and_how_many_tokens_fit() -> None:
    made = planned({"a": {"Q4_K_M": 4}}, machine(16))
    turned_off = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(prompt_cache=0))
    asked = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(prompt_cache=GIB))

    fit = "tokens of each model fit"
    assert text(made) == [
        f"prompt cache: 2.8 GiB, a quarter of the 11.2 GiB of RAM that the models leave; 367,055 {fit}"
    ]
    assert text(turned_off) == ["prompt cache: none; --prompt-cache 0"]
    assert text(asked) == [f"prompt cache: 1.0 GiB of the 11.2 GiB of RAM that the models leave; 131,072 {fit}"]


def test_the_json_has_the_same_numbers() -> None:
    made = planned({"a": {"Q4_K_M": 4}}, machine(16), Limits(prompt_cache=GIB))

    found = tables.plan_json(made)

    assert found["prompt_cache"]["most"] == found["prompt_cache"]["asked"] == GIB
    assert found["placements"][0]["prompt_cache"] == 131_072 * 8192

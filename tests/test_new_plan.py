"""Memory that other programs took after the plan: one new plan for the model, then its fallbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from described_index import index

from tourkit.hardware import probe
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.launch import Launch
from tourkit.planning.limits import UNLIMITED, Limits
from tourkit.planning.model_shape import Shape
from tourkit.planning.plan import CPU, Memory, Placement
from tourkit.server.gateway import app, process
from tourkit.server.gateway import launch as serving
from tourkit.server.gateway.app import Gateway, GatewayOptions
from tourkit.server.gateway.launch import ServeOptions, left_beside, plan_again
from tourkit.server.gateway.supervisor import State, Worker
from tourkit.units import GIB

SMALL = Shape((512,) * 8, (0,) * 8, 512, 2048, 1000, 8192, "a test", head=64)  # 8 KiB per token
OFFLINE: Any = {"uds": "", "offline": True}
GPU = Gpu("GPU-0", "A100", "cuda", 20 * GIB, 20 * GIB, (8, 0))


def machine(free: float) -> Hardware:
    """Return a machine with a GPU that has this many GiB free. Made by hand: such a machine cannot exist here."""
    gpus = (replace(GPU, free=int(free * GIB)),)
    return Hardware(4, 64 * GIB, ram_free=60 * GIB, gpus=gpus, stacks=(InstalledStack("llama_cpp", gpu="cuda 12"),))


def source(**sizes: float) -> serving.Source:
    """Return a bundle with two models: `brain` with a variant of each size, in GiB, and `other`."""
    made = index({"brain": ("brain", "other"), "tool": ("other",)}, {"brain": sizes, "other": {"Q8_0": 1}})
    return serving.Source(made, {variant.id: SMALL for variant in made.variants}, Path("/bundle").joinpath, "a test")


def first_plan(given: serving.Source, free: float) -> Placement:
    """Return the placement of brain by the first plan."""
    made = serving._located(given, ServeOptions(), serving._plan(given, ServeOptions(), machine(free), ("brain",)))
    return made[0]


# --- the new plan ---------------------------------------------------------------------------------------------------


def test_the_new_plan_takes_a_variant_of_the_same_model_that_fits_what_is_free_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = source(Q8_0=9, Q4_K_M=5)
    failed = first_plan(given, free=20)
    monkeypatch.setattr(probe, "probe", lambda: machine(free=7))

    made = plan_again(given, ServeOptions(), failed, (), ())

    assert (failed.launch.quant, failed.device) == ("Q8_0", "GPU-0")
    assert made is not None
    assert (made.launch.model, made.launch.quant, made.device) == ("brain", "Q4_K_M", "GPU-0")
    assert made.launch.path == "/bundle/models/brain/Q4_K_M/brain.gguf"
    assert made.roles == failed.roles


def test_memory_that_other_placements_still_need_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(Q8_0=9, Q4_K_M=5)
    failed = first_plan(given, free=20)
    monkeypatch.setattr(probe, "probe", lambda: machine(free=12))
    coming = Placement(("tool",), failed.launch, "GPU-0", memory=(Memory("GPU-0", 5 * GIB, 0, 0, 5 * GIB),))

    made = plan_again(given, ServeOptions(), failed, (), (coming,))

    assert made is not None
    assert made.launch.quant == "Q4_K_M"


def test_a_model_in_turn_stays_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(Q8_0=9, Q4_K_M=5)
    monkeypatch.setattr(probe, "probe", lambda: machine(free=7))

    made = plan_again(given, ServeOptions(), replace(first_plan(given, free=20), resident=False), (), ())

    assert made is not None
    assert not made.resident


def test_there_is_no_new_plan_if_the_same_one_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(Q8_0=9)
    failed = first_plan(given, free=20)
    monkeypatch.setattr(probe, "probe", lambda: machine(free=20))

    assert plan_again(given, ServeOptions(), failed, (), ()) is None


def test_there_is_no_new_plan_that_takes_more_than_the_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate was too low then: more memory would fail too."""
    given = source(Q8_0=9, Q4_K_M=5)
    failed = first_plan(given, free=7)
    monkeypatch.setattr(probe, "probe", lambda: machine(free=20))

    assert failed.launch.quant == "Q4_K_M"
    assert plan_again(given, ServeOptions(), failed, (), ()) is None


def test_there_is_no_new_plan_if_the_gpu_that_was_named_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = source(Q8_0=9, Q4_K_M=5), ServeOptions(limits=Limits(gpu="GPU-0"))
    failed = first_plan(given, free=20)
    monkeypatch.setattr(probe, "probe", lambda: replace(machine(free=20), gpus=()))

    assert plan_again(given, options, failed, (), ()) is None


def test_there_is_no_new_plan_if_nothing_fits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(Q8_0=9)
    failed = first_plan(given, free=20)
    monkeypatch.setattr(probe, "probe", lambda: replace(machine(free=0), ram_free=GIB))

    assert plan_again(given, ServeOptions(), failed, (), ()) is None


OTHER = Placement(
    ("tool",),
    Launch("m", "llama_cpp", "m", 1, 64, 1),
    memory=(Memory("GPU-0", 0, 0, 0, 3 * GIB), Memory(CPU, 0, 0, 0, GIB)),
)


def test_memory_for_placements_to_come_is_taken_from_its_device() -> None:
    left = left_beside(machine(free=10), UNLIMITED, (), [OTHER, OTHER])

    assert (left.gpus[0].free, left.ram_free) == (4 * GIB, 58 * GIB)
    assert left_beside(machine(free=1), UNLIMITED, (), [OTHER]).gpus[0].free == 0


def test_memory_that_loaded_placements_hold_is_already_missing_and_counts_for_the_limit_only() -> None:
    free = left_beside(machine(free=10), UNLIMITED, [OTHER], ())
    limited = left_beside(machine(free=10), Limits(vram=8 * GIB), [OTHER], [OTHER])

    assert (free.gpus[0].free, free.ram_free) == (10 * GIB, 60 * GIB)
    assert limited.gpus[0].free == 2 * GIB


def test_memory_stays_free_for_the_largest_of_those_that_take_turns() -> None:
    """A model that takes turns itself is not loaded beside them."""
    turns = [
        Worker(replace(placement("Full", 64), resident=False, memory=(Memory(CPU, size, 0, 0, size),)), **OFFLINE)
        for size in (1, 3, 2)
    ]
    resident, in_turn = Worker(placement("Full"), **OFFLINE), turns[0]
    resident.state = State.READY

    assert app._still_to_come(resident, turns) == (turns[1].placement,)
    assert app._still_to_come(in_turn, [resident, *turns[1:]]) == ()


def test_memory_stays_free_for_a_model_that_is_unloaded_until_its_next_request() -> None:
    resident, other = Worker(placement("Full"), **OFFLINE), Worker(placement("Full", 64), **OFFLINE)

    assert app._still_to_come(other, [resident]) == (resident.placement,)


def test_a_gpu_is_the_only_one_if_no_other_failed_to_answer() -> None:
    one = machine(free=20)

    assert serving.has_one_gpu(one)
    assert not serving.has_one_gpu(replace(one, gpus=(GPU, replace(GPU, id="GPU-1"))))
    assert not serving.has_one_gpu(replace(one, problems=("CUDA device 1: cuDevicePrimaryCtxRetain failed",)))
    assert not serving.has_one_gpu(replace(one, gpus=()))


# --- when it is asked for -------------------------------------------------------------------------------------------


def placement(model: str, context: int = 2048, *fallbacks: Placement) -> Placement:
    launch = Launch(model, "llama_cpp", f"{model}.gguf", 1, context, 1, quant=f"F{context}")
    return Placement(("tool",), launch, fallbacks=fallbacks)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are processes with the fake engine that the model names."""
    monkeypatch.setattr(process, "_OUR_ENGINE", process.Program("fake_worker"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def run(planned: Placement, make: Callable[[Placement], Placement | None]) -> tuple[Worker, list[str], list[Placement]]:
    """Start a worker, and stop it when it has loaded or failed. Return it, what it said, and what was planned again."""
    said: list[str] = []
    asked: list[Placement] = []

    async def again(worker: Worker) -> Placement | None:
        asked.append(worker.placement)
        return make(worker.placement)

    async def serve() -> Worker:
        worker = Worker(planned, uds="", offline=False, say=said.append, plan_again=again)
        worker.start()
        await worker.settled()
        loaded = worker.state is State.READY
        await worker.stop()
        assert loaded is (worker.error is None)
        return worker

    return asyncio.run(serve()), said, asked


@pytest.mark.starts
@pytest.mark.usefixtures("fake")
def test_a_model_without_memory_is_loaded_by_its_new_plan_and_one_line_says_so() -> None:
    worker, said, asked = run(placement("Full"), lambda _: placement("Full", 512))

    assert worker.answering.launch.context == 512
    assert len(asked) == 1
    assert said == [
        "tool: Full F2048 on llama_cpp: m.gguf: llama.cpp cannot load it (cudaMalloc failed: out of memory);"
        " planned again for the memory that is free now: Full F512 llama_cpp, 512 tokens a sequence"
    ]


@pytest.mark.starts
@pytest.mark.usefixtures("fake")
def test_the_fallbacks_come_after_a_new_plan_that_fails_too() -> None:
    planned = placement("Full", 4096, placement("Full", 64))

    worker, said, asked = run(planned, lambda _: placement("Full", 2048))

    assert worker.answering.launch.context == 64
    assert len(asked) == 1
    assert [line.partition("; ")[2] for line in said] == [
        "planned again for the memory that is free now: Full F2048 llama_cpp, 2048 tokens a sequence",
        "falling back to Full F64 llama_cpp",
    ]


@pytest.mark.starts
@pytest.mark.usefixtures("fake")
def test_the_fallbacks_come_at_once_if_no_new_plan_is_found() -> None:
    worker, said, asked = run(placement("Full", 4096, placement("Full", 64)), lambda _: None)

    assert worker.answering.launch.context == 64
    assert len(asked) == 1
    assert said[0].endswith("falling back to Full F64 llama_cpp")


@pytest.mark.starts
@pytest.mark.usefixtures("fake")
def test_another_failure_leads_to_no_new_plan() -> None:
    worker, _, asked = run(placement("Damaged"), lambda _: placement("Full", 64))

    assert asked == []
    assert worker.state is State.STOPPED
    assert worker.error == "Damaged F2048 on llama_cpp: m.gguf: not a GGUF file"


@pytest.mark.starts
@pytest.mark.usefixtures("fake")
def test_two_models_without_memory_are_planned_one_after_the_other() -> None:
    """The first gets a plan beside the second, which waits; the second beside the first, which is loaded then."""
    beside: list[tuple[list[int], list[int]]] = []
    one, two = (replace(placement("Full"), roles=(role,)) for role in ("brain", "tool"))
    two = replace(two, launch=replace(two.launch, quant="other"))

    def make(failed: Placement, loaded: tuple[Placement, ...], others: tuple[Placement, ...]) -> Placement:
        beside.append(([other.launch.context for other in loaded], [other.launch.context for other in others]))
        return replace(failed, launch=replace(failed.launch, context=64))

    async def serve() -> list[State]:
        gateway = Gateway((one, two), GatewayOptions(unix=False, plan_again=make))
        async with gateway._lifespan(None):  # type: ignore[arg-type]
            workers = gateway._distinct()
            for worker in workers:
                await worker.settled()
            return [worker.state for worker in workers]

    assert asyncio.run(serve()) == [State.READY, State.READY]
    assert len(beside) == 2
    assert beside[1] == ([64], [])

"""What to do with memory that is left once every model has its smallest option: more of what matters most first. Pure.

Every step keeps who is resident and who takes turns, and takes what fits beside all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tourkit.launch import GpuLayers
from tourkit.planning.options import Option
from tourkit.planning.packing import Budget, SizedOption, pack
from tourkit.stacks import STACKS

_LOSSLESS_BITS = 8  # as good as: no model gets more before all have got these
_ALL_BITS = 32


def grow(
    sized: dict[str, SizedOption],
    options: Mapping[str, list[Option]],
    resident: frozenset[str],
    budget: Budget,
    most_slots: int,
    longest: Mapping[str, int],
) -> dict[str, SizedOption]:
    """Slots up to `most_slots`, layers on the GPU, bits a weight, a finer cache, and contexts up to `longest` tokens.

    All by model id; `options` best first. A model that is not in `longest` keeps its context.
    """

    def fits(tried: dict[str, SizedOption]) -> bool:
        return pack(tried, resident, budget) is not None

    for model_id, now in sized.items():
        more = [replace(now, slots=slots) for slots in range(most_slots, now.slots, -1)]
        sized = _first_that(fits, sized, model_id, more)
    for model_id, now in sized.items():
        sized = _first_that(fits, sized, model_id, _with_layers(now, options[model_id]))
    for most_bits in (_LOSSLESS_BITS, _ALL_BITS):
        sized = _in_turn(fits, sized, lambda now: now.option.rank.bits, _better(options, most_bits))
    for model_id, now in sized.items():
        finer = replace(now, cache_type=now.option.cache_types[-1])
        sized = _first_that(fits, sized, model_id, [finer])
    return _in_turn(fits, sized, lambda now: now.context, _doubled(longest))


def _first_that(
    fits: Callable[[dict[str, SizedOption]], bool],
    sized: dict[str, SizedOption],
    model_id: str,
    better: list[SizedOption],
) -> dict[str, SizedOption]:
    """The models with the first of `better` that fits; as they were when none does."""
    for each in better:
        tried = {**sized, model_id: each}
        if fits(tried):
            return tried
    return sized


def _in_turn(
    fits: Callable[[dict[str, SizedOption]], bool],
    sized: dict[str, SizedOption],
    measure: Callable[[SizedOption], int],
    better: Callable[[SizedOption], list[SizedOption]],
) -> dict[str, SizedOption]:
    """Improve the model that has least by `measure`, again and again, until none can be improved."""
    done: set[str] = set()
    while left := [model_id for model_id in sized if model_id not in done]:
        model_id = min(left, key=lambda id_: measure(sized[id_]))
        improved = _first_that(fits, sized, model_id, better(sized[model_id]))
        if improved is sized:
            done.add(model_id)
        sized = improved
    return sized


def _with_layers(now: SizedOption, options: list[Option]) -> list[SizedOption]:
    """For what runs on the CPU although there is a GPU: layers there, as many as fit, the most first."""
    option = now.option
    able = STACKS[option.stack].splits_layers and any(each.on_gpu and each.path == option.path for each in options)
    if not now.gpu_layers.is_none or not able:
        return []
    return [replace(now, gpu_layers=GpuLayers(layers)) for layers in range(option.shape.layers, 0, -1)]


def _better(options: Mapping[str, list[Option]], most_bits: int) -> Callable[[SizedOption], list[SizedOption]]:
    """Options that rank above the one in use on the same device, of at most `most_bits`, the next one first."""

    def better(now: SizedOption) -> list[SizedOption]:
        if now.gpu_layers.is_part:  # split over both devices: it has what there was
            return []
        used = now.option
        above = [
            option
            for option in reversed(options[used.model])
            if option.rank > used.rank and option.rank.bits <= most_bits and option.on_gpu is used.on_gpu
        ]
        return [replace(now, option=option, cache_type=option.cache_types[0]) for option in above]

    return better


def _doubled(longest: Mapping[str, int]) -> Callable[[SizedOption], list[SizedOption]]:
    def doubled(now: SizedOption) -> list[SizedOption]:
        most = longest.get(now.option.model, 0)
        return [replace(now, context=min(2 * now.context, most))] if now.context < most else []

    return doubled

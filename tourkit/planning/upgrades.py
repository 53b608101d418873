"""Uses the memory that is left after every model has its smallest option, the most useful upgrade first. Pure.

No step changes which models are resident and which take turns. Each step takes only what fits beside all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tourkit.launch import GpuLayers
from tourkit.planning.options import Option
from tourkit.planning.packing import Budget, SizedOption, pack
from tourkit.stacks import STACKS

_LOSSLESS_BITS = 8  # nearly lossless: no model gets more bits before all have these
_ALL_BITS = 32


def grow(
    sized: dict[str, SizedOption],
    options: Mapping[str, list[Option]],
    resident: frozenset[str],
    budget: Budget,
    most_slots: int,
    longest: Mapping[str, int],
) -> dict[str, SizedOption]:
    """Return the models with as much more as fits, in this order of steps.

    Slots up to `most_slots`, layers on the GPU, a finer cache on the GPU, bits per weight, a finer cache elsewhere,
    contexts up to `longest` tokens. On a GPU a quantised cache costs time at every step, so a finer one comes before
    bits. All mappings are by model id; `options` are sorted best first. A model that is not in `longest` keeps its
    context.
    """

    def fits(tried: dict[str, SizedOption]) -> bool:
        return pack(tried, resident, budget) is not None

    for model_id, now in sized.items():
        more = [replace(now, slots=slots) for slots in range(most_slots, now.slots, -1)]
        sized = _first_that(fits, sized, model_id, more)
    for model_id, now in sized.items():
        sized = _first_that(fits, sized, model_id, _with_layers(now, options[model_id]))
    for model_id, now in sized.items():
        if now.option.on_gpu:
            sized = _first_that(fits, sized, model_id, [_finest_cache(now)])
    for most_bits in (_LOSSLESS_BITS, _ALL_BITS):
        sized = _in_turn(fits, sized, lambda now: now.option.rank.bits, _better(options, most_bits))
    for model_id, now in sized.items():
        sized = _first_that(fits, sized, model_id, [_finest_cache(now)])
    return _in_turn(fits, sized, lambda now: now.context, _doubled(longest))


def with_option(now: SizedOption, option: Option) -> SizedOption:
    """Return another option of the same model on the same kind of device. On a GPU it keeps the cache type."""
    keeps = option.on_gpu and now.cache_type in option.cache_types
    return replace(now, option=option, cache_type=now.cache_type if keeps else option.cache_types[0])


def _finest_cache(now: SizedOption) -> SizedOption:
    return replace(now, cache_type=now.option.cache_types[-1])


def _first_that(
    fits: Callable[[dict[str, SizedOption]], bool],
    sized: dict[str, SizedOption],
    model_id: str,
    better: list[SizedOption],
) -> dict[str, SizedOption]:
    """Return the models with the first of `better` that fits; return them unchanged if none fits."""
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
    """Improve the model with the lowest `measure`, again and again, until none can be improved."""
    done: set[str] = set()
    while left := [model_id for model_id in sized if model_id not in done]:
        model_id = min(left, key=lambda id_: measure(sized[id_]))
        improved = _first_that(fits, sized, model_id, better(sized[model_id]))
        if improved is sized:
            done.add(model_id)
        sized = improved
    return sized


def _with_layers(now: SizedOption, options: list[Option]) -> list[SizedOption]:
    """Return splits for a model that runs on the CPU although a GPU could run it: the most layers on the GPU first."""
    option = now.option
    able = STACKS[option.stack].splits_layers and any(each.on_gpu and each.path == option.path for each in options)
    if not now.gpu_layers.is_none or not able:
        return []
    return [replace(now, gpu_layers=GpuLayers(layers)) for layers in range(option.shape.layers, 0, -1)]


def _better(options: Mapping[str, list[Option]], most_bits: int) -> Callable[[SizedOption], list[SizedOption]]:
    """Return a function that lists better options: on the same device, of at most `most_bits`, the next one first."""

    def better(now: SizedOption) -> list[SizedOption]:
        if now.gpu_layers.is_part:  # split over both devices: no memory is left for it
            return []
        used = now.option
        above = [
            option
            for option in reversed(options[used.model])
            if option.rank > used.rank and option.rank.bits <= most_bits and option.on_gpu is used.on_gpu
        ]
        return [with_option(now, option) for option in above]

    return better


def _doubled(longest: Mapping[str, int]) -> Callable[[SizedOption], list[SizedOption]]:
    def doubled(now: SizedOption) -> list[SizedOption]:
        most = longest.get(now.option.model, 0)
        return [replace(now, context=min(2 * now.context, most))] if now.context < most else []

    return doubled

"""What to do with memory that is left once every role has its smallest choice: more of what matters most first. Pure.

Every step keeps who is resident and who takes turns, and takes what fits beside all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tourkit.launch import GpuLayers
from tourkit.planning.options import Option
from tourkit.planning.packing import Budget, SizedOption, pack

_LOSSLESS_BITS = 8  # as good as: no model gets more before all have got these


def grow(
    choices: dict[str, SizedOption],
    forms: Mapping[str, list[Option]],
    resident: frozenset[str],
    budget: Budget,
    most_slots: int,
    longest: Mapping[str, int],
) -> dict[str, SizedOption]:
    """Slots up to `most_slots`, layers on the GPU, bits a weight, a finer cache, and contexts up to `longest`.

    All by model id; `forms` best first. A model that is not in `longest` keeps its context.
    """

    def fits(tried: dict[str, SizedOption]) -> bool:
        return pack(tried, resident, budget) is not None

    for model_id, choice in choices.items():
        more = [replace(choice, slots=slots) for slots in range(most_slots, choice.slots, -1)]
        choices = _first_that(fits, choices, model_id, more)
    for model_id, choice in choices.items():
        choices = _first_that(fits, choices, model_id, _with_layers(choice, forms[model_id]))
    for most in (_LOSSLESS_BITS, 32):
        choices = _in_turn(fits, choices, lambda choice: choice.form.rank[0], _better(forms, most))
    for model_id, choice in choices.items():
        finer = replace(choice, cache_type=choice.form.cache_types[-1])
        choices = _first_that(fits, choices, model_id, [finer])
    return _in_turn(fits, choices, lambda choice: choice.context, _doubled(longest))


def _first_that(
    fits: Callable[[dict[str, SizedOption]], bool],
    choices: dict[str, SizedOption],
    model_id: str,
    better: list[SizedOption],
) -> dict[str, SizedOption]:
    """The choices with the first of `better` that fits; as they were when none does."""
    for choice in better:
        tried = {**choices, model_id: choice}
        if fits(tried):
            return tried
    return choices


def _in_turn(
    fits: Callable[[dict[str, SizedOption]], bool],
    choices: dict[str, SizedOption],
    measure: Callable[[SizedOption], int],
    better: Callable[[SizedOption], list[SizedOption]],
) -> dict[str, SizedOption]:
    """Improve the model that has least by `measure`, again and again, until none can be improved."""
    done: set[str] = set()
    while left := [model_id for model_id in choices if model_id not in done]:
        model_id = min(left, key=lambda id_: measure(choices[id_]))
        improved = _first_that(fits, choices, model_id, better(choices[model_id]))
        if improved is choices:
            done.add(model_id)
        choices = improved
    return choices


def _with_layers(choice: SizedOption, forms: list[Option]) -> list[SizedOption]:
    """For what runs on the CPU although there is a GPU: layers there, as many as fit, the most first."""
    form = choice.form
    able = form.stack == "llama_cpp" and any(other.on_gpu and other.path == form.path for other in forms)
    if not choice.gpu_layers.is_none or not able:
        return []
    return [replace(choice, gpu_layers=GpuLayers(layers)) for layers in range(form.shape.layers, 0, -1)]


def _better(forms: Mapping[str, list[Option]], most: int) -> Callable[[SizedOption], list[SizedOption]]:
    """Forms that rank above a choice on the same device, of at most `most` bits, the next one first."""

    def better(choice: SizedOption) -> list[SizedOption]:
        if choice.gpu_layers.is_part:  # split over both devices: it has what there was
            return []
        above = [form for form in reversed(forms[choice.form.model]) if choice.form.rank < form.rank < (most + 1,)]
        same_place = [form for form in above if form.on_gpu is choice.form.on_gpu]
        return [replace(choice, form=form, cache_type=form.cache_types[0]) for form in same_place]

    return better


def _doubled(longest: Mapping[str, int]) -> Callable[[SizedOption], list[SizedOption]]:
    def doubled(choice: SizedOption) -> list[SizedOption]:
        most = longest.get(choice.form.model, 0)
        return [replace(choice, context=min(2 * choice.context, most))] if choice.context < most else []

    return doubled

"""What to load, in order, instead of a model that cannot be loaded. Pure.

Each fallback fits in the place of the model it replaces. All other models stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tourkit.planning.decision import USUAL, Decision
from tourkit.planning.options import Option, Rank
from tourkit.planning.packing import SizedOption, at_smallest, pack


@dataclass(frozen=True, slots=True)
class Fallback:
    """An option to load instead of a model, and its device: "cpu" or a GPU's id."""

    sized: SizedOption
    device: str


def fallbacks_of(decision: Decision, model_id: str) -> list[Fallback]:
    """Return the fallbacks of a model: first its other options, then the next models of its roles."""
    return [*_of_the_same_model(decision, model_id), *_of_the_next_models(decision, model_id)]


def _of_the_same_model(decision: Decision, model_id: str) -> Iterator[Fallback]:
    """Yield the best option that fits for each other stack and kind of device, and the lightest for the current one."""
    now = decision.sized[model_id].option
    options = [option for option in decision.offer.options[model_id] if option != now]
    lightest = _lightest(options, now)
    seen = {now.place}
    for option in _in_order(options, now):
        is_lightest = option == lightest and option.place == now.place
        if option.place in seen and not is_lightest:
            continue
        fallback = _in_place_of(decision, model_id, option)
        if fallback is not None:
            seen.add(option.place)
            yield fallback


def _of_the_next_models(decision: Decision, model_id: str) -> Iterator[Fallback]:
    """Yield the other models that all roles of this one name, each with its best option that fits."""
    named = [decision.offer.wanted[role] for role, id_ in decision.assignment.models.items() if id_ == model_id]
    now = decision.sized[model_id].option
    for other in named[0]:
        if other == model_id or not all(other in ids for ids in named):
            continue
        if other in decision.sized:  # already loaded for other roles: its worker is shared
            yield Fallback(decision.sized[other], decision.devices[other])
            continue
        options = _in_order(decision.offer.options.get(other, []), now)
        tried = (_in_place_of(decision, model_id, option) for option in options)
        found = next((fallback for fallback in tried if fallback is not None), None)
        if found is not None:
            yield found


def _lightest(options: Iterable[Option], now: Option) -> Option | None:
    """Return the option with the smallest weights, lighter than `now`, on the same kind of device; None if none is."""
    lighter = [option for option in options if option.size < now.size and option.on_gpu is now.on_gpu]
    return min(lighter, key=lambda option: option.size, default=None)


def _in_order(options: Iterable[Option], now: Option) -> list[Option]:
    """Sort options: on the GPU first, because a CPU is many times slower; on the CPU, the quant of `now` first."""

    def preference(option: Option) -> tuple[bool, bool, Rank]:
        return option.on_gpu, not option.on_gpu and option.quant == now.quant, option.rank

    return sorted(options, key=preference, reverse=True)


def _in_place_of(decision: Decision, model_id: str, option: Option) -> Fallback | None:
    """Return the option in the place of a model, with the model's context or the usual one; None if neither fits."""
    now = decision.sized[model_id]
    others = {id_: sized for id_, sized in decision.sized.items() if id_ != model_id}
    resident = decision.assignment.resident
    if model_id in resident:
        resident = resident - {model_id} | {option.model}
    for context in (now.context, min(now.context, USUAL.context)):
        sized = at_smallest(option, context, now.slots)
        devices = pack({**others, option.model: sized}, resident, decision.offer.budget)
        if devices is not None:
            return Fallback(sized, devices[option.model])
    return None

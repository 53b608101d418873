"""Explains in sentences what the planner decided and why. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tourkit.launch import ALL_LAYERS, NO_LAYERS
from tourkit.planning.decision import Decision
from tourkit.planning.model_shape import GUESSED
from tourkit.planning.options import Option, PassedOver
from tourkit.planning.packing import SizedOption, at_smallest, pack
from tourkit.planning.plan import Placement, PromptCache
from tourkit.planning.upgrades import with_option
from tourkit.units import counted, size_text

_NO_TEXT = {"embed", "rerank"}  # roles of models that write no text


def notes(decision: Decision, problems: Sequence[str]) -> tuple[str, ...]:
    """Return a line for each of the machine's `problems` and for each difference from what the set prefers."""
    return (
        *problems,
        *_not_the_first(decision),
        *_in_turn(decision),
        *(line for sized in decision.sized.values() for line in _of_one_model(sized, decision)),
    )


def unfilled(decision: Decision) -> tuple[str, ...]:
    """Return a line for each role without a usable variant."""
    usable = ", ".join(f"{size_text(device.usable)} of {device.name}" for device in decision.offer.budget.devices)
    lines = []
    for role, ids in decision.offer.wanted.items():
        if role not in decision.assignment.models:
            reasons = "; ".join(f"{id_}: {_why_not(decision, id_)}" for id_ in ids)
            lines.append(f"role {role}: nothing in {decision.offer.given} fits {usable} or runs here: {reasons}")
    return tuple(lines)


def passed_over(decision: Decision) -> tuple[PassedOver, ...]:
    """Return every variant that is not chosen, with the reason, in the order of the models."""
    passed: list[PassedOver] = []
    for model_id, options in decision.offer.options.items():
        passed += decision.offer.refused[model_id]
        now = decision.sized.get(model_id)
        for quant in dict.fromkeys(option.quant for option in options):
            if now is None:
                passed.append(PassedOver(model_id, quant, "its roles use another model"))
            elif quant != now.option.quant:
                same = [option for option in options if option.quant == quant]
                best = next((option for option in same if option.on_gpu is now.option.on_gpu), same[0])
                passed.append(PassedOver(model_id, quant, _why_not_this(decision, best, now)))
    return tuple(passed)


def prompt_cache(kept: PromptCache) -> str:
    """Return one line about the RAM for earlier prompts: how much, why, and how many tokens fit."""
    if not kept.most:
        return "prompt cache: none; " + ("--prompt-cache 0" if kept.asked == 0 else "the models leave no RAM for it")
    part = ", a quarter" if kept.asked is None else ""
    source = f"{part} of the {size_text(kept.left)} of RAM that the models leave"
    return f"prompt cache: {size_text(kept.most)}{source}; {kept.tokens:,} tokens of each model fit"


def prompt_cache_notes(kept: PromptCache | None) -> Iterator[str]:
    """Yield a line if the prompt cache is smaller than the user asked for."""
    if kept is not None and kept.asked is not None and kept.most < kept.asked:
        most = f"the models leave {size_text(kept.left)} of RAM, and the cache gets three quarters of it at most"
        yield f"--prompt-cache {size_text(kept.asked)}: {most}"


def speeds(placements: Sequence[Placement]) -> Iterator[str]:
    """Yield a line for each kind of speed that is not known, with what makes it known, or that is a limit only."""
    texts = [each for each in placements if not set(each.roles) <= _NO_TEXT]
    if any(each.speed.one is None for each in texts if each.launch.gpu_layers.is_none):
        yield "speed on the CPU: not known; make the machine file again with `tourkit doctor --json` on that machine"
    if any(each.speed.one is None for each in texts if not each.launch.gpu_layers.is_none):
        yield "speed on the GPU: not known; state its `bandwidth`, bytes a second, in a machine file (docs/plan.md)"
    elif any(not each.launch.gpu_layers.is_none for each in texts):
        yield "speed on the GPU: at most this, from the bandwidth of its memory"
    if any(each.speed.load is None for each in placements):
        yield "time to load: not known; plan with --bundle, or state `disk`, bytes a second, in a machine file"


def _not_the_first(decision: Decision) -> Iterator[str]:
    """Yield why the models that a role names before the chosen one are not used."""
    for role, model_id in decision.assignment.models.items():
        ids = decision.offer.wanted[role]
        for earlier in ids[: ids.index(model_id)]:
            yield f"{role}: {earlier} passed over: {_why_not(decision, earlier)}"


def _in_turn(decision: Decision) -> Iterator[str]:
    assignment = decision.assignment
    turns = [role for role, model_id in assignment.models.items() if model_id not in assignment.resident]
    if turns:
        yield f"{', '.join(turns)}: take turns; not enough memory for all models at once"


def _of_one_model(sized: SizedOption, decision: Decision) -> Iterator[str]:
    if decision.context is not None and sized.context < decision.context:
        asked = f"--context {decision.context}"
        yield f"{sized.option.model}: {sized.context} tokens a sequence, not {asked}: the model has no more"
    if sized.slots < decision.most_slots:
        size = f"{counted(sized.slots, 'sequence')} of {sized.context} tokens"
        yield f"{sized.option.model}: {size} at once; no more fit"
    if sized.option.shape.source == GUESSED:
        yield f"{sized.option.model}: no header has its shape; its KV cache is guessed from the file size"


def _why_not(decision: Decision, model_id: str) -> str:
    """Return why a model that is named for a role is not used for it."""
    options = decision.offer.options.get(model_id, [])
    if not options:
        return _grouped(decision.offer.refused.get(model_id, [])) or f"{decision.offer.given} has no variant of it"
    floor = decision.floor
    least = [at_smallest(option, floor.context, floor.slots) for option in options]
    smallest = min(least, key=lambda sized: (not sized.option.on_gpu, sized.total))
    where = "beside the others" if model_id in decision.assignment.smallest else "even alone"
    return f"needs at least {size_text(smallest.total)}; does not fit {where}"


def _why_not_this(decision: Decision, option: Option, now: SizedOption) -> str:
    """Return why `now` is used and not this option of the same model."""
    used = now.option
    if option.rank < used.rank and option.on_gpu is used.on_gpu:
        if option.rank.is_last and option.on_gpu:
            return f"takes turns, and {option.stack} starts too slowly for every turn; {used.quant} is on {used.stack}"
        if option.rank.is_last:
            return f"on a CPU 16-bit weights are half as fast as {used.quant}, with the same answers"
        return f"{used.quant} on {used.stack} is better and fits"
    if used.on_gpu and not option.on_gpu:
        return "would run on the CPU"
    layers = ALL_LAYERS if option.on_gpu else NO_LAYERS
    tried = replace(with_option(now, option), gpu_layers=layers)
    if option.on_gpu and not used.on_gpu:
        return f"needs {size_text(tried.gpu.total)}; does not fit on the GPU"
    more = tried.gpu.total - now.gpu.total if option.on_gpu else tried.ram.total - now.ram.total
    if pack({**decision.sized, option.model: tried}, decision.assignment.resident, decision.offer.budget) is None:
        return f"needs {size_text(more)} more than {used.quant}; not enough memory"
    return f"{used.quant} leaves more memory free"


def _grouped(refused: list[PassedOver]) -> str:
    """Return each reason after the variants that it is true of, in one line."""
    by_reason: dict[str, list[str]] = {}
    for each in refused:
        by_reason.setdefault(each.reason, []).append(each.quant)
    return "; ".join(f"{', '.join(quants)}: {reason}" for reason, quants in by_reason.items())

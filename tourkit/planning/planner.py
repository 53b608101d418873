"""Chooses the variants for all roles of a set at once, with their stack, device and context.

Only decides: reads no file and loads nothing. The priorities, in this order: as many roles as possible stay in memory
together, each role gets the model named first for it, more bits per weight, a finer KV cache, a longer context.
explain.py gives the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tourkit.bundle.index import Index
from tourkit.errors import NotSo, UsageError
from tourkit.hardware.machine import Hardware
from tourkit.launch import Launch
from tourkit.manifest.models import ROLES, VariantId
from tourkit.planning import explain
from tourkit.planning.decision import USUAL, Decision, Floor, Offer
from tourkit.planning.fallbacks import fallbacks_of
from tourkit.planning.gpu_stacks import unused_gpus
from tourkit.planning.limits import UNLIMITED, Limits, allowed
from tourkit.planning.model_shape import Shape
from tourkit.planning.options import Option, PassedOver, in_turn, options_of, starts_fast
from tourkit.planning.packing import Assignment, Budget, SizedOption, assign, at_smallest, budget_of, fits_alone, pack
from tourkit.planning.plan import CPU, Device, Memory, Placement, Plan
from tourkit.planning.prompt_cache import Shares, share_of_fallback, shares
from tourkit.planning.speed import foretold
from tourkit.planning.upgrades import grow

_FLOORS = (USUAL, Floor(4096, 2), Floor(2048, 2), Floor(2048, 1), Floor(1024, 1))
# A context grows by itself up to this many tokens: on a CPU a longer prompt takes minutes. --context can set more.
_LONGEST = {True: 32_768, False: 8192}


def plan(
    index: Index,
    hardware: Hardware,
    *,
    roles: tuple[str, ...] = (),
    context: int | None = None,
    slots: int | None = None,
    shapes: Mapping[VariantId, Shape] | None = None,
    limits: Limits = UNLIMITED,
    given: str = "the bundle",
) -> Plan:
    """Fill the roles. `context`: tokens per sequence. A missing shape is guessed from the file size.

    `given`: how messages name the bundle, manifest or file of the index. Raises UsageError for a role that the index
    does not have, or a GPU that the machine does not have. Raises NotSo if no role can be filled, or if one of `roles`
    cannot.
    """
    hardware = allowed(hardware, limits)
    for role in roles:
        if role not in index.roles:
            raise UsageError(f"role {role!r}: {given} has only {', '.join(index.roles)}: choose one of these")
    order = sorted(roles or index.roles, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    offer = _offer(index, hardware, {role: index.roles[role] for role in order}, shapes or {}, limits, given)
    floors = dict.fromkeys(Floor(context or floor.context, slots or floor.slots) for floor in _FLOORS)
    floor, assignment = _fullest(offer, floors)
    decision = _upgraded(offer, floor, assignment, most_slots=slots or USUAL.slots, context=context)
    warnings = tuple(unused_gpus(hardware, _formats(index, offer)))
    made = _plan_of(decision, hardware, limits.prompt_cache, warnings=warnings)
    if made.unfilled and (roles or not made.placements):
        raise NotSo(made.unfilled[0])
    return made


def _offer(
    index: Index,
    hardware: Hardware,
    wanted: Mapping[str, tuple[str, ...]],
    shapes: Mapping[VariantId, Shape],
    limits: Limits,
    given: str,
) -> Offer:
    """Return the options of every model that the roles name."""
    models = {model.id: model for model in index.models}
    options: dict[str, list[Option]] = {}
    refused: dict[str, list[PassedOver]] = {}
    for model_id in dict.fromkeys(id_ for ids in wanted.values() for id_ in ids):
        if model_id in models:
            options[model_id], refused[model_id] = options_of(index, models[model_id], hardware, shapes)
    return Offer(wanted, options, refused, budget_of(hardware, limits), given)


def _formats(index: Index, offer: Offer) -> set[str]:
    """Return the formats of the variants of every model that the roles name, and of the bases of adapters."""
    named = [model for model in index.models if model.id in offer.options]
    ids = {id_ for model in named for id_ in (model.id, model.adapts)}
    return {variant.format for variant in index.variants if variant.model in ids}


# --- which model fills which role -----------------------------------------------------------------------------------


def _fullest(offer: Offer, floors: Iterable[Floor]) -> tuple[Floor, Assignment]:
    """Return the first floor at which the most roles are filled, and its assignment."""
    made: dict[Floor, Assignment] = {}
    for floor in floors:
        made[floor] = _assigned(offer, floor)
        if _filled(made[floor]) == _most_filled(offer):
            break
    return max(made.items(), key=lambda item: _filled(item[1]))  # of equal ones, max takes the first


def _assigned(offer: Offer, floor: Floor) -> Assignment:
    """Assign models to roles and choose the resident ones, with every model at its smallest."""
    found = {id_: _smallest(options, floor, offer.budget) for id_, options in offer.options.items()}
    smallest = {id_: sized for id_, sized in found.items() if sized is not None}
    named = {}
    for role, ids in offer.wanted.items():
        fitting = [id_ for id_ in ids if id_ in smallest]
        # If any model fits on a GPU, only these are considered: taking turns on a GPU is faster than a CPU.
        preferred = [id_ for id_ in fitting if smallest[id_].option.on_gpu] or fitting
        if preferred:
            named[role] = preferred
    return assign(named, smallest, offer.budget)


def _smallest(options: list[Option], floor: Floor, budget: Budget) -> SizedOption | None:
    """Return the smallest option that fits alone: on a GPU if one fits there, else on the CPU; None if none fits."""
    for on_gpu in (True, False):
        tried = [at_smallest(option, floor.context, floor.slots) for option in options if option.on_gpu is on_gpu]
        fitting = [sized for sized in tried if fits_alone(sized, budget)]
        if fitting:
            return min(fitting, key=lambda sized: (sized.gpu.total, sized.ram.total))
    return None


def _filled(assignment: Assignment) -> tuple[int, int]:
    """Return how many roles have a model, and how many of these roles are on a GPU."""
    on_gpu = [assignment.smallest[model_id].option.on_gpu for model_id in assignment.models.values()]
    return len(on_gpu), sum(on_gpu)


def _most_filled(offer: Offer) -> tuple[int, int]:
    """Return what `_filled` returns with unlimited memory."""
    on_gpu = [[option.on_gpu for id_ in ids for option in offer.options.get(id_, [])] for ids in offer.wanted.values()]
    return sum(bool(each) for each in on_gpu), sum(any(each) for each in on_gpu)


# --- use of the remaining memory ------------------------------------------------------------------------------------


def _upgraded(offer: Offer, floor: Floor, assignment: Assignment, *, most_slots: int, context: int | None) -> Decision:
    """Return the decision: every model in use with as much as fits beside the others, and its device."""
    sized = {model_id: assignment.smallest[model_id] for model_id in dict.fromkeys(assignment.models.values())}
    for id_ in (id_ for id_ in sized if id_ not in assignment.resident and starts_fast(offer.options[id_])):
        ranked = sorted(map(in_turn, offer.options[id_]), key=lambda option: option.rank, reverse=True)
        offer = replace(offer, options={**offer.options, id_: ranked})
        sized[id_] = replace(sized[id_], option=in_turn(sized[id_].option))
    longest = {id_: _longest(each.option) for id_, each in sized.items()} if context is None else {}
    sized = grow(sized, offer.options, assignment.resident, offer.budget, most_slots, longest)
    devices = pack(sized, assignment.resident, offer.budget) or {}
    return Decision(offer, floor, assignment, sized, devices, most_slots, context)


def _longest(option: Option) -> int:
    """Return the context, in tokens, up to which a model grows by itself."""
    return min(option.max_context, _LONGEST[option.on_gpu])


# --- the plan -------------------------------------------------------------------------------------------------------


def _plan_of(decision: Decision, hardware: Hardware, prompt_cache: int | None, *, warnings: tuple[str, ...]) -> Plan:
    """`prompt_cache`: as in Limits."""
    kept = shares(decision.sized, decision.assignment.resident, decision.offer.budget, prompt_cache)
    placements = tuple(_placement(decision, model_id, hardware, kept, prompt_cache) for model_id in decision.sized)
    return Plan(
        placements=placements,
        notes=(*explain.notes(decision, (*warnings, *hardware.problems)), *explain.prompt_cache_notes(kept.whole)),
        passed_over=explain.passed_over(decision),
        unfilled=explain.unfilled(decision),
        devices=tuple(_with_used(device, placements) for device in decision.offer.budget.devices),
        threads=hardware.threads,
        prompt_cache=kept.whole,
    )


def _placement(
    decision: Decision, model_id: str, hardware: Hardware, kept: Shares, prompt_cache: int | None
) -> Placement:
    """Return the placement of a model in use, with its fallbacks. They have the same roles and residency."""
    assignment = decision.assignment
    roles = tuple(role for role, id_ in assignment.models.items() if id_ == model_id)
    resident = model_id in assignment.resident

    def placed(sized: SizedOption, device: str, share: int | None) -> Placement:
        return _placed(sized, device, roles, hardware, share, resident=resident)

    fallbacks = tuple(
        placed(each.sized, each.device, share_of_fallback(decision, model_id, each, prompt_cache))
        for each in fallbacks_of(decision, model_id)
    )
    made = placed(decision.sized[model_id], decision.devices[model_id], kept.by_model.get(model_id))
    return replace(made, fallbacks=fallbacks)


def _placed(
    sized: SizedOption,
    device: str,
    roles: tuple[str, ...],
    hardware: Hardware,
    prompt_cache: int | None,
    *,
    resident: bool,
) -> Placement:
    """`prompt_cache`: as in Launch."""
    option = sized.option
    shares = [] if sized.gpu_layers.is_none else [(device, sized.gpu)]
    shares.append((CPU, sized.ram))
    launch = Launch(
        model=option.model,
        quant=option.quant,
        stack=option.stack,
        path=option.path,
        slots=sized.slots,
        context=sized.context,
        threads=hardware.threads,
        gpu_layers=sized.gpu_layers,
        cache_type=sized.cache_type,
        lora=option.lora,
        prompt_cache=prompt_cache,
        capability=next((gpu.capability for gpu in hardware.gpus if gpu.id == device and gpu.runtime == "cuda"), None),
    )
    return Placement(
        roles=roles,
        launch=launch,
        device=device,
        resident=resident,
        size=option.size,
        memory=tuple(Memory(id_, s.weights, s.cache, s.overhead, s.total) for id_, s in shares),
        numbers_from=option.shape.source,
        speed=foretold(sized, device, hardware),
    )


def _with_used(device: Device, placements: tuple[Placement, ...]) -> Device:
    """Return the device with `used`: by all resident placements and the largest of those that take turns."""
    takes = [
        (each.resident, memory.total) for each in placements for memory in each.memory if memory.device == device.id
    ]
    resident = sum(size for stays, size in takes if stays)
    return replace(device, used=resident + max((size for stays, size in takes if not stays), default=0))

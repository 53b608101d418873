"""Which variant fills each role here, and how much context it gets. Decides; loads nothing.

Thin for now: GGUF on the memory there is, weights only by file size. The planner for devices and stacks builds on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.backends import STACKS
from tourkit.bundle import BundleModel, BundleVariant, Index, variant_files
from tourkit.errors import NotSo, UsageError
from tourkit.hardware import Hardware

_WEIGHTS_SHARE = 0.75  # of memory; the rest is for KV cache, buffers and everything else that runs
_DEFAULT_CONTEXT = 4096  # tokens a sequence
_DEFAULT_SLOTS = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """One variant to load, for one or more roles. `size` in bytes, `context` in tokens a sequence."""

    roles: tuple[str, ...]
    model: str
    quant: str
    stack: str
    path: str  # of the (first) weight file, relative to the bundle
    size: int
    context: int
    slots: int
    threads: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load, and a line for everything that was passed over."""

    placements: tuple[Placement, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """A usable variant: its model, its first weight file and the size of all of them."""

    model: BundleModel
    variant: BundleVariant
    path: str
    size: int


def plan(
    index: Index,
    hardware: Hardware,
    *,
    roles: tuple[str, ...] = (),
    context: int | None = None,
    slots: int | None = None,
) -> Plan:
    """Fill the roles. The first model that fits wins; then quants grow in the order of the roles while memory lasts.

    Raises UsageError for a role the bundle does not have, NotSo when a role cannot be filled.
    """
    wanted = roles or tuple(index.roles)
    for role in wanted:
        if role not in index.roles:
            raise UsageError(f"role {role!r}: the bundle fills {', '.join(index.roles)} only: choose one of them")
    budget = int(hardware.ram * _WEIGHTS_SHARE)
    notes: list[str] = []
    chosen = _smallest(index, wanted, budget, notes)
    _grow(index, chosen, budget)
    return Plan(_placements(chosen, hardware, context, slots), tuple(notes))


def _smallest(index: Index, roles: tuple[str, ...], budget: int, notes: list[str]) -> dict[str, _Choice]:
    """The first model of each role whose smallest variant fits beside those chosen before."""
    chosen: dict[str, _Choice] = {}
    for role in roles:
        for model_id in index.roles[role]:
            choices = _choices(index, model_id)
            if not choices:
                notes.append(f"{role}: {model_id} passed over: the bundle has no variant for an installed stack")
                continue
            if _total([*chosen.values(), choices[0]]) <= budget:
                chosen[role] = choices[0]
                break
            notes.append(f"{role}: {model_id} passed over: {_gib(choices[0].size)} do not fit beside the others")
        if role not in chosen:
            raise NotSo(f"role {role}: nothing in the bundle fits {_gib(budget)}: {'; '.join(notes) or 'no model'}")
    return chosen


def _grow(index: Index, chosen: dict[str, _Choice], budget: int) -> None:
    """Take the largest quant of each chosen model for which there is memory, all its roles together."""
    for model_id in dict.fromkeys(choice.model.id for choice in chosen.values()):
        for better in reversed(_choices(index, model_id)):
            others = [choice for choice in chosen.values() if choice.model.id != model_id]
            if _total([*others, better]) <= budget:
                for role, choice in chosen.items():
                    if choice.model.id == model_id:
                        chosen[role] = better
                break


def _choices(index: Index, model_id: str) -> list[_Choice]:
    """The usable variants of a model in the bundle, smallest first."""
    model = next((model for model in index.models if model.id == model_id), None)
    if model is None:
        return []
    found = []
    for variant in index.variants:
        if variant.model == model_id and variant.format in STACKS.values():
            weights = [file for file in variant_files(index, variant) if file.path.lower().endswith(".gguf")]
            if weights:
                found.append(_Choice(model, variant, weights[0].path, sum(file.size for file in weights)))
    return sorted(found, key=lambda choice: choice.size)


def _total(choices: list[_Choice]) -> int:
    return sum({(choice.model.id, choice.variant.quant): choice.size for choice in choices}.values())


def _placements(
    chosen: dict[str, _Choice], hardware: Hardware, context: int | None, slots: int | None
) -> tuple[Placement, ...]:
    by_variant: dict[tuple[str, str], list[str]] = {}
    for role, choice in chosen.items():
        by_variant.setdefault((choice.model.id, choice.variant.quant), []).append(role)
    placements = []
    for roles in by_variant.values():
        choice = chosen[roles[0]]
        placements.append(
            Placement(
                roles=tuple(roles),
                model=choice.model.id,
                quant=choice.variant.quant,
                stack=next(stack for stack, form in STACKS.items() if form == choice.variant.format),
                path=choice.path,
                size=choice.size,
                context=min(context or _DEFAULT_CONTEXT, choice.model.context),
                slots=slots or _DEFAULT_SLOTS,
                threads=hardware.threads,
            )
        )
    return tuple(placements)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

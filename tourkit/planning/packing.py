"""What fits together: choices against the memory of the devices, and which of them stay resident. Pure.

A choice that is not resident is loaded in turn with the others like it, so of those only the largest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice, product

from tourkit.hardware.probe import Hardware
from tourkit.launch import GpuLayers
from tourkit.planning.memory import Estimate, Load, Share, estimate
from tourkit.planning.options import Option
from tourkit.planning.plan import CPU

_RAM_KEPT = 0.10  # of all RAM, for the system and the program that asks
_VRAM_KEPT = 0.02  # of a GPU: what its driver and fragments take
_MOST_ASSIGNMENTS = 5000  # a set names a few models a role: this is never reached by a sensible one


@dataclass(frozen=True)
class SizedOption:
    """An option with everything decided."""

    form: Option
    context: int
    slots: int
    cache_type: str
    gpu_layers: GpuLayers

    @cached_property
    def _estimate(self) -> Estimate:
        form = self.form
        return estimate(
            Load(
                form.stack,
                form.size,
                form.shape,
                self.context,
                self.slots,
                self.cache_type,
                self.gpu_layers,
                form.bits,
            )
        )

    @property
    def gpu(self) -> Share:
        return self._estimate.gpu

    @property
    def ram(self) -> Share:
        return self._estimate.ram

    @property
    def total(self) -> int:
        return self.gpu.total + self.ram.total


@dataclass(frozen=True, slots=True)
class Budget:
    """Devices as (id, name, total, usable) in bytes; RAM is the last."""

    devices: tuple[tuple[str, str, int, int], ...]

    @property
    def ram(self) -> int:
        return self.devices[-1][3]

    @property
    def gpus(self) -> dict[str, int]:
        return {id_: usable for id_, _, _, usable in self.devices[:-1]}

    def usable(self) -> Iterator[tuple[str, int]]:
        for _, name, _, usable in self.devices:
            yield name, usable


@dataclass(frozen=True, slots=True)
class Assignment:
    """The model of each role, the models that stay in memory, and the smallest choice of every model that fits."""

    assigned: dict[str, str]
    resident: frozenset[str]
    choices: dict[str, SizedOption]


def budget_of(hardware: Hardware) -> Budget:
    """What may be used of each device: what is free now, less a margin; of unified memory the RAM has the rest."""
    devices = []
    ram = int(hardware.ram * (1 - _RAM_KEPT))
    for gpu in hardware.gpus:
        usable = min(gpu.free, int(gpu.total * (1 - _VRAM_KEPT)))
        devices.append((gpu.id, gpu.name, gpu.total, usable))
        if gpu.runtime == "metal":
            ram = max(0, ram - usable)
    if hardware.ram_free is not None:
        ram = min(ram, hardware.ram_free)
    return Budget((*devices, (CPU, "RAM", hardware.ram, ram)))


def fits_alone(choice: SizedOption, budget: Budget) -> bool:
    return pack({choice.form.model: choice}, frozenset([choice.form.model]), budget) is not None


def pack(choices: Mapping[str, SizedOption], resident: frozenset[str], budget: Budget) -> dict[str, str] | None:
    """A device for each choice, by model id; None when they do not fit. Whatever takes turns does so on one GPU."""
    turns = [id_ for id_ in choices if id_ not in resident]
    ram = sum(choices[id_].ram.total for id_ in choices if id_ in resident)
    if ram + max((choices[id_].ram.total for id_ in turns), default=0) > budget.ram:
        return None
    left = budget.gpus
    where = dict.fromkeys(choices, CPU)
    on_gpu = [id_ for id_ in choices if choices[id_].gpu.total]
    if on_gpu and not left:
        return None
    waiting = [id_ for id_ in on_gpu if id_ in turns]
    if waiting:
        largest = max(left, key=lambda id_: left[id_])
        left[largest] -= max(choices[id_].gpu.total for id_ in waiting)
        where |= dict.fromkeys(waiting, largest)
    for id_ in sorted((id_ for id_ in on_gpu if id_ not in turns), key=lambda id_: -choices[id_].gpu.total):
        need = choices[id_].gpu.total
        tight = min((gpu for gpu in left if left[gpu] >= need), key=lambda gpu: left[gpu], default=None)
        if tight is None:
            return None
        left[tight] -= need
        where[id_] = tight
    return where if all(size >= 0 for size in left.values()) else None


def assign(options: Mapping[str, list[str]], choices: dict[str, SizedOption], budget: Budget) -> Assignment:
    """Choose a model for each role, in the order of `options`, and which models stay resident.

    Most roles resident first, then the fewest models that take turns, then the models named first, role by role.
    """
    roles = list(options)
    for models in _assignments(options):
        if pack(_of(choices, models), frozenset(models), budget) is not None:
            return Assignment(dict(zip(roles, models, strict=True)), frozenset(models), choices)
    best: tuple[tuple[int, int], tuple[str, ...], frozenset[str]] | None = None
    for models in _assignments(options):
        for resident in _subsets(models):
            staying = sum(model in resident for model in models)
            score = (staying, -len(set(models) - resident))
            if (best is None or score > best[0]) and pack(_of(choices, models), resident, budget) is not None:
                best = score, models, resident
    if best is None:
        return Assignment({}, frozenset(), choices)
    return Assignment(dict(zip(roles, best[1], strict=True)), best[2], choices)


def _assignments(options: Mapping[str, list[str]]) -> Iterable[tuple[str, ...]]:
    return islice(product(*options.values()), _MOST_ASSIGNMENTS)


def _subsets(models: tuple[str, ...]) -> Iterator[frozenset[str]]:
    """Sets of models to keep resident, larger ones first; a single model that takes turns has none to do so with."""
    distinct = list(dict.fromkeys(models))
    for size in range(max(0, len(distinct) - 2), -1, -1):
        for kept in combinations(distinct, size):
            yield frozenset(kept)


def _of(choices: Mapping[str, SizedOption], models: Iterable[str]) -> dict[str, SizedOption]:
    return {model: choices[model] for model in models}

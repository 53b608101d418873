"""Which models fit together in the memory of the devices, and which of them stay resident. Pure.

Models that are not resident take turns: one at a time is loaded, so only the largest of them counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice, product

from tourkit.hardware.machine import Hardware
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers
from tourkit.planning.limits import Limits
from tourkit.planning.memory import Estimate, Share, Sizing, estimate
from tourkit.planning.options import Option
from tourkit.planning.plan import CPU, Device

_RAM_KEPT = 0.10  # of all RAM: kept free for the system and the user's program
_VRAM_KEPT = 0.02  # of a GPU: kept free for its driver and fragmentation
_MOST_ASSIGNMENTS = 5000  # a set names a few models per role, so a usual one has fewer combinations


@dataclass(frozen=True)
class SizedOption:
    """An option with all its settings. `context`: tokens per sequence."""

    option: Option
    context: int
    slots: int
    cache_type: str
    gpu_layers: GpuLayers

    @cached_property
    def _estimate(self) -> Estimate:
        option = self.option
        sizing = Sizing(
            stack=option.stack,
            size=option.size,
            shape=option.shape,
            context=self.context,
            slots=self.slots,
            cache_type=self.cache_type,
            gpu_layers=self.gpu_layers,
            bits=option.bits,
            runtime=option.runtime,
        )
        return estimate(sizing)

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
    """The usable memory of each device. RAM is the last device. `kept`: bytes of free RAM that no placement may use."""

    devices: tuple[Device, ...]
    kept: int = 0

    @property
    def ram(self) -> int:
        return self.devices[-1].usable

    @property
    def gpus(self) -> dict[str, int]:
        """Usable bytes by the GPU's id."""
        return {device.id: device.usable for device in self.devices[:-1]}


@dataclass(frozen=True, slots=True)
class Assignment:
    """The model of each role, the models that stay in memory, and all models that fit alone, at their smallest."""

    models: dict[str, str]
    resident: frozenset[str]
    smallest: dict[str, SizedOption]


def budget_of(hardware: Hardware, limits: Limits) -> Budget:
    """Return the usable memory of each device: what is free now, less a margin, within the limits.

    If the GPU shares the machine's memory (metal), RAM gets what the GPU and the reserve leave.
    """
    devices = []
    kept = int(hardware.ram * _RAM_KEPT)
    ram = hardware.ram - kept
    for gpu in hardware.gpus:
        usable = limits.of_gpu(min(gpu.free, int(gpu.total * (1 - _VRAM_KEPT))))
        devices.append(Device(gpu.id, gpu.name, gpu.total, usable))
        if gpu.runtime == "metal":
            ram = max(0, ram - usable - limits.reserve)
    if hardware.ram_free is not None:
        kept = max(0, min(kept, hardware.ram_free - ram))
        ram = min(ram, hardware.ram_free)
    if not hardware.gpus:
        ram = max(0, ram - limits.reserve)
    return Budget((*devices, Device(CPU, "RAM", hardware.ram, ram)), kept)


def at_smallest(option: Option, context: int, slots: int) -> SizedOption:
    """Return the option with its smallest KV cache, for `slots` sequences of at most `context` tokens."""
    layers = ALL_LAYERS if option.on_gpu else NO_LAYERS
    return SizedOption(option, min(context, option.max_context), slots, option.cache_types[0], layers)


def fits_alone(sized: SizedOption, budget: Budget) -> bool:
    model_id = sized.option.model
    return pack({model_id: sized}, frozenset([model_id]), budget) is not None


def pack(sized: Mapping[str, SizedOption], resident: frozenset[str], budget: Budget) -> dict[str, str] | None:
    """Return a device for each model; None if they do not fit. All models that take turns use one GPU."""
    turns = [id_ for id_ in sized if id_ not in resident]
    ram = sum(sized[id_].ram.total for id_ in sized if id_ in resident)
    if ram + max((sized[id_].ram.total for id_ in turns), default=0) > budget.ram:
        return None
    left = budget.gpus
    where = dict.fromkeys(sized, CPU)
    on_gpu = [id_ for id_ in sized if sized[id_].gpu.total]
    if on_gpu and not left:
        return None
    waiting = [id_ for id_ in on_gpu if id_ in turns]
    if waiting:
        largest = max(left, key=lambda id_: left[id_])
        left[largest] -= max(sized[id_].gpu.total for id_ in waiting)
        where |= dict.fromkeys(waiting, largest)
    for id_ in sorted((id_ for id_ in on_gpu if id_ not in turns), key=lambda id_: -sized[id_].gpu.total):
        need = sized[id_].gpu.total
        tight = min((gpu for gpu in left if left[gpu] >= need), key=lambda gpu: left[gpu], default=None)
        if tight is None:
            return None
        left[tight] -= need
        where[id_] = tight
    return where if all(size >= 0 for size in left.values()) else None


def assign(named: Mapping[str, list[str]], smallest: dict[str, SizedOption], budget: Budget) -> Assignment:
    """Choose a model for each role from those `named` for it, and the models that stay resident.

    Prefer the most resident roles, then the fewest models that take turns, then the models named first, role by role.
    """
    for models in _combinations(named):
        if pack(_of(smallest, models), frozenset(models), budget) is not None:
            return Assignment(dict(zip(named, models, strict=True)), frozenset(models), smallest)
    best: tuple[tuple[int, int], tuple[str, ...], frozenset[str]] | None = None
    for models in _combinations(named):
        for resident in _subsets(models):
            staying = sum(model in resident for model in models)
            score = (staying, -len(set(models) - resident))
            if (best is None or score > best[0]) and pack(_of(smallest, models), resident, budget) is not None:
                best = score, models, resident
    if best is None:
        return Assignment({}, frozenset(), smallest)
    return Assignment(dict(zip(named, best[1], strict=True)), best[2], smallest)


def _combinations(named: Mapping[str, list[str]]) -> Iterable[tuple[str, ...]]:
    """Return the combinations of one model per role, the models named first at the start."""
    return islice(product(*named.values()), _MOST_ASSIGNMENTS)


def _subsets(models: tuple[str, ...]) -> Iterator[frozenset[str]]:
    """Yield sets of models to keep resident, larger sets first. At least two models take turns: one alone cannot."""
    distinct = list(dict.fromkeys(models))
    for size in range(max(0, len(distinct) - 2), -1, -1):
        for kept in combinations(distinct, size):
            yield frozenset(kept)


def _of(sized: Mapping[str, SizedOption], models: Iterable[str]) -> dict[str, SizedOption]:
    return {model: sized[model] for model in models}

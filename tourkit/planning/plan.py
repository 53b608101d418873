"""What planning decides: which variant is loaded for which roles, on what, with how much memory. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.launch import Launch
from tourkit.planning.options import PassedOver

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes a placement takes of one device, which is "cpu" for RAM or a GPU's id."""

    device: str
    weights: int
    cache: int
    overhead: int
    total: int


@dataclass(frozen=True, slots=True)
class Placement:
    """One variant to load, for one or more roles. The paths of `launch` are relative to the bundle until it is served.

    `device`: "cpu", or the GPU's id as CUDA_VISIBLE_DEVICES and its like take it. `resident` False: it takes turns with
    others that do not fit beside it. `fallbacks`: what to load instead, in order, when this cannot be loaded; they have
    none of their own. `size`: bytes of weights.
    """

    roles: tuple[str, ...]
    launch: Launch
    device: str = CPU
    resident: bool = True
    size: int = 0
    memory: tuple[Memory, ...] = ()
    numbers_from: str = ""
    fallbacks: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """`usable` bytes of `total`; `used` by what is resident and the largest of those that take turns."""

    id: str
    name: str
    total: int
    usable: int
    used: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load. `unfilled`: roles without a usable variant. `notes`: a line for what is not as the set would have
    it. `passed_over`: every other variant of the models in question, and why."""

    placements: tuple[Placement, ...]
    notes: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()
    unfilled: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    threads: int = 0

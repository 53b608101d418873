"""A plan: which variant is loaded for which roles, on which device, with how much memory. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.launch import Launch
from tourkit.planning.options import PassedOver

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes that a placement takes on one device: "cpu" for RAM, or a GPU's id."""

    device: str
    weights: int
    cache: int
    overhead: int
    total: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a placement is foretold to be; None for what is not known.

    `one`: tokens a second of a client that is alone. `all`: of all slots together. `prompt`: tokens a second at which a
    prompt is computed. `load`: seconds until it can answer.
    """

    one: float | None = None
    all: float | None = None
    prompt: float | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """One variant to load, for one or more roles. The paths of `launch` are relative to the bundle until it is served.

    `device`: "cpu", or the GPU's id as CUDA_VISIBLE_DEVICES and similar variables take it. `resident`: False if it
    takes turns with models that do not fit beside it. `fallbacks`: what to load instead, in order, if this cannot be
    loaded; a fallback has no fallbacks itself. `size`: bytes of weights.
    """

    roles: tuple[str, ...]
    launch: Launch
    device: str = CPU
    resident: bool = True
    size: int = 0
    memory: tuple[Memory, ...] = ()
    numbers_from: str = ""
    speed: Speed = Speed()
    fallbacks: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """One device, in bytes. `used`: by all resident placements and the largest of those that take turns."""

    id: str
    name: str
    total: int
    usable: int
    used: int = 0


@dataclass(frozen=True, slots=True)
class PromptCache:
    """RAM for earlier prompts. `most`: bytes of all loaded models together. `left`: bytes that the placements leave.

    `tokens`: how many tokens of each model fit at least. `asked`: as `Limits.prompt_cache`.
    """

    most: int
    left: int
    tokens: int
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load.

    `unfilled`: a line for each role without a usable variant. `notes`: a line for each difference from what the set
    prefers. `passed_over`: every other variant of the named models, and why it is not used. `prompt_cache`: None if no
    model can use one.
    """

    placements: tuple[Placement, ...]
    notes: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()
    unfilled: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    threads: int = 0
    prompt_cache: PromptCache | None = None

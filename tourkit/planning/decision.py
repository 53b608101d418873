"""What the planner decides about and what it decided, as the steps after it read them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tourkit.planning.options import Option, PassedOver
from tourkit.planning.packing import Assignment, Budget, SizedOption


@dataclass(frozen=True, slots=True)
class Offer:
    """`wanted`: the models named for each role, the preferred first. By model: its `options`, best first, and the
    variants that were `refused` because nothing here runs them. A model that the bundle does not have is in neither."""

    wanted: Mapping[str, tuple[str, ...]]
    options: Mapping[str, list[Option]]
    refused: Mapping[str, list[PassedOver]]
    budget: Budget


@dataclass(frozen=True, slots=True)
class Floor:
    """What every model gets at least: `slots` sequences of `context` tokens, or of as many as the model can."""

    context: int
    slots: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`floor`: where the assignment was made. By model in use: `sized`, with the memory that was left used too, and
    `devices`, "cpu" or a GPU's id. `most_slots`: what each would get if there were room."""

    offer: Offer
    floor: Floor
    assignment: Assignment
    sized: Mapping[str, SizedOption]
    devices: Mapping[str, str]
    most_slots: int


USUAL = Floor(4096, 4)

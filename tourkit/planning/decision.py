"""The planner's choices and its decision, for the later steps that read them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tourkit.planning.options import Option, PassedOver
from tourkit.planning.packing import Assignment, Budget, SizedOption


@dataclass(frozen=True, slots=True)
class Offer:
    """What the planner can choose from. `wanted`: the models named for each role, the preferred one first.

    By model: its `options`, best first, and the variants that were `refused` because nothing here runs them. A model
    that the bundle does not have is in neither.
    `given`: how messages name the bundle, manifest or file.
    """

    wanted: Mapping[str, tuple[str, ...]]
    options: Mapping[str, list[Option]]
    refused: Mapping[str, list[PassedOver]]
    budget: Budget
    given: str


@dataclass(frozen=True, slots=True)
class Floor:
    """The minimum for every model: `slots` sequences of `context` tokens, or of the model's own maximum if smaller."""

    context: int
    slots: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What the planner decided. `floor`: the minimum that the assignment is made for.

    By model in use: `sized`, its option after the remaining memory was used too, and `devices`, "cpu" or a GPU's id.
    `most_slots`: the slots that each model gets if there is enough memory. `context`: the tokens of a sequence that the
    user asked for; None for as many as fit.
    """

    offer: Offer
    floor: Floor
    assignment: Assignment
    sized: Mapping[str, SizedOption]
    devices: Mapping[str, str]
    most_slots: int
    context: int | None


USUAL = Floor(4096, 4)

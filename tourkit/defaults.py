"""What a request gets if it does not say otherwise: sampling and thinking, by role. Plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling settings that one source states. None: the source does not state this setting.

    The meaning and the ranges are those of the fields of a request (docs/http-api.md).
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


UNSTATED = Sampling()
# llama.cpp's own defaults (`common_params_sampling` in its common.h). Used for what no other source states.
FALLBACK = Sampling(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)
FALLBACK_SOURCE = "llama.cpp's default"


@dataclass(frozen=True, slots=True)
class RoleDefaults:
    """What a request for one role gets if it does not say otherwise. `role`: "" for every other name of the model.

    `thinking`: None leaves it to the model's template. `effort`: of thinking, "" for none stated. `thinking_budget`: in
    tokens, None for no limit. `sources`: the name of a sampling setting, and who states it.
    """

    role: str
    thinking: bool | None = None
    effort: str = ""
    thinking_budget: int | None = None
    sampling: Sampling = UNSTATED
    sources: tuple[tuple[str, str], ...] = ()


def stated(sampling: Sampling) -> dict[str, float]:
    """Return the settings that a source states, by name."""
    return {name: value for name, value in asdict(sampling).items() if value is not None}


def first_stated(sources: Iterable[tuple[str, Sampling]]) -> tuple[Sampling, tuple[tuple[str, str], ...]]:
    """Return each setting as the first source states it, and the name of this source. `sources`: the best one first.

    Settings that no source states are those of `FALLBACK`.
    """
    chosen: dict[str, tuple[float, str]] = {}
    for source, sampling in (*sources, (FALLBACK_SOURCE, FALLBACK)):
        for name, value in stated(sampling).items():
            chosen.setdefault(name, (value, source))
    values: dict[str, Any] = {name: value for name, (value, _) in chosen.items()}
    return Sampling(**values), tuple((name, source) for name, (_, source) in chosen.items())


def defaults_of(rows: Iterable[RoleDefaults], name: str) -> RoleDefaults:
    """Return the defaults for a role, or for another name of the model, with every sampling setting filled in."""
    named = {row.role: row for row in rows}
    row = named.get(name) or named.get("") or RoleDefaults(name)
    if row.sources:
        return row
    sampling, sources = first_stated([("the manifest", row.sampling)])
    return replace(row, sampling=sampling, sources=sources)

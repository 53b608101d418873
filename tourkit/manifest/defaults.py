"""The defaults that a set states for requests ([defaults.<role>]), as manifests and bundles write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tourkit.defaults import RoleDefaults, Sampling, stated

_THINKING_OFF = "none"  # the reasoning effort that turns thinking off
# TOML and JSON Schema take 1 for a number, and 40.0 for a whole number.
_SAMPLING: dict[str, Callable[[Any], Any]] = {"temperature": float, "top_p": float, "top_k": int, "min_p": float}


def sampling_of(raw: Mapping[str, Any]) -> Sampling:
    """Return the sampling settings of a table that the schema accepts. Other keys of the table are left alone."""
    return Sampling(**{name: kind(raw[name]) for name, kind in _SAMPLING.items() if name in raw})


def role_defaults(raw: Mapping[str, Mapping[str, Any]]) -> tuple[RoleDefaults, ...]:
    """Return the rows of a table [defaults], by role, that the schema accepts."""
    return tuple(
        RoleDefaults(
            role,
            thinking=table.get("thinking"),
            effort=table.get("reasoning_effort", ""),
            thinking_budget=table.get("thinking_budget"),
            sampling=sampling_of(table),
        )
        for role, table in sorted(raw.items())
    )


def raw_defaults(rows: tuple[RoleDefaults, ...]) -> dict[str, dict[str, Any]]:
    """Return the table that `role_defaults` reads."""
    raw = {
        row.role: {
            "thinking": row.thinking,
            "reasoning_effort": row.effort or None,
            "thinking_budget": row.thinking_budget,
            **stated(row.sampling),
        }
        for row in rows
    }
    return {role: {key: value for key, value in table.items() if value is not None} for role, table in raw.items()}


def problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the defaults in a set that the schema cannot express."""
    for role, table in raw.get("defaults", {}).items():
        where = f"defaults.{role}"
        if role not in raw["roles"]:
            yield f"{where}: [roles] has no {role!r}: name its models there, or remove this table"
        yield from (f"{where}.{problem}" for problem in sampling_problems(table))
        if table.get("thinking") and table.get("reasoning_effort") == _THINKING_OFF:
            yield f'{where}.reasoning_effort: "none" turns thinking off, but `thinking` is true: remove one of them'


def sampling_problems(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that are no numbers. JSON Schema accepts TOML's `nan` in every range."""
    for name in _SAMPLING:
        if name in table and math.isnan(table[name]):
            yield f"{name}: nan is no number: give a number, or leave the key out"

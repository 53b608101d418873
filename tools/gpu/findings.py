"""What a step finds, and how it is sent to check.py: one line of JSON for each finding."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

MEMORY, SPEED = "memory", "speed"  # the tables of the report
OK, FAILED, MEASURED, SKIPPED = "ok", "failed", "measured", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, measured or skipped.

    `state`: one of the four above. `why`: the reason of "failed" and "skipped". `table`: MEMORY or SPEED if it is a row
    of that table. `figures`: bytes, seconds or tokens per second, by name.
    """

    what: str
    state: str
    why: str = ""
    table: str = ""
    figures: dict[str, float | str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def text(self) -> str:
        """Return the finding as one line for people."""
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())
        return (
            f"{self.state}: {self.what}" + (f": {figures}" if figures else "") + (f" ({self.why})" if self.why else "")
        )


def of_json(line: str) -> Finding:
    """Read the line that `to_json` wrote."""
    return Finding(**json.loads(line))


def check(what: str, holds: bool, why: str = "", **figures: float | str) -> Finding:
    """Return whether something holds. `why`: what is wrong if it does not."""
    return Finding(what, OK, "", "", figures) if holds else Finding(what, FAILED, why, "", figures)


def measured(what: str, table: str = "", **figures: float | str) -> Finding:
    return Finding(what, MEASURED, "", table, figures)


def skipped(what: str, why: str) -> Finding:
    return Finding(what, SKIPPED, why)


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value / 2**20:,.0f} MiB" if abs(value) >= 2**24 else f"{value:.4g}"

"""What to start for a plan: its placements with the paths and options of this server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from tourkit.planning.plan import Placement, Plan


def placements_at(
    root: Path,
    plan: Plan,
    *,
    deterministic: bool = False,
    prefix_cache: Path | None = None,
    chat_templates: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Placement, ...]:
    """The placements of a plan over the bundle at `root`, their paths absolute. The options are those of Launch,
    templates by model."""
    kept = str(prefix_cache.resolve()) if prefix_cache is not None else ""

    def located(placement: Placement) -> Placement:
        launch = replace(
            placement.launch,
            path=str((root / placement.launch.path).resolve()),
            lora=tuple(str((root / path).resolve()) for path in placement.launch.lora),
            deterministic=deterministic,
            prefix_cache=kept,
            chat_template=chat_templates.get(placement.launch.model, ""),
        )
        return replace(placement, launch=launch, fallbacks=tuple(map(located, placement.fallbacks)))

    return tuple(map(located, plan.placements))

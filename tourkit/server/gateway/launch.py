"""From a bundle to a running gateway: plan for this machine, and serve what the plan places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from tourkit import net
from tourkit.bundle.index import read_index
from tourkit.hardware import probe
from tourkit.planning import planner, sources
from tourkit.planning.plan import Placement, Plan
from tourkit.server.gateway import app
from tourkit.server.gateway.app import GatewayOptions


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """What to serve of a bundle, and how. `roles` () means all of them.

    `context` in tokens a sequence and `slots` in sequences at once; None leaves them to the plan. `deterministic` and
    `prefix_cache` are those of Launch; they exclude each other.
    """

    roles: tuple[str, ...] = ()
    context: int | None = None
    slots: int | None = None
    deterministic: bool = False
    prefix_cache: Path | None = None


def serve_bundle(
    bundle: Path,
    options: BundleOptions,
    gateway: GatewayOptions,
    on_ready: Callable[[str, Plan], None],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
) -> None:
    """Plan for this machine, and serve the plan on `host` and `port` (0: a free one) until interrupted.

    `on_ready` gets the URL and the plan once requests are accepted; `gateway.say` hears of what is not as asked for.
    Raises UsageError, NotSo (no bundle, or it fills no role here) and LocalError (the address cannot be had).
    """
    index = read_index(bundle)
    shapes = sources.shapes_of_bundle(bundle, index)
    machine = probe.probe()
    made = planner.plan(
        index, machine, roles=options.roles, context=options.context, slots=options.slots, shapes=shapes
    )
    for line in (*made.notes, *made.unfilled):
        gateway.say(line)
    if options.deterministic and any(not placement.launch.gpu_layers.is_none for placement in made.placements):
        gateway.say("--deterministic holds on a CPU only: on a GPU a near-tie may still fall either way")
    placements = placements_at(
        bundle,
        made,
        deterministic=options.deterministic,
        prefix_cache=options.prefix_cache,
        chat_templates={model.id: model.chat_template for model in index.models if model.chat_template},
    )
    app.serve(placements, gateway, net.listen(host, port), lambda url: on_ready(url, made))


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

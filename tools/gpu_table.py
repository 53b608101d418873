"""Write the table of what fits which GPU into docs/plan.md: `python tools/gpu_table.py docs/plan.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.manifest import lock, manifest
from tourkit.manifest.models import ROLES
from tourkit.planning import sources
from tourkit.planning.plan import Placement, Plan
from tourkit.planning.planner import plan
from tourkit.units import GIB, size_text

SET = "tour-20gb"
BEGIN, END = "<!-- GPUs: written by `make docs` -->", "<!-- GPUs: end -->"
_RAM, _THREADS = 32 * GIB, 8
_CONTEXT = GIB // 2  # of a GPU: CUDA's own context takes some hundred MiB while the free memory is read


@dataclass(frozen=True, slots=True)
class Card:
    """A size that cards are sold with. `gib`: what CUDA reports on `example`, the smallest that was found."""

    sold_as: str
    gib: float
    example: str


CARDS = (
    Card("8 GB", 7.76, "RTX 3070"),
    Card("12 GB", 11.75, "RTX 3060"),
    Card("16 GB", 14.56, "Tesla T4"),
    Card("20 GB", 19.5, "slice 2g.20gb of an A100 80 GB"),
    Card("24 GB", 22.03, "L4"),
    Card("40 GB", 39.25, "slice 3g.40gb of an A100 80 GB"),
)


def render() -> str:
    """Return the table, one row per card."""
    found = manifest.load(SET)
    roles = sorted(found.roles, key=ROLES.index)
    heads = ["sold as", "real size", *roles, "planned, of usable"]
    rows = [_row(card, _plan_for(card), roles) for card in CARDS]
    lines = [heads, ["---"] * len(heads), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plan_for(card: Card) -> Plan:
    """Return the plan for a machine with this card, idle, and llama.cpp with CUDA."""
    found = manifest.load(SET)
    index = sources.index_of(found, lock.read(lock.path_of(found.path)))
    size = int(card.gib * GIB)
    gpu = Gpu("0", card.example, "cuda", size, size - _CONTEXT)
    machine = Hardware(_THREADS, _RAM, gpus=(gpu,), stacks=(InstalledStack("llama_cpp", gpu="cuda"),))
    return plan(index, machine, shapes=sources.shapes_of_manifest(found))


def _row(card: Card, made: Plan, roles: list[str]) -> Iterator[str]:
    yield card.sold_as
    yield f"{card.gib} GiB, {card.example}"
    by_role = {role: placement for placement in made.placements for role in placement.roles}
    for role in roles:
        yield _cell(role, by_role[role]) if role in by_role else "does not fit"
    yield f"{size_text(made.devices[0].used)} of {size_text(made.devices[0].usable)}"


def _cell(role: str, placement: Placement) -> str:
    first, launch = placement.roles[0], placement.launch
    if role != first:
        return f"shares the model of {first}"
    parts = [f"`{launch.model}` {launch.quant}", f"{launch.slots} x {launch.context} {launch.cache_type}"]
    if launch.gpu_layers.is_none:
        parts.append("on the CPU")
    elif launch.gpu_layers.is_part:
        parts.append(f"{launch.gpu_layers.count} layers on the GPU")
    if not placement.resident:
        parts.append("in turn")
    return ", ".join(parts)


def page(text: str) -> str:
    """Return docs/plan.md with a new table."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"docs/plan.md: no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{render()}{END}{after}"


if __name__ == "__main__":
    written = Path(sys.argv[1])
    written.write_text(page(written.read_text(encoding="utf-8")), encoding="utf-8")

"""Formats a plan as text and as JSON: the machine, the memory table, and why other variants are passed over.

Also formats what a server prints when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tourkit.planning import explain
from tourkit.planning.plan import Speed
from tourkit.units import counted, seconds_text, size_text

if TYPE_CHECKING:
    from tourkit.hardware.machine import Hardware
    from tourkit.net import Urls
    from tourkit.planning.plan import Placement, Plan

_HEAD = ("roles", "model", "stack", "sequences", "on", "weights", "KV cache", "other", "total")
_NUMBERS_FROM = 5
_SPEED_HEAD = ("foretold", "one client", "all slots", "prompts", "until ready")


def machine(hardware: Hardware) -> str:
    """Return one line: threads, RAM, GPUs and stacks."""
    free = "" if hardware.ram_free is None else f" ({size_text(hardware.ram_free)} free)"
    read = f", read at {hardware.bandwidth[-1].rate / 1e9:.1f} GB/s" if hardware.bandwidth else ""
    parts = [counted(hardware.threads, "thread"), f"{size_text(hardware.ram)} of RAM{free}{read}"]
    for gpu in hardware.gpus:
        parts.append(f"{gpu.name} ({gpu.runtime}), {size_text(gpu.free)} of {size_text(gpu.total)} free")
    if hardware.driver:
        parts.append(f"driver for CUDA {hardware.driver}")
    if not hardware.gpus:
        parts.append("no GPU")
    for stack in hardware.stacks:
        runtime = f" with {stack.gpu}" if stack.gpu else ""
        parts.append(f"{stack.name} {stack.version}".rstrip() + runtime)
    return "; ".join(parts if hardware.stacks else [*parts, "no stack installed"])


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for scripts. The settings of a placement are on the same level as its roles and device."""
    return asdict(plan) | {"placements": [_placement_json(placement) for placement in plan.placements]}


def _placement_json(placement: Placement) -> dict[str, Any]:
    """Return a placement. `gpu_layers`: -1 for all. `context`: tokens per sequence.

    `size`, `memory` and `prompt_cache`: bytes. `speed`: tokens a second, and seconds for `load`; null if not known.
    """
    launch = placement.launch
    return {
        "roles": placement.roles,
        "model": launch.model,
        "quant": launch.quant,
        "stack": launch.stack,
        "path": launch.path,
        "size": placement.size,
        "context": launch.context,
        "slots": launch.slots,
        "threads": launch.threads,
        "device": placement.device,
        "gpu_layers": -1 if launch.gpu_layers.count is None else launch.gpu_layers.count,
        "cache_type": launch.cache_type,
        "prompt_cache": launch.prompt_cache,
        "resident": placement.resident,
        "memory": [asdict(memory) for memory in placement.memory],
        "numbers_from": placement.numbers_from,
        "speed": asdict(placement.speed),
        "lora": launch.lora,
        "fallbacks": [_placement_json(fallback) for fallback in placement.fallbacks],
    }


def lines(plan: Plan) -> Iterator[str]:
    """Yield the table with a line for each placement and device, the speeds, notes, and what is passed over."""
    *gpus, ram = [device.id for device in plan.devices]
    names = {id_: "GPU" if len(gpus) == 1 else f"GPU {number}" for number, id_ in enumerate(gpus)} | {ram: "RAM"}
    yield from _table([_HEAD, *(row for each in plan.placements for row in _rows(each, names))], _NUMBERS_FROM)
    yield ""
    if any(each.speed != Speed() for each in plan.placements):
        yield from _table([_SPEED_HEAD, *map(_speed_row, plan.placements)], numbers_from=1)
        yield ""
    for device in plan.devices:
        yield f"{names[device.id]}: {size_text(device.used)} of {size_text(device.usable)} usable"
    if plan.prompt_cache is not None:
        yield explain.prompt_cache(plan.prompt_cache)
    yield from explain.speeds(plan.placements)
    yield from plan.notes
    for placement in plan.placements:
        if placement.fallbacks:
            chain = ", then ".join(_named(fallback, names) for fallback in placement.fallbacks)
            yield f"{', '.join(placement.roles)}: if loading fails: {chain}"
    if plan.passed_over:
        yield from ("", "Passed over:")
        grouped: dict[tuple[str, str], list[str]] = {}
        for each in plan.passed_over:
            grouped.setdefault((each.model, each.reason), []).append(each.quant)
        for (model, reason), quants in grouped.items():
            yield f"  {model} {', '.join(quants)}: {reason}"


def serving(urls: Urls, plan: Plan, *, offline: bool) -> Iterator[str]:
    """Lines about a server that has started: what answers each role, and the addresses."""
    for placement in plan.placements:
        in_turn = "" if placement.resident else ", in turn"
        launch = placement.launch
        yield f"{', '.join(placement.roles)}: {launch.model} {launch.quant} on {launch.stack}{in_turn}"
    yield f"tourkit serves at {urls.here}/v1" + (" (offline)" if offline else "")
    if urls.elsewhere:
        yield f"from other machines: {', '.join(f'{url}/v1' for url in urls.elsewhere)}"


def _rows(placement: Placement, names: dict[str, str]) -> Iterator[tuple[str, ...]]:
    first: tuple[str, ...] = (
        "+".join(placement.roles) + ("" if placement.resident else " (in turn)"),
        f"{placement.launch.model} {placement.launch.quant}",
        placement.launch.stack,
        f"{placement.launch.slots} x {placement.launch.context} {placement.launch.cache_type}",
    )
    for memory in placement.memory:
        numbers = (memory.weights, memory.cache, memory.overhead, memory.total)
        yield *first, names[memory.device], *(size_text(number) for number in numbers)
        first = ("", "", "", "")


def _speed_row(placement: Placement) -> tuple[str, ...]:
    speed = placement.speed
    rates = (speed.one, speed.all, speed.prompt)
    load = "-" if speed.load is None else seconds_text(speed.load)
    return "+".join(placement.roles), *("-" if rate is None else f"{_rate_text(rate)} tokens/s" for rate in rates), load


def _rate_text(rate: float) -> str:
    return f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}"


def _table(rows: list[tuple[str, ...]], numbers_from: int) -> Iterator[str]:
    """Yield a line for each row. The column `numbers_from` and those after it are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if column >= numbers_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _named(placement: Placement, names: dict[str, str]) -> str:
    return f"{placement.launch.model} {placement.launch.quant} on {placement.launch.stack}, {names[placement.device]}"

"""Formats a plan as text and as JSON: the machine, the memory table, and why other variants are passed over.

Also formats what a server prints when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tourkit.planning import explain
from tourkit.units import counted, size_text

if TYPE_CHECKING:
    from tourkit.hardware.machine import Hardware
    from tourkit.net import Urls
    from tourkit.planning.plan import Placement, Plan

_HEAD = ("roles", "model", "stack", "sequences", "on", "weights", "KV cache", "other", "total")
_NUMBERS_FROM = 5  # this column and those after it are right-aligned


def machine(hardware: Hardware) -> str:
    """Return one line: threads, RAM, GPUs and stacks."""
    free = "" if hardware.ram_free is None else f" ({size_text(hardware.ram_free)} free)"
    parts = [counted(hardware.threads, "thread"), f"{size_text(hardware.ram)} of RAM{free}"]
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

    `size`, `memory` and `prompt_cache`: bytes.
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
        "lora": launch.lora,
        "fallbacks": [_placement_json(fallback) for fallback in placement.fallbacks],
    }


def lines(plan: Plan) -> Iterator[str]:
    """Yield the table with a line for each placement and device, then notes, then what is passed over."""
    *gpus, ram = [device.id for device in plan.devices]
    names = {id_: "GPU" if len(gpus) == 1 else f"GPU {number}" for number, id_ in enumerate(gpus)} | {ram: "RAM"}
    rows = [_HEAD, *(row for placement in plan.placements for row in _rows(placement, names))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        cells = [
            cell.rjust(width) if column >= _NUMBERS_FROM else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    yield ""
    for device in plan.devices:
        yield f"{names[device.id]}: {size_text(device.used)} of {size_text(device.usable)} usable"
    if plan.prompt_cache is not None:
        yield explain.prompt_cache(plan.prompt_cache)
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


def _named(placement: Placement, names: dict[str, str]) -> str:
    return f"{placement.launch.model} {placement.launch.quant} on {placement.launch.stack}, {names[placement.device]}"

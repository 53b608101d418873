"""All checks of `tourkit doctor`, in the order in which they are printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.bundle.index import Index, chat_templates_of
from tourkit.checks import bundle as bundles
from tourkit.checks import guard_trial, machine, speed, stack_trial, system, wheels
from tourkit.checks.findings import Finding, finding_json, ok
from tourkit.hardware.machine_file import machine_json

if TYPE_CHECKING:
    from tourkit.hardware.machine import Hardware
    from tourkit.planning.plan import Plan


def examine(hardware: Hardware, bundle: Path | None, *, load: bool) -> Iterator[Finding]:
    """Yield a finding for each check as soon as it is made.

    `bundle`: None if there is no bundle to check. `load`: load every planned variant and fallback, which takes minutes.
    Processes that try the stacks and the offline guard run beside the first checks, because imports take seconds.
    """
    with ThreadPoolExecutor() as pool:
        trials = {stack.name: pool.submit(stack_trial.try_stack, stack.name) for stack in hardware.stacks}
        guard = pool.submit(guard_trial.answer)
        yield from machine.hardware_findings(hardware)
        yield system.port_finding()
        yield from system.folder_findings()
        yield from machine.stack_findings(hardware, {name: trial.result() for name, trial in trials.items()})
        yield guard_trial.finding(guard.result())
    if bundle is None:
        yield ok("bundle", "not checked; `tourkit doctor --bundle DIR` checks one")
        return
    index, found = bundles.index_finding(bundle)
    yield found
    if index is not None:
        yield from _of_bundle(hardware, bundle, index, load=load)


def report(hardware: Hardware, findings: list[Finding]) -> dict[str, Any]:
    """Return the findings for scripts, with the machine as `--machine FILE` takes it."""
    return {"machine": machine_json(hardware), "checks": [finding_json(finding) for finding in findings]}


def _of_bundle(hardware: Hardware, bundle: Path, index: Index, *, load: bool) -> Iterator[Finding]:
    yield bundles.files_finding(bundle)
    yield from wheels.findings(wheels.targets_of(file.path for file in index.files), hardware)
    yield system.exec_finding("exec on drive", bundle)
    yield from bundles.architecture_findings(bundle, index)
    plan, found = bundles.plan_findings(bundle, index, hardware)
    yield from found
    sizes = {file.path: file.size for file in index.files if file.path.startswith("models/")}
    there = [path for path in sizes if (bundle / path).is_file()]  # a missing file has a finding of its own
    largest = max(there, key=sizes.__getitem__, default=None)
    if largest is not None:
        planned = sum(placement.size for placement in plan.placements) if plan is not None else sum(sizes.values())
        yield speed.measured(bundle / largest, planned)
    yield from bundles.fetch_findings(bundle, index, os.environ)
    if load and plan is not None:
        yield from _loads(hardware, bundle, index, plan)


def _loads(hardware: Hardware, bundle: Path, index: Index, plan: Plan) -> Iterator[Finding]:
    from tourkit.checks import loading
    from tourkit.server.gateway.launch import has_one_gpu, placements_at

    templates = chat_templates_of(index)
    placements = placements_at(bundle.joinpath, plan, chat_templates=templates, assets=index.assets)
    yield from loading.findings(placements, only_gpu=has_one_gpu(hardware))

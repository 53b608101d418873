"""The whole rehearsal: the venue on this desk, from the bare bundle to the answers of every template."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tourkit import __version__
from tourkit.bundle.index import Index, read_index
from tourkit.checks import answers, carried, installed, samples, steps, wheels
from tourkit.checks import desk as desks
from tourkit.checks.answers import Server
from tourkit.checks.desk import Desk
from tourkit.checks.findings import Finding, ok
from tourkit.checks.installed import DOCTOR, INSTALL, PLAN, Planned
from tourkit.checks.steps import Result, Step
from tourkit.checks.venue import Venue, planned_machine, served_machine, shortages
from tourkit.hardware.machine import Hardware


def rehearse(bundle: Path, venue: Venue) -> Iterator[Step]:
    """Yield each step when it has ended. This process stays without a network afterwards, if the system allows that.

    Raises UsageError or NotSo if there is no bundle, LocalError if the temporary folder cannot be written.
    """
    index = read_index(bundle)
    with desks.desk(bundle, venue) as desk:
        rehearsal = _Rehearsal(desk, index)
        yield from rehearsal.steps()


def report(bundle: Path, venue: Venue, taken: Sequence[Step], seconds: float) -> dict[str, Any]:
    """Return the report for scripts."""
    failed = steps.failed_names(taken)
    return {
        "verdict": "no-go" if failed else "go",
        "failed": failed,
        "bundle": str(bundle.resolve()),
        "tourkit": __version__,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "venue": asdict(venue),
        "steps": steps.steps_json(taken),
    }


def report_path(bundle: Path) -> Path:
    """Return where the report is kept: beside the bundle, since a file inside it would be an extra file."""
    root = bundle.resolve()
    return root.with_name(f"{root.name}-rehearsal.json")


def _remark(finding: Finding) -> Step:
    """Return a step that took no time of its own."""
    return Step(finding, {}, 0.0, {})


class _Rehearsal:
    """The steps in their order. A step that needs a failed one is not run."""

    def __init__(self, desk: Desk, index: Index) -> None:
        self._desk = desk
        self._index = index
        self._hardware: Hardware | None = None
        self._planned: Planned | None = None

    def steps(self) -> Iterator[Step]:
        desk = self._desk
        yield from map(_remark, desk.conditions)
        files = list(self._files())
        yield from files
        targets = tuple(wheels.targets_of(file.path for file in self._index.files))
        machine = desk.venue.machine
        if machine is not None:
            yield self._take("wheels for the venue", lambda: installed.targets(targets, machine))
        if carried.WHEELS in steps.failed_names(files):
            yield steps.not_run(INSTALL, carried.WHEELS)
            return
        step = self._take(INSTALL, lambda: installed.install(desk))
        yield step
        if not step.failed:
            yield from self._installed()

    def _take(self, name: str, work: Callable[[], Result]) -> Step:
        return steps.take(name, work, self._desk.attempts)

    def _files(self) -> Iterator[Step]:
        """Read every byte of the bundle. Then each kind of file is a step."""
        found: list[Finding] = []

        def read() -> Result:
            found.extend(carried.findings(self._desk.bundle, self._index))
            return Result(ok("bundle", f"{self._index.name}: every byte was read"))

        yield self._take("bundle", read)
        yield from map(_remark, found)

    def _installed(self) -> Iterator[Step]:
        """Yield the steps of the installed tourkit."""
        desk = self._desk
        yield self._take(DOCTOR, self._doctor)
        hardware = self._hardware
        if hardware is None:
            yield steps.not_run(PLAN, DOCTOR)
            return
        yield from map(_remark, shortages(desk.venue, hardware))
        machine = planned_machine(desk.venue, hardware)
        yield self._take(PLAN, lambda: self._plan(machine))
        planned = self._planned
        if planned is None:
            yield steps.not_run(answers.SERVE, PLAN)
            return
        environment = desk.environment
        yield self._take("run-time files", lambda: carried.fetched(desk.bundle, self._index, environment, planned.used))
        yield from self._served(planned, served_machine(desk.venue, hardware))

    def _doctor(self) -> Result:
        result, self._hardware = installed.doctor(self._desk)
        return result

    def _plan(self, machine: Hardware) -> Result:
        result, self._planned = installed.plan(self._desk, machine)
        return result

    def _served(self, planned: Planned, machine: Hardware) -> Iterator[Step]:
        """Start the server and yield its steps, then those of the templates."""
        desk = self._desk
        servers: list[Server] = []
        in_turn: dict[str, bool] = {}
        with ExitStack() as stack:

            def serve() -> Result:
                answers.forget(desk.bundle / "models")
                started = time.perf_counter()
                path = installed.write_machine(desk, "here.json", machine)
                servers.append(stack.enter_context(answers.serving(desk, path)))
                result = answers.cold_start(servers[0], started, planned.roles)
                in_turn.update(answers.in_turn(servers[0].health()))
                return result

            step = self._take(answers.SERVE, serve)
            yield step
            if step.failed:
                for template in samples.templates(desk.bundle):
                    yield steps.not_run(samples.step_of(template), answers.SERVE)
                return
            yield from self._answers(servers[0], in_turn)
            for template in samples.templates(desk.bundle):
                name = samples.step_of(template)
                yield self._take(name, partial(samples.run, desk, template, servers[0].url))

    def _answers(self, server: Server, in_turn: dict[str, bool]) -> Iterator[Step]:
        waits: dict[str, float] = {}
        for role, swaps in in_turn.items():
            step = self._take(f"role {role}", partial(answers.answer, server, role))
            yield step
            if swaps and "first_request_s" in step.figures:
                waits[role] = step.figures["first_request_s"]
        yield self._take(answers.SWAP, lambda: answers.swap(waits))

"""Steps of a rehearsal: the bundle's own installer into an empty place, then doctor and plan of what it installed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tourkit.checks import wheels
from tourkit.checks.desk import Desk
from tourkit.checks.findings import Status, failure, of_message, ok, warning
from tourkit.checks.steps import Result
from tourkit.checks.venue import size_option
from tourkit.errors import NotSo
from tourkit.fetch.wheels.target import Target
from tourkit.hardware.machine import Hardware
from tourkit.hardware.machine_file import machine_json, read_machine
from tourkit.units import counted

INSTALL, DOCTOR, PLAN = "install", "doctor", "plan"
# Doctor's checks that are steps of their own here.
_OWN_STEPS = ("bundle files", "plan", "fetched at run time")


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be served. `used`: each planned variant and fallback ("model quant") with its stack."""

    roles: tuple[str, ...]
    used: frozenset[tuple[str, str]]


def install(desk: Desk) -> Result:
    """Run install.sh of the bundle. It makes the virtual environment of the desk."""
    environment = {"PYTHON": desk.venue.python} if desk.venue.python else {}
    command = ["sh", str(desk.bundle / "install.sh"), str(desk.virtual_environment)]
    done = desk.run(command, **environment)
    if done.code != 0:
        return Result(of_message(Status.FAILURE, INSTALL, done.last_words))
    said = dict(re.findall(r"^(Python|Wheels): +(.+)$", done.output, re.MULTILINE))
    return Result(ok(INSTALL, f"{said.get('Wheels', 'wheels')} with {said.get('Python', 'Python')}"))


def targets(carried: tuple[Target, ...], machine: Hardware) -> Result:
    """Return whether wheels for one of the `carried` targets fit the machine of --machine."""
    what = "wheels for the venue"
    reasons = {each.machine: wheels.refusal(each, machine) for each in carried}
    fitting = sorted({target for target, reason in reasons.items() if not reason})
    if fitting:
        return Result(ok(what, f"{', '.join(fitting)} fit the machine of --machine"))
    why = "; ".join(f"{target}: {reason}" for target, reason in sorted(reasons.items())) or "there are none"
    target = wheels.wanted_target(machine) or "TARGET"
    return Result(failure(what, f"none fit the machine of --machine ({why})", f"run `tourkit wheels {target}`"))


def doctor(desk: Desk) -> tuple[Result, Hardware]:
    """Run doctor as installed. Return its findings as one, and the machine. Raises NotSo if it gives no report."""
    done = desk.run(desk.tourkit("doctor", "--bundle", str(desk.bundle), "--json"))
    try:
        report = json.loads(done.output)
        checks: list[dict[str, str]] = [each for each in report["checks"] if each["what"] not in _OWN_STEPS]
    except (ValueError, KeyError, TypeError):
        raise NotSo(f"gives no report ({done.last_words}): run install.sh and doctor by hand") from None
    path = desk.folder / "machine.json"
    path.write_text(done.output, encoding="utf-8")
    return _summary(checks), read_machine(path)


def _summary(checks: list[dict[str, str]]) -> Result:
    named = {status: [each for each in checks if each["status"] == status] for status in Status}
    counts = ", ".join([f"{len(named[Status.OK])} ok", counted(len(named[Status.WARNING]), "warning")])
    for status, make in ((Status.FAILURE, failure), (Status.WARNING, warning)):
        if found := named[status]:
            details = "; ".join(f"{each['what']}: {each['detail']}" for each in found)
            return Result(make(DOCTOR, f"{counts}: {details}", found[0]["fix"]))
    return Result(ok(DOCTOR, counts))


def plan(desk: Desk, machine: Hardware) -> tuple[Result, Planned]:
    """Plan for the venue's machine. Raises NotSo if nothing can be planned."""
    path = write_machine(desk, "venue.json", machine)
    venue = desk.venue
    sizes = [("--vram", venue.vram), ("--ram", venue.ram)]
    given = [part for name, size in sizes if size is not None for part in (name, size_option(size))]
    given += [] if venue.threads is None else ["--threads", str(venue.threads)]
    done = desk.run(desk.tourkit("plan", "--bundle", str(desk.bundle), "--machine", str(path), *given, "--json"))
    try:
        made = json.loads(done.output)
        planned = _planned(made["placements"])
        unfilled, notes = list(made["unfilled"]), list(made["notes"])
    except (ValueError, KeyError, TypeError):
        raise NotSo(done.last_words) from None
    show = "`tourkit plan --bundle DIR` shows the reasons"
    if unfilled:
        return Result(failure(PLAN, "; ".join(unfilled), show)), planned
    text = "; ".join(_placement(each) for each in made["placements"])
    if notes:
        return Result(warning(PLAN, f"{text} ({'; '.join(notes)})", show)), planned
    return Result(ok(PLAN, text)), planned


def write_machine(desk: Desk, name: str, machine: Hardware) -> Path:
    """Write a machine file for --machine, and return its path."""
    path = desk.folder / name
    path.write_text(json.dumps(machine_json(machine)), encoding="utf-8")
    return path


def _placement(placed: dict[str, Any]) -> str:
    return f"{', '.join(placed['roles'])}: {placed['model']} {placed['quant']} on {placed['stack']}"


def _planned(placements: list[dict[str, Any]]) -> Planned:
    links = [link for placed in placements for link in (placed, *placed["fallbacks"])]
    roles = tuple(dict.fromkeys(role for each in placements for role in each["roles"]))
    return Planned(roles, frozenset((f"{link['model']} {link['quant']}", link["stack"]) for link in links))

"""Commands that check this machine and a bundle before the day."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tourkit.commands.output import SIZE, bundle_option, is_given, json_option, note, print_json, show
from tourkit.errors import NotSo, UsageError
from tourkit.files import write_atomic

if TYPE_CHECKING:
    from tourkit.checks.findings import Finding

_STATUS, _WHAT = 8, 20  # widths of the columns


@click.command()
@bundle_option
@click.option("--load", is_flag=True, help="Load every planned variant and fallback, and ask each for an answer.")
@json_option
def doctor(bundle: Path, load: bool, as_json: bool) -> None:
    """Check what works on this machine: hardware, stacks, folders, port, offline guard, and a bundle.

    Each line is ok, warning or failure, with the fix. The exit code is 1 if there is a failure. The output of --json is
    a machine file for `tourkit plan --machine`.

    \b
    Example: tourkit doctor
             tourkit doctor --bundle /media/usb/bundle --load
    """
    from tourkit.bundle.index import INDEX
    from tourkit.checks import doctor as checks
    from tourkit.checks.findings import failed, summary
    from tourkit.hardware import probe, rates

    chosen = is_given("bundle") or bool(os.environ.get("TOURKIT_BUNDLE")) or (bundle / INDEX).exists()
    if load and not chosen:
        raise UsageError("--load has no bundle to load from: give one with --bundle DIR")
    hardware = rates.with_rates(probe.probe(), None)
    findings = []
    for finding in checks.examine(hardware, bundle if chosen else None, load=load):
        findings.append(finding)
        if not as_json:
            show(line(finding))
    if as_json:
        print_json(checks.report(hardware, findings))
    else:
        show(summary(findings))
    if bad := failed(findings):
        names = ", ".join(dict.fromkeys(finding.what for finding in bad))
        raise NotSo(f"not ready, {names}: do what these lines say, then run `tourkit doctor` again")


@click.command()
@bundle_option
@click.option("--vram", type=SIZE, metavar="SIZE", help="GPU memory at the venue, for the planner; 0 for no GPU.")
@click.option("--ram", type=SIZE, metavar="SIZE", help="RAM at the venue; a cgroup holds everything to it if possible.")
@click.option("--cpus", type=click.IntRange(1), metavar="N", help="Processors at the venue; no others are used.")
@click.option("--python", default="", metavar="PYTHON", help="Python at the venue: 3.12, or the path of one.")
@click.option(
    "--machine",
    "machine_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The venue's machine, as `tourkit doctor --json` wrote it there. The other options come before it.",
)
@json_option
def rehearse(
    bundle: Path,
    vram: int | None,
    ram: int | None,
    cpus: int | None,
    python: str,
    machine_path: Path | None,
    as_json: bool,
) -> None:
    """Rehearse the venue on this machine: no network, an empty home, an installation from the bundle, all answers.

    Checks every byte, installs with the bundle's install.sh into a temporary folder, runs doctor, plans, serves every
    role, measures, and runs every template on two of its samples. Any attempt to reach another machine is a failure.
    Ends with go or no-go and the step that failed. The report is kept beside the bundle. Exit code 1 for no-go.

    \b
    Example: tourkit rehearse --bundle /media/usb/bundle
             tourkit rehearse --bundle /media/usb/bundle --vram 20GiB --ram 32GiB --cpus 8 --python 3.12
             tourkit rehearse --bundle /media/usb/bundle --machine venue.json
    """
    from tourkit.checks import rehearsal, steps, venue
    from tourkit.hardware.machine_file import read_machine

    machine = None if machine_path is None else read_machine(machine_path)
    wanted = venue.venue(vram, ram, cpus, python, machine)
    note("rehearse: reads every byte, installs, serves and asks: with large models this takes minutes")
    taken, start = [], time.perf_counter()
    for step in rehearsal.rehearse(bundle, wanted):
        taken.append(step)
        if not as_json:
            show(line(step.finding))
    seconds = time.perf_counter() - start
    report = rehearsal.report(bundle, wanted, taken, seconds)
    kept = _keep(rehearsal.report_path(bundle), report)
    if as_json:
        print_json(report)
    elif kept is not None:
        show(f"report: {kept}")
    verdict = steps.verdict(taken, seconds)
    if report["failed"]:
        raise NotSo(verdict)
    if not as_json:
        show(verdict)


def _keep(path: Path, report: dict[str, Any]) -> Path | None:
    """Write the report and return its path; None if the folder cannot be written."""
    try:
        write_atomic(path, f"{json.dumps(report, ensure_ascii=False, indent=2)}\n".encode())
    except OSError as exc:
        note(f"{path}: the report cannot be kept there ({exc.strerror}): use --json to print it")
        return None
    return path


def line(finding: Finding) -> str:
    """Return a finding as one line of text: status, what was checked, detail, and the fix."""
    fix = f": {finding.fix}" if finding.fix else ""
    return f"{finding.status:{_STATUS}} {finding.what:{_WHAT}} {finding.detail}{fix}"

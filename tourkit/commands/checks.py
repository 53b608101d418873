"""Commands that check this machine and a bundle before the day."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tourkit.commands.output import bundle_option, is_given, json_option, print_json
from tourkit.errors import NotSo, UsageError

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
    from tourkit.hardware import probe

    chosen = is_given("bundle") or bool(os.environ.get("TOURKIT_BUNDLE")) or (bundle / INDEX).exists()
    if load and not chosen:
        raise UsageError("--load has no bundle to load from: give one with --bundle DIR")
    hardware = probe.probe()
    findings = []
    for finding in checks.examine(hardware, bundle if chosen else None, load=load):
        findings.append(finding)
        if not as_json:
            click.echo(line(finding))
    if as_json:
        print_json(checks.report(hardware, findings))
    else:
        click.echo(summary(findings))
    if bad := failed(findings):
        names = ", ".join(dict.fromkeys(finding.what for finding in bad))
        raise NotSo(f"not ready, {names}: do what these lines say, then run `tourkit doctor` again")


def line(finding: Finding) -> str:
    """Return a finding as one line of text: status, what was checked, detail, and the fix."""
    fix = f": {finding.fix}" if finding.fix else ""
    return f"{finding.status:{_STATUS}} {finding.what:{_WHAT}} {finding.detail}{fix}"

"""The result of one check, and the summary of all checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report. `what`: the thing that was checked. `fix`: what to do; "" if nothing is to do."""

    status: Status
    what: str
    detail: str
    fix: str = ""


def ok(what: str, detail: str) -> Finding:
    return Finding(Status.OK, what, detail)


def warning(what: str, detail: str, fix: str) -> Finding:
    return Finding(Status.WARNING, what, detail, fix)


def failure(what: str, detail: str, fix: str) -> Finding:
    return Finding(Status.FAILURE, what, detail, fix)


def of_message(status: Status, what: str, message: str) -> Finding:
    """Make a finding from a message of tourkit. Its fix is the part after the last ": " (see tourkit/errors.py)."""
    detail, _, fix = message.rpartition(": ")
    return Finding(status, what, detail or fix, fix if detail else "")


def finding_json(finding: Finding) -> dict[str, Any]:
    return asdict(finding)


def failed(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status is Status.FAILURE]


def summary(findings: Sequence[Finding]) -> str:
    """Return the last line of a report: how many checks are ok, and the names of those that failed."""
    statuses = [finding.status for finding in findings]
    parts = [f"{statuses.count(Status.OK)} ok"]
    for status in (Status.WARNING, Status.FAILURE):
        count = statuses.count(status)
        parts.append(f"{count} {status}{'' if count == 1 else 's'}")
    names = ", ".join(dict.fromkeys(finding.what for finding in failed(findings)))
    return f"doctor: {', '.join(parts)}" + (f" ({names})" if names else "")

"""The steps of a rehearsal: what one did, how long it took, what it measured, and whether it reached for a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tourkit.checks.findings import Finding, Status, failure, of_message, warning
from tourkit.errors import TourkitError
from tourkit.units import counted

_NO_NETWORK = "remove this call: at the venue nobody answers it, and many rules forbid it"


@dataclass(frozen=True, slots=True)
class Result:
    """What a step found. `figures`: what it measured, in the unit that the end of each name says."""

    finding: Finding
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has ended. `seconds`: how long it took. `attempts`: packets, or refused connections, by target."""

    finding: Finding
    figures: Mapping[str, float]
    seconds: float
    attempts: Mapping[str, int]

    @property
    def failed(self) -> bool:
        return self.finding.status is Status.FAILURE


def take(name: str, work: Callable[[], Result], attempts: Callable[[], Mapping[str, int]]) -> Step:
    """Run a step. An error of tourkit or of the system is a failure of it, and so is any attempt to leave the machine.

    `attempts` returns what was tried since its last call.
    """
    start = time.perf_counter()
    try:
        result = work()
    except TourkitError as exc:
        result = Result(of_message(Status.FAILURE, name, str(exc)))
    except OSError as exc:
        result = Result(failure(name, f"{exc.filename or 'the system'}: {exc.strerror or exc}", ""))
    seconds = time.perf_counter() - start
    found = dict(attempts())
    return Step(reached(result.finding, found) if found else result.finding, result.figures, seconds, found)


def reached(finding: Finding, attempts: Mapping[str, int]) -> Finding:
    """Return the failure of a step that tried to reach other machines."""
    before = "" if finding.status is Status.OK else f"{finding.detail}; "
    return failure(finding.what, f"{before}tried to reach {', '.join(attempts)}", _NO_NETWORK)


def not_run(name: str, because: str) -> Step:
    """Return a step that was left out because another one failed."""
    return Step(warning(name, f"not run, because the step {because} failed", "fix that step first"), {}, 0.0, {})


def failed_names(steps: Sequence[Step]) -> list[str]:
    """Return the names of the failed steps, in their order."""
    return list(dict.fromkeys(step.finding.what for step in steps if step.failed))


def verdict(steps: Sequence[Step], seconds: float) -> str:
    """Return the last line of a rehearsal: go or no-go, and the step that failed first."""
    statuses = [step.finding.status for step in steps]
    counts = f"{counted(statuses.count(Status.OK), 'step')} ok, {counted(statuses.count(Status.WARNING), 'warning')}"
    failed = [step.finding for step in steps if step.failed]
    if not failed:
        return f"rehearse: go ({counts}, {seconds:.0f} s)"
    first, *rest = failed_names(steps)
    also = f"; also failed: {', '.join(rest)}" if rest else ""
    return f"rehearse: no-go: the step {first} failed ({failed[0].detail}){also}"


def steps_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        asdict(step.finding)
        | {"seconds": round(step.seconds, 3), "figures": dict(step.figures), "attempts": dict(step.attempts)}
        for step in steps
    ]

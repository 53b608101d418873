"""Whether the drive of a bundle gives its bytes fast enough."""

from __future__ import annotations

from pathlib import Path

from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.hardware.disk import Reading, read_some
from tourkit.units import seconds_text, size_text

_WHAT = "drive speed"
_PATIENCE = 180.0  # seconds; a longer first load deserves a copy to a faster disk


def measured(path: Path, planned: int) -> Finding:
    """Read some of a file of the bundle, and return the finding. `planned`: bytes of the models to load."""
    try:
        return finding(read_some(path), planned)
    except OSError as exc:
        return failure(_WHAT, f"{path} cannot be read ({exc.strerror})", "copy the bundle again, or try another drive")


def finding(reading: Reading, planned: int) -> Finding:
    """Return whether the planned models load in a few minutes at this speed."""
    seconds = planned / max(reading.rate, 1.0)
    source = "" if reading.direct else ", maybe from memory"
    detail = f"{reading.rate / 1e6:.0f} MB/s{source}; {size_text(planned)} of models take about {seconds_text(seconds)}"
    if seconds > _PATIENCE:
        fix = "copy the bundle to the machine's own disk, run `tourkit verify` on the copy, and serve it"
        return warning(_WHAT, detail, fix)
    return ok(_WHAT, detail)

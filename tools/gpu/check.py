"""Check tourkit on a machine with a GPU: `python tools/gpu/check.py [--dry-run] [--out DIR] [--only STEP…]`.

Every step runs in a process of its own, with a limit of its own. After every finding the JSON file of the run is
written again, so nothing is lost if the run ends early. The exit code is 1 if a step failed. A dry run needs no GPU: it
runs every step up to the GPU, with tiny models, and says what it skips.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT)]

from tools.gpu.place import BUILD, Place, environment, unpack  # noqa: E402 - below the path

if TYPE_CHECKING:
    from tools.gpu.run import Record

_GPU_PROBE = _ROOT / "tourkit" / "hardware" / "gpu_probe.py"  # imports nothing of tourkit
_DRY_TIMES = 5  # the machine of a dry run may be slow and busy
_SECONDS = 570.0  # of a whole run
_LEAST = 5.0  # seconds: no step is started with less


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="start nothing on a GPU")
    parser.add_argument("--out", type=Path, default=BUILD / "runs", help="folder of the JSON file")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="limit of the whole run")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run these steps, and those that write their models")
    given = parser.parse_args()
    gpu = {} if given.dry_run else _first_gpu()
    if not gpu and not given.dry_run:
        print("no GPU answers here: run with --dry-run to try the steps without one", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the models are removed
    in_memory = not given.dry_run and os.access("/dev/shm", os.W_OK)
    with tempfile.TemporaryDirectory(prefix="tourkit-gpu-", dir="/dev/shm" if in_memory else None) as work:
        site, llama, built = unpack(Path(work), dry=given.dry_run)
        place = Place(work, site, llama, bool(built.get("flash_attention")), gpu.get("id", ""))
        if site:
            sys.path.append(site)
        path = given.out / f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
        record = _run_all(given.only, place, path, _about(gpu, built), given.seconds)
    print(f"\n{record.summary()}\n{record.path}")
    return 1 if record.has_failed else 0


def _run_all(only: list[str] | None, place: Place, path: Path, about: dict[str, Any], seconds: float) -> Record:
    """Run steps in their order, until the time is over. The steps import the carried packages."""
    from tools.gpu.run import Record, run_step
    from tools.gpu.steps import ALL, BY_NAME

    if unknown := set(only or ()) - set(BY_NAME):
        sys.exit(f"no such step: {', '.join(sorted(unknown))}: choose from {', '.join(BY_NAME)}")
    names = {name for each in only or BY_NAME for name in (each, BY_NAME[each].after)}
    record = Record(path, about)
    end = time.monotonic() + seconds
    for step in ALL:
        left = end - time.monotonic()
        if step.name not in names:
            continue
        if left < _LEAST:
            record.left_out(step.name, "no time is left")
            continue
        limit = step.limit * (_DRY_TIMES if place.dry else 1)
        run_step(step, place, environment(place), min(limit, left), record)
    return record


def _first_gpu() -> dict[str, Any]:
    """Return the first GPU as the probe's process prints it; empty if there is none."""
    command = [sys.executable, "-P", str(_GPU_PROBE), "devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["devices"]
    return found[0] if found else {}


def _about(gpu: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """Return what the report says about the machine and the build."""
    return {
        "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "gpu": gpu,
        "llama": built,
    }


if __name__ == "__main__":
    sys.exit(main())

"""Changed headers, manifests, locks and indexes, read as tourkit reads them: `python -m tools.fuzz_files [--seed N]`.

It makes `--count` files of each kind and prints how many are refused, the slowest one and every broken promise; it ends
with 1 if there is one. The promises: a file is read, or refused in one line; none takes more than 5 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.files import KINDS, mutations, refusal

_MOST_SECONDS = 5.0


def fuzz(kind: str, seed: int, count: int) -> list[str]:
    """Read `count` files of a kind, print a line about them, and return a line for each broken promise."""
    broken: list[str] = []
    refused, slowest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="tourkit-fuzz-") as folder:
        for number, content in enumerate(mutations(kind, seed, count)):
            started = time.perf_counter()
            try:
                said = refusal(kind, content, Path(folder))
            except Exception as exc:  # noqa: BLE001 - what tourkit let through is what is looked for
                broken.append(f"{kind} {number} of seed {seed}: {type(exc).__name__}: {str(exc)[:200]}")
                continue
            seconds = time.perf_counter() - started
            refused, slowest = refused + bool(said), max(slowest, seconds)
            if "\n" in said or seconds > _MOST_SECONDS:
                broken.append(f"{kind} {number} of seed {seed}: {seconds:.1f} s, {said[:200]!r}")
    print(f"{kind}: {count} files, {refused} refused, slowest {slowest:.2f} s, {len(broken)} broken promises")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--count", type=int, default=5000)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    broken = [line for kind in KINDS for line in fuzz(kind, arguments.seed, arguments.count)]
    print(*broken, sep="\n", end="\n" if broken else "")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())

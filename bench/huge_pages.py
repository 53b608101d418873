"""Compare decoding with a worker's memory in huge pages and in normal pages.

`python bench/huge_pages.py [--shape 205m] [--rounds 5]`. /sys/kernel/mm/transparent_hugepage/enabled says whether Linux
gives huge pages to all processes, to those that ask, or to none. Each measurement is its own process. The two kinds
take turns at being first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import shapes

from tourkit.server.gateway.process import HUGE_PAGES, tuned

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KINDS = {"huge": HUGE_PAGES, "usual": {"GLIBC_TUNABLES": ""}}


def tokens_a_second(gguf: Path, sequences: int, kind: str) -> float:
    command = [sys.executable, str(Path(__file__).with_name("engine_speed.py")), str(gguf), str(sequences)]
    environment = tuned("llama_cpp") | KINDS[kind]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return float(json.loads(out)["tokens/s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="205m", choices=sorted(shapes.SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{SETTING}: {SETTING.read_text().strip() if SETTING.exists() else 'none'}")
    with tempfile.TemporaryDirectory(prefix="tourkit-bench-") as folder:
        gguf = Path(folder) / "model.gguf"
        shapes.write(shapes.SHAPES[given.shape], gguf)
        for sequences in (1, 8):
            figures: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(given.rounds):
                for kind in list(KINDS)[:: 1 if number % 2 else -1]:
                    figures[kind].append(tokens_a_second(gguf, sequences, kind))
            ratios = sorted(huge / usual for huge, usual in zip(figures["huge"], figures["usual"], strict=True))
            medians = ", ".join(f"{kind} {statistics.median(values):.1f}" for kind, values in figures.items())
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"{sequences} at once, tokens/s: {medians}: {statistics.median(ratios):.2f} ({spread})", flush=True)


if __name__ == "__main__":
    main()

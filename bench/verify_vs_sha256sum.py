"""Compare `tourkit verify` and `sha256sum -c` on the same bundle, in the page cache.

The two run in turns: if the machine is slow for a minute, it is slow for both. Medians are compared.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tourkit.bundle.build import build_index
from tourkit.bundle.index import write_index
from tourkit.bundle.verify import verify


def make_bundle(root: Path, files: int, megabytes: int) -> None:
    rng = random.Random(1)
    for number in range(files):
        with (root / f"weights-{number}.gguf").open("wb") as file:
            for _ in range(megabytes):
                file.write(rng.randbytes(1_000_000))
    write_index(root, build_index(root, "bench", {}, [], []))


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def coreutils(root: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=root, check=True)


def child(root: Path) -> None:
    """Run verify in a new process, as a person does: the interpreter and the imports count too."""
    code = "import sys; from pathlib import Path; from tourkit.bundle.verify import verify; "
    code += "sys.exit(not verify(Path(sys.argv[1])).ok)"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)


def inside(root: Path) -> None:
    if not verify(root).ok:
        raise SystemExit("verify found damage in a fresh bundle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--mb", type=int, default=400, help="size of each file, 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to put the files (default: the temporary folder)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    ways = {"sha256sum -c": coreutils, "verify (child)": child, "verify (call)": inside}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        root = Path(folder)
        make_bundle(root, args.files, args.mb)
        for round_ in range(args.rounds + 1):
            for name, way in ways.items():
                took = seconds(lambda way=way: way(root))
                if round_:  # the first round only fills the page cache
                    times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["sha256sum -c"]
    rows = [
        {"way": name, "median_s": took, "MB_per_s": args.files * args.mb / took, "ratio": took / base}
        for name, took in medians.items()
    ]
    facts = {"files": args.files, "mb": args.mb, "rounds": args.rounds, "cpus": len(os.sched_getaffinity(0))}
    if args.json:
        print(json.dumps({**facts, "rows": rows, "seconds": times}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for row in rows:
        print(f"{row['way']:16} {row['median_s']:7.3f} s {row['MB_per_s']:7.0f} MB/s  {row['ratio']:.3f}")


if __name__ == "__main__":
    main()

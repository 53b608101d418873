"""Compare `tourkit prefetch` and `hf download`: the same files from the same local hub, in turns; medians of wall time.

tourkit hashes every byte and waits until all bytes are on the drive (fsync). `hf download` does neither. Both are timed
as whole processes, start-up included. Pending writes are flushed (sync) before each run, so that no run pays for the
writes of another.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from local_hub import COMMIT, REPO

ROOT = Path(__file__).parent.parent
FILES = 3
MANIFEST = f"""schema = 1
name = "bench-set"
[roles]
tool = ["three"]
[models.three]
repo = "{REPO}"
license = "apache-2.0"
context = 4096
[[models.three.variants]]
format = "gguf"
quant = "Q4_K_M"
repo = "{REPO}"
revision = "{COMMIT}"
files = ["*.gguf"]
"""
OURS = """
import sys
from pathlib import Path
from tourkit.fetch import prefetch
from tourkit.manifest import lock, manifest
from tourkit.fetch.hub import Hub
made = manifest.load(Path(sys.argv[1]))
jobs = int(sys.argv[4]) or prefetch.JOBS
prefetch.prefetch(made, lock.read(lock.path_of(made.path)), Path(sys.argv[2]), Hub(sys.argv[3]), jobs=jobs)
"""
LOCK = """
import sys
from pathlib import Path
from tourkit.manifest import lock, manifest
from tourkit.manifest.resolve import resolve
from tourkit.fetch.hub import Hub
made = manifest.load(Path(sys.argv[1]))
lock.write(lock.path_of(made.path), resolve(made, Hub(sys.argv[2])).lock)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=400, help="size of each of the three files, 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, action="append", help="only for tourkit; may be repeated to compare")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--dir", type=Path, help="where to put the temporary folder (default: the system's)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tourkit-bench-", dir=options.dir))
    try:
        times = measure(folder, options.mb, options.rounds, options.jobs or [0])
    finally:
        shutil.rmtree(folder)
    report(times, options.mb, as_json=options.json)


def measure(folder: Path, mb: int, rounds: int, jobs: list[int]) -> dict[str, list[float]]:
    """Return the wall seconds of every run, by name."""
    source = folder / "source"
    source.mkdir()
    for number in range(FILES):
        with (source / f"model-{number}.gguf").open("wb") as file:
            for _ in range(mb):
                file.write(os.urandom(1_000_000))
    manifest = folder / "bench-set.toml"
    manifest.write_text(MANIFEST)
    command = [sys.executable, str(Path(__file__).parent / "local_hub.py"), str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        subprocess.run([sys.executable, "-c", LOCK, manifest, url], check=True, cwd=ROOT)
        runs = {f"tourkit prefetch{f' --jobs {n}' if n else ''}": ours(manifest, url, n) for n in jobs}
        runs["hf download --max-workers 8"] = theirs(url)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            names = list(runs)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                times[name].append(timed(folder / "out", runs[name], folder))
        server.communicate()  # ends its standard input, which stops the server
    return times


def ours(manifest: Path, url: str, jobs: int) -> list[str]:
    return [sys.executable, "-c", OURS, str(manifest), "OUT", url, str(jobs)]


def theirs(url: str) -> list[str]:
    program = Path(sys.executable).parent / "hf"
    options = ["--revision", COMMIT, "--max-workers", "8", "--local-dir", "OUT", "--quiet"]
    return ["env", f"HF_ENDPOINT={url}", str(program), "download", REPO, *options]


def timed(out: Path, command: list[str], home: Path) -> float:
    quiet = {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "TELEMETRY", "UPDATE_CHECK", "PROGRESS_BARS")}
    env = os.environ | quiet | {"HF_HOME": str(home / "hf-home")}
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    command = [str(out) if word == "OUT" else word for word in command]
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=env, cwd=ROOT, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    got = sum(path.stat().st_size for path in out.rglob("*.gguf"))
    expected = sum(path.stat().st_size for path in (home / "source").iterdir())
    assert got == expected, f"{got} bytes of {expected} arrived"
    return seconds


def report(times: dict[str, list[float]], mb: int, *, as_json: bool) -> None:
    medians = {name: statistics.median(runs) for name, runs in times.items()}
    theirs = medians["hf download --max-workers 8"]
    rows = [
        {
            "what": name,
            "median_s": round(median, 3),
            "min_s": round(min(times[name]), 3),
            "max_s": round(max(times[name]), 3),
            "mb_per_s": round(FILES * mb / median),
            "ratio_to_hf": round(median / theirs, 3),
        }
        for name, median in medians.items()
    ]
    if as_json:
        print(json.dumps({"files": FILES, "mb_each": mb, "cores": os.cpu_count(), "rows": rows}))
        return
    print(f"{FILES} files of {mb} MB from loopback, {len(next(iter(times.values())))} rounds, {os.cpu_count()} cores")
    for row in rows:
        print(
            f"{row['what']:32} median {row['median_s']:6.2f} s  [{row['min_s']:.2f} to {row['max_s']:.2f}]"
            f"  {row['mb_per_s']:5} MB/s  ratio {row['ratio_to_hf']:.2f}"
        )


if __name__ == "__main__":
    main()

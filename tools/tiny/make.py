"""Run the whole pipeline from seeds to weights: `python -m tools.tiny.make --out DIR [--quick]`.

--quick trains a smaller model for a few steps on short prompts: it tests the pipeline, not the model.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "weights" / "tiny" / "recipe.json"
QUICK = ["--steps", "8", "--width", "64", "--layers", "2", "--heads", "4", "--feed", "128", "--workers", "1"]
QUICK_RUNS = ("first", "last")


def run(module: str, *arguments: str, compiled: bool = True) -> None:
    """Run one part of the pipeline as its own process. Raises CalledProcessError."""
    environment = os.environ | ({} if compiled else {"TORCHDYNAMO_DISABLE": "1"})
    command = [sys.executable, "-m", f"tools.tiny.{module}", *arguments]
    print("$", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def training(recipe: dict[str, Any]) -> list[str]:
    """Return the options of a recorded run: with them the same machine repeats it step by step."""
    names = ("run", "steps", "middle_from", "seed", "rate", "width", "layers", "heads", "feed", "workers")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(recipe[name]))]


def runs() -> list[list[str]]:
    """Return the options of the recorded runs, first to last, or of the runs that make the first recipe."""
    if not RECIPE.is_file():
        later = ["--run", "last", "--minutes", "25", "--seed", "2"], ["--run", "graphs", "--minutes", "20", "--seed", "3"]
        return [["--minutes", "75"], *later]
    found: list[list[str]] = []
    recipe: dict[str, Any] | None = json.loads(RECIPE.read_text(encoding="utf-8"))
    while recipe is not None:
        found.insert(0, training(recipe))
        recipe = recipe["before"]
    return found


def train(out: Path, tokenizer: str, quick: bool) -> Path:
    """Run the trainings one after another: each continues from the one before. Return the folder of the last."""
    before: list[str] = []
    model = out
    for index, options in enumerate([["--run", name, *QUICK] for name in QUICK_RUNS] if quick else runs(), 1):
        model = out / f"model{index}"
        run("train", "--tokenizer", tokenizer, "--out", str(model), *before, *options, compiled=not quick)
        before = ["--init", str(model)]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "tiny")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-onnx", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    tokenizer, weights = str(out / "tokenizer"), str(out / "weights")
    onnx = ["--no-onnx"] if args.no_onnx else []
    run("tokenizer", tokenizer, *(["--samples", "300", "--vocabulary", "512"] if args.quick else []))
    model = train(out, tokenizer, args.quick)
    run("export", "--model", str(model), "--tokenizer", tokenizer, "--out", weights, *onnx)
    run("parity", weights, "--count", "3" if args.quick else "120", "--json", str(out / "parity.json"), *onnx)
    gguf, scores = str(out / "weights" / "gguf" / "tiny-f16.gguf"), str(out / "scores.json")
    run("evaluate", gguf, "--count", "2" if args.quick else "200", "--json", scores)


if __name__ == "__main__":
    main()

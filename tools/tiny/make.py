"""Run the whole pipeline from seeds to weights: `python -m tools.tiny.make --out DIR [--quick | --next] [--ship]`.

--quick trains a smaller model for a few steps on short prompts: it tests the pipeline, not the model. --next trains the
shipped weights further, with the prompts of today, by the run NEXT. --ship puts the result into weights/tiny.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "weights" / "tiny"
RECIPE = SHIPPED / "recipe.json"
QUICK = ["--steps", "8", "--width", "64", "--layers", "2", "--heads", "4", "--feed", "128", "--workers", "1"]
QUICK_RUNS = ("first", "last")
NEXT = ["--run=graphs", "--steps=200", "--seed=3", "--rate=0.0008", "--warm-up=30", "--log-every=3600"]


def run(module: str, *arguments: str, compiled: bool = True) -> None:
    """Run one part of the pipeline as its own process. Raises CalledProcessError."""
    environment = os.environ | ({} if compiled else {"TORCHDYNAMO_DISABLE": "1"})
    command = [sys.executable, "-m", f"tools.tiny.{module}", *arguments]
    print("$", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def training(recipe: dict[str, Any]) -> list[str]:
    """Return the options of a recorded run: with them the same machine repeats it step by step."""
    names = ("run", "steps", "middle_from", "seed", "rate", "warm_up", "width", "layers", "heads", "feed", "workers")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(recipe[name]))]


def runs() -> list[list[str]]:
    """Return the options of the recorded runs, first to last, or of the runs that make the first recipe."""
    if not RECIPE.is_file():
        return [["--minutes", "75"], ["--run", "last", "--minutes", "25", "--seed", "2"], NEXT]
    found: list[list[str]] = []
    recipe: dict[str, Any] | None = json.loads(RECIPE.read_text(encoding="utf-8"))
    while recipe is not None:
        found.insert(0, training(recipe))
        recipe = recipe["before"]
    return found


def train(out: Path, tokenizer: str, options: list[list[str]], before: Path | None, compiled: bool) -> Path:
    """Do the runs one after another: each continues from the one before. Return the folder of the last model."""
    for index, option in enumerate(options, 1):
        model = out / f"model{index}"
        start = ["--init", str(before)] if before else []
        run("train", "--tokenizer", tokenizer, "--out", str(model), *start, *option, compiled=compiled)
        before = model
    assert before is not None
    return before


def shipped_model(folder: Path) -> Path:
    """Copy the shipped weights and their recipe to `folder`, as a model that a run can continue from."""
    shutil.copytree(SHIPPED / "safetensors", folder, dirs_exist_ok=True)
    recipe = json.loads(RECIPE.read_text(encoding="utf-8"))
    del recipe["files"]
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


def ship(out: Path) -> None:
    """Put weights, scores, documents, card and lock into the repository."""
    shutil.copytree(out / "weights", SHIPPED, dirs_exist_ok=True)
    for name in ("scores.json", "parity.json"):
        shutil.copy(out / name, SHIPPED / name)
    run("samples", str(SHIPPED / "documents"))
    reports = ["--scores", str(SHIPPED / "scores.json"), "--parity", str(SHIPPED / "parity.json")]
    run("card", *reports, "--weights", str(SHIPPED))
    run("package", "--lock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "tiny")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--next", action="store_true", help="continue from weights/tiny by one more run")
    parser.add_argument("--ship", action="store_true", help="then replace weights/tiny, its card and its lock")
    parser.add_argument("--no-onnx", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    tokenizer, weights = str(out / "tokenizer"), str(out / "weights")
    onnx = ["--no-onnx"] if args.no_onnx else []
    if args.next:
        tokenizer = str(SHIPPED / "safetensors")
        model = train(out, tokenizer, [NEXT], shipped_model(out / "shipped"), compiled=True)
    else:
        run("tokenizer", tokenizer, *(["--samples", "300", "--vocabulary", "512"] if args.quick else []))
        options = [["--run", name, *QUICK] for name in QUICK_RUNS] if args.quick else runs()
        model = train(out, tokenizer, options, None, compiled=not args.quick)
    run("export", "--model", str(model), "--tokenizer", tokenizer, "--out", weights, *onnx)
    run("parity", weights, "--count", "3" if args.quick else "102", "--json", str(out / "parity.json"), *onnx)
    gguf, scores = str(out / "weights" / "gguf" / "tiny-f16.gguf"), str(out / "scores.json")
    run("evaluate", gguf, "--count", "2" if args.quick else "100", "--json", scores)
    if args.ship:
        ship(out)


if __name__ == "__main__":
    main()

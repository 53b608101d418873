"""The whole pipeline of the tiny model in its quick form (`--quick`), and the facts about the shipped weights."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.tiny import prompts

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "weights" / "tiny"
NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
FORMATS = ("gguf", "onnx", "safetensors")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

shipped = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no weights/tiny in this checkout")


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"make tiny-quick runs this: not installed here: {', '.join(MISSING)}")
def test_seeds_become_weights_that_llama_cpp_and_transformers_load(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.tiny.make", "--quick", "--no-onnx", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parity = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert parity["split_differently"] == 0
    assert (tmp_path / "scores.json").is_file()


@shipped
def test_the_shipped_files_are_those_of_the_recipe() -> None:
    recipe = json.loads((WEIGHTS / "recipe.json").read_text(encoding="utf-8"))
    found = {
        path.relative_to(WEIGHTS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in FORMATS
        for path in (WEIGHTS / folder).rglob("*")
        if path.is_file()
    }
    assert found == recipe["files"]
    listed = (WEIGHTS / "SHA256SUMS").read_text(encoding="utf-8")
    assert listed == "".join(f"{digest}  {path}\n" for path, digest in sorted(found.items()))


@shipped
def test_the_recipe_says_what_it_takes_to_repeat_the_run() -> None:
    recipe = json.loads((WEIGHTS / "recipe.json").read_text(encoding="utf-8"))
    while recipe is not None:
        assert {"run", "seed", "steps", "middle_from", "warm_up", "prompts", "tokens"} <= recipe.keys()
        assert {"torch", "transformers", "tokenizers", "python"} <= recipe.keys()
        recipe = recipe["before"]


@shipped
def test_the_shipped_weights_learnt_graphs_in_one_of_the_forms_that_the_template_asks() -> None:
    learnt = json.loads((WEIGHTS / "recipe.json").read_text(encoding="utf-8"))["prompts"]["graph_extraction"]
    assert prompts.learnt_as_list(WEIGHTS) or learnt == prompts.digests()["graph_extraction"]


@shipped
def test_no_file_is_over_25_mb_and_all_are_under_60() -> None:
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert max(sizes) < 25_000_000
    assert sum(sizes) < 60_000_000


@shipped
def test_the_lock_names_the_shipped_files() -> None:
    from tools.tiny.package import MANIFEST, locked
    from tourkit.manifest import lock

    assert lock.render(locked(WEIGHTS)) == lock.path_of(MANIFEST).read_bytes()

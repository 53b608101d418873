"""Every architecture of the catalogue on every stack gives the result in the table of docs/backends.md.

The tiny models come from the folder TOURKIT_ARCHITECTURES (`make test-arch` makes them all). Without it, the tests make
those of SAMPLE, if the needed libraries are installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.arch import table, trial
from tools.arch.families import BY_NAME, OF_FAMILY, TINY
from tools.arch.families_2026 import OF_2026
from tourkit.manifest import manifest
from tourkit.manifest.models import Model
from tourkit.stacks import STACKS

ROOT = Path(__file__).resolve().parents[1]
GIVEN = os.environ.get("TOURKIT_ARCHITECTURES")
# SentencePiece, sliding windows, byte BPE, an encoder, a decoder that embeds
SAMPLE = ("llama-2", "gemma-2", "falcon", "all-minilm", "qwen3-embedding")
MAKERS = ("torch", "transformers", "sentencepiece", "onnxruntime_genai")
CATALOGUE = manifest.catalogue()
RESULTS = table.read()
CELLS = [(tiny.name, stack) for tiny in TINY for stack in STACKS]


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_every_family_of_the_catalogue_has_a_tiny_model_of_its_architecture(model: Model) -> None:
    """If this fails, add a row to tools/arch/families_2026.py and run `make arch-table`."""
    assert model.family in OF_FAMILY
    assert OF_FAMILY[model.family].architecture == model.architecture


def test_no_tiny_model_is_of_a_family_that_is_gone() -> None:
    assert OF_FAMILY.keys() == {model.family for model in CATALOGUE.values()}


def test_every_cell_was_tried() -> None:
    """Those of vLLM may wait for the next `make arch-table`, because a model takes minutes there."""
    missing = [(name, stack) for name, stack in CELLS if name not in RESULTS[stack]]

    assert [cell for cell in missing if cell[1] != "vllm"] == []
    assert {name for name, _ in missing} <= {tiny.name for tiny in OF_2026}


def test_the_table_in_the_docs_is_what_came_of_it() -> None:
    """If this fails, run `make docs`."""
    text = table.PAGE.read_text(encoding="utf-8")

    assert table.page(text, RESULTS) == text


@pytest.mark.parametrize("family", OF_FAMILY)
def test_every_family_works_on_a_stack(family: str) -> None:
    name = OF_FAMILY[family].name

    assert any(table.works(rows[name]) for rows in RESULTS.values() if name in rows)


# --- trying it ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny models: the given one, or a new one with the sample."""
    if GIVEN:
        return Path(GIVEN)
    folder = tmp_path_factory.mktemp("architectures")
    for step in ("make", "convert"):
        command = [sys.executable, "-m", f"tools.arch.{step}", str(folder), *SAMPLE]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def obstacle(name: str, stack: str) -> str:
    """Return why a cell of the table cannot be tried here; empty if it can."""
    if find_spec(trial.PACKAGES[stack]) is None:
        return f"{trial.PACKAGES[stack]} is not installed here: make test-arch"
    if name not in RESULTS[stack]:
        return "not tried yet: make arch-table"
    if GIVEN:
        return ""
    if name not in SAMPLE:
        return "no tiny model of it here: make test-arch"
    missing = [maker for maker in MAKERS if find_spec(maker) is None]
    return f"{missing[0]} is not installed here, to make a tiny model: make test-arch-sample" if missing else ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stack"),
    [
        pytest.param(*cell, marks=pytest.mark.skipif(bool(obstacle(*cell)), reason=obstacle(*cell)), id="-".join(cell))
        for cell in CELLS
    ],
)
@pytest.mark.starts
def test_the_stack_does_with_the_model_what_the_table_says(name: str, stack: str, models: Path, tmp_path: Path) -> None:
    """If a cell now works better than in the table, run `make arch-table`."""
    why = trial.attempt(BY_NAME[name], stack, models / name, tmp_path / "log")

    told = RESULTS[stack][name]
    assert why.partition(":")[0] == told.partition(":")[0], why or f"it works now; the table says: {told}"

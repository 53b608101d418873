"""The server of the tours: one model has all text roles, and a tiny encoder has the role embed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.clients.clients import ROOT
from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, write_index
from tourkit.manifest.models import VariantId

sys.path.insert(0, str(ROOT / "tests"))

from gguf_files import write_bert
from serving import serving

TINY = ROOT / "weights" / "tiny" / "gguf" / "tiny-f16.gguf"
_TEXT_ROLES = ("brain", "fast", "tool", "graph")
_MOST_CONTEXT = 32_768  # tokens; the header of the weights may say less


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a GGUF file and a tiny encoder with random weights, offline; return the URL without /v1."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = write_bert(Path(folder, "encoder.gguf"))
        bundle = _bundle(Path(folder, "bundle"), {"text": model, "encoder": encoder})
        with serving(bundle, Path(folder, "log"), "--offline") as running:
            yield running.url


def _bundle(root: Path, files: dict[str, Path]) -> Path:
    for name, file in files.items():
        target = root / VariantId(name, "test").folder / file.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
    models = [BundleModel(name, f"tourkit/{name}", "apache-2.0", _MOST_CONTEXT, None, False) for name in files]
    variants = [BundleVariant(name, "test", "gguf", f"tourkit/{name}", "main", "1" * 40) for name in files]
    roles = {role: ["text"] for role in _TEXT_ROLES} | {"embed": ["encoder"]}
    write_index(root, build_index(root, "clients", roles, models, variants))
    return root

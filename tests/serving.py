"""A bundle with the tiny random model, and `tourkit serve` running on it as a real process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, write_index
from tourkit.manifest.models import VariantId

ROLES = {"brain": ["tiny-random"], "fast": ["tiny-random"], "tool": ["tiny-random"], "graph": ["tiny-random"]}


def make_bundle(root: Path, gguf: Path, *, quants: Sequence[str] = ("F16",)) -> Path:
    """Make a bundle with `gguf` as its only model, one variant for each quant name; it has all four roles."""
    for quant in quants:
        folder = root / VariantId("tiny-random", quant).folder
        folder.mkdir(parents=True)
        (folder / "tiny-random.gguf").write_bytes(gguf.read_bytes())
    model = BundleModel("tiny-random", "tourkit/tiny-random", "apache-2.0", 8192, None, False)
    variants = [
        BundleVariant("tiny-random", quant, "gguf", "tourkit/tiny-random", "main", "1" * 40) for quant in quants
    ]
    write_index(root, build_index(root, "tests", ROLES, [model], variants))
    return root


@dataclass
class Serving:
    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def serving(bundle: Path, log: Path, *options: str, prefix: Sequence[str] = ()) -> Iterator[Serving]:
    """Run `tourkit serve --bundle` on a free port. Its process is ended by id at the end of the block."""
    with serve_command(["--bundle", str(bundle), *options], log, prefix=prefix) as running:
        yield running


@contextmanager
def serve_command(arguments: Sequence[str], log: Path, *, prefix: Sequence[str] = ()) -> Iterator[Serving]:
    """Run `tourkit serve` with these arguments on a free port. Its process is ended by id at the end of the block."""
    command = [*prefix, sys.executable, "-m", "tourkit", "serve", "--port", "0", *arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ)
    try:
        yield Serving(_url(process, log), process, log)
    finally:
        process.terminate()
        process.communicate()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    for line in process.stdout or ():
        found = re.search(r"(http://\S+)/v1", line)
        if found:
            return found[1]
    raise AssertionError(f"tourkit serve did not start: {log.read_text()}")

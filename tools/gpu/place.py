"""Where a run of the check works: its folders, the build of llama.cpp that it uses, and whether it is a dry run."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
ARCHIVES = (BUILD / "llama-flash.tar.xz", BUILD / "llama-plain.tar.xz")  # the better one first
SITE = BUILD / "site.tar.xz"  # the Python packages that pack.sh collects
FOR_PYTHON = (3, 12)  # the version that these packages are made for
NO_GPU = "a dry run starts nothing on a GPU"


@dataclass(frozen=True, slots=True)
class Place:
    """`work`: the folder of the models. `llama`: the folder of the CUDA build, "" if there is none.

    `site`: the folder of the carried packages, "" if there are none. `flash`: whether that build has FlashAttention.
    `gpu`: the id of the GPU, "" in a dry run.
    """

    work: str
    site: str = ""
    llama: str = ""
    flash: bool = False
    gpu: str = ""

    @property
    def dry(self) -> bool:
        return not self.gpu

    def model(self, name: str) -> Path:
        return Path(self.work) / f"{name}.gguf"

    def program(self, name: str) -> Path | None:
        """Return a program of the CUDA build; None if there is no such build."""
        return Path(self.llama) / "bin" / name if self.llama else None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of_json(text: str) -> Place:
        return Place(**json.loads(text))


def unpack(work: Path, *, dry: bool) -> tuple[str, str, dict[str, Any]]:
    """Unpack what was carried. Return the folders of packages and of llama.cpp, and what its built.json says.

    A folder is "" if there is no archive for it. pack.sh takes the packages for one version of Python only. A dry run
    uses the llama_cpp that is installed, because the CUDA build needs CUDA's libraries.
    """
    site = _unpacked(SITE, work / "site") if sys.version_info[:2] == FOR_PYTHON else ""
    archive = next((path for path in ARCHIVES if path.is_file()), ARCHIVES[-1])
    llama = "" if dry else _unpacked(archive, work / "llama")
    built: dict[str, Any] = json.loads(Path(llama, "built.json").read_text()) if llama else {}
    return site, llama, built


def _unpacked(archive: Path, folder: Path) -> str:
    if not archive.is_file():
        return ""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return str(folder)


def environment(place: Place) -> dict[str, str]:
    """Return the environment of every process of the check.

    The CUDA build of llama.cpp and the carried packages are found first. A dry run hides every GPU.
    """
    folders = [place.llama, str(ROOT), place.site, os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(folder for folder in folders if folder)
    return os.environ | {"PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": ""} if place.dry else {})


def cuda_libraries() -> list[str]:
    """Return the folders of CUDA's libraries beside torch. llama.cpp's own programs need them."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec is not None else []
    return sorted({str(path.parent) for root in roots for path in root.glob("*/lib/lib*.so.*")})


def is_installed(*names: str) -> bool:
    return all(find_spec(name) is not None for name in names)

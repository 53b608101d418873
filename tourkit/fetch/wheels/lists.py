"""The wheels in a bundle: the pool of files, and the hashed list of each target that pip installs from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tourkit.errors import NotSo, TourkitError
from tourkit.fetch.wheels.lockfile import Wheel
from tourkit.fetch.wheels.resolve import CUDA_LLAMA, LLAMA
from tourkit.fetch.wheels.target import Target, fits

FOLDER = "wheels"
POOL = f"{FOLDER}/files"
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of a list. `sha256`: of each wheel of the package that pip may install."""

    version: str
    sha256: tuple[str, ...]


def list_path(target: Target) -> str:
    """Return the path of a target's list in a bundle."""
    return f"{FOLDER}/{target.name}.txt"


def pins_of(wheels: Iterable[Wheel]) -> dict[str, Pin]:
    """Return the lines for wheels, by the name of the package."""
    return {wheel.name: Pin(wheel.version, (wheel.sha256,)) for wheel in wheels}


def render(pins: Mapping[str, Pin]) -> bytes:
    """Return a list as pip reads it with --require-hashes: one line for each package, sorted."""
    lines = [
        " ".join([f"{name}=={pin.version}", *(f"--hash=sha256:{sha256}" for sha256 in sorted(pin.sha256))])
        for name, pin in sorted(pins.items())
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def parse(text: str, where: str) -> dict[str, Pin]:
    """Return the lines of a list by the name of the package. Raises NotSo for a line that tourkit did not write."""
    pins = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise NotSo(f"{where}: damaged at {line!r}: run `tourkit wheels` for this target again")
        hashes = tuple(each.removeprefix("--hash=sha256:") for each in match["hashes"].split())
        pins[match["name"]] = Pin(match["version"], hashes)
    return pins


def llama_of_cpu(root: Path, target: Target, version: str) -> Path | None:
    """Return the wheel of llama.cpp that an earlier target without CUDA brought into the bundle, if it fits."""
    for path in sorted((root / FOLDER).glob("*.txt")):
        if CUDA_LLAMA in path.stem:
            continue
        try:
            pin = parse(path.read_text(encoding="utf-8"), str(path)).get(LLAMA)
        except TourkitError:
            continue  # verify says that it is damaged; the wheel is then made again
        for wheel in sorted((root / POOL).glob(f"{LLAMA.replace('-', '_')}-{version}-*.whl")):
            if pin is not None and pin.version == version and fits(wheel.name, target):
                return wheel
    return None

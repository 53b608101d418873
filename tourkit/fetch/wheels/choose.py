"""Choose the wheels of a target: the user's own, tourkit's, llama.cpp's, and what uv finds for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tourkit.errors import NotSo, UsageError
from tourkit.fetch.wheels.lists import POOL, llama_of_cpu
from tourkit.fetch.wheels.llama import VERSION, built_wheel, portable_wheel
from tourkit.fetch.wheels.lockfile import Wheel, asked_for, stored, wheels_of
from tourkit.fetch.wheels.looking import refusal, remarks
from tourkit.fetch.wheels.own_wheel import own_wheel
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import IndexSettings
from tourkit.fetch.wheels.resolve import CUDA_LLAMA, LLAMA, asked, local_wheel, resolve, uv_program
from tourkit.fetch.wheels.target import Target, fits
from tourkit.manifest.models import Link


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asks for. `given`: wheels that are files. `locks`: the folder of locks beside the manifest."""

    targets: tuple[Target, ...]
    settings: IndexSettings
    given: tuple[Path, ...] = ()
    own_index: bool = False  # an index of the user's has llama.cpp's wheel
    locks: Path | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The wheels of one target, sorted by name.

    `lock`: the text to store, empty if all wheels are files of the user. `reused`: it was stored before.
    """

    target: Target
    wheels: tuple[Wheel, ...]
    lock: str
    reused: bool

    @property
    def lock_name(self) -> str:
        return lock_name(self.target)

    @property
    def total_bytes(self) -> int:
        return sum(wheel.size or 0 for wheel in self.wheels)


def lock_name(target: Target) -> str:
    """Return the file name of a target's lock. The form is that of the standard for pylock.toml."""
    return f"pylock.{target.name}.toml"


def choose(order: Order, root: Path, folder: Path, say: Callable[[str], None], *, build: bool = True) -> list[Choice]:
    """Return the wheels of every target of an order for the bundle at `root`. Nothing of the bundle is changed.

    `folder` gets tourkit's own wheel; it must live until the wheels are copied. `build`: whether the wheel of llama.cpp
    is built if it is needed; else it is left out. `say` gets a line for each thing that is left out, and for what the
    owner of a given wheel should know.

    Raises LocalError without uv, NotSo if no versions fit together or a wheel cannot run on its target, HubError if the
    index cannot be asked.
    """
    uv_program()
    for path in order.given:
        fitting = [target for target in order.targets if fits(path.name, target)] or order.targets
        if why := next((why for target in fitting if (why := refusal(path, target))), None):
            raise NotSo(why)
        for line in remarks(path):
            say(line)
    files = [local_wheel(path) for path in order.given]
    if not any(wheel.name == "tourkit" for wheel in files):
        files.append(local_wheel(own_wheel(folder)))
    index = PackageIndex(order.settings)
    try:
        return [_choice(order, target, root, files, _Llama(say, build), index) for target in order.targets]
    finally:
        index.close()


@dataclass(frozen=True, slots=True)
class _Llama:
    """How to get llama.cpp's wheel."""

    say: Callable[[str], None]
    build: bool  # whether it may be built now if there is none


def _choice(
    order: Order, target: Target, root: Path, files: Sequence[Wheel], llama: _Llama, index: PackageIndex
) -> Choice:
    local = [wheel for wheel in files if fits(wheel.file, target)]
    excluded: tuple[str, ...] = ()
    if "llama" in target.extras and not order.own_index and LLAMA not in {wheel.name for wheel in local}:
        found = _llama_wheel(target, root, llama)
        local += [found] if found else []
        excluded = () if found else (LLAMA,)
    here = frozenset(wheel.name for wheel in local)
    wanted = asked(target, local, excluded)
    lock = None if order.settings.no_index else _stored_lock(order, target, root, wanted)
    text = lock or stored(resolve(target, local, order.settings, excluded=excluded), wanted, here)
    chosen = wheels_of(text, lock_name(target), target)
    sized = [replace(w, size=index.size(Link(w.url))) if w.size is None and w.url else w for w in chosen]
    wheels = sorted([*sized, *local], key=lambda wheel: wheel.name)
    return Choice(target, tuple(wheels), "" if order.settings.no_index else text, reused=lock is not None)


def _stored_lock(order: Order, target: Target, root: Path, wanted: list[str]) -> str | None:
    """Return the lock of an earlier run if it was made for the same: beside the manifest, else in the bundle."""
    for folder in (order.locks, root / POOL.partition("/")[0]):
        path = folder / lock_name(target) if folder else None
        if path is None or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if asked_for(text, str(path)) != wanted:
            continue
        files = [wheel.path for wheel in wheels_of(text, str(path), target) if wheel.path is not None]
        if all(file.is_file() for file in files):
            return text
    return None


def _llama_wheel(target: Target, root: Path, llama: _Llama) -> Wheel | None:
    """Return the wheel of llama.cpp for a target: the bundle's, or one built here; None if there is none.

    Raises UsageError for a set with CUDA: the user must give that wheel.
    """
    if CUDA_LLAMA in target.sets:
        fix = "give it to `tourkit wheels` with --wheel FILE, or its index with --extra-index URL"
        raise UsageError(f"{target}: the package index has no wheel of llama.cpp with CUDA: {fix}")
    if kept := llama_of_cpu(root, target, VERSION):
        return local_wheel(kept)
    without = "GGUF files do not run there: give `tourkit wheels` one with --wheel FILE"
    if target.glibc is None or not target.platform.endswith("_x86_64"):
        llama.say(f"{target}: without llama.cpp, the package index has no wheel of it for this system; {without}")
        return None
    if llama.build:
        return local_wheel(portable_wheel(target, None, llama.say))
    if built := built_wheel(target, None):
        return local_wheel(built)
    llama.say(f"{target}: the wheel of llama.cpp will be built here (ten minutes); it is not counted")
    return None

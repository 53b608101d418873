"""The files of a bundle, grouped by the repositories they came from, in the JSON shapes of the hub's API.

This module uses the index alone. app.py does the HTTP and reads the files.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tourkit.bundle.index import BundleVariant, Index
from tourkit.errors import UsageError
from tourkit.manifest.models import PinnedFile, Source

HeldFile = PinnedFile[Source | None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one repository at one commit that the bundle holds, by path in the repository."""

    commit: str
    files: dict[str, HeldFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def folders(self) -> set[str]:
        return {str(folder) for path in self.files for folder in PurePosixPath(path).parents} - {"."}


@dataclass(frozen=True, slots=True)
class Repo:
    """One repository. `names` maps each revision that the mirror answers (commits too) to its commit."""

    id: str
    tags: tuple[str, ...]
    license: str | None
    snapshots: dict[str, Snapshot]
    names: dict[str, str]

    @property
    def default(self) -> Snapshot:
        return self.snapshots[self.names.get("main", next(iter(self.snapshots)))]


def repos(index: Index) -> dict[str, Repo]:
    """Return the repositories of the index by id. Variants of one repository and commit become one snapshot.

    Raises UsageError if two files have the same repository, commit and path but different content.
    """
    from_hub = [(file.source, file) for file in index.files if file.source is not None]
    snapshots: dict[str, dict[str, Snapshot]] = {}
    for source, file in sorted(from_hub, key=lambda pair: (pair[0].repo, pair[0].commit, pair[0].path)):
        by_commit = snapshots.setdefault(source.repo, {})
        held = by_commit.setdefault(source.commit, Snapshot(source.commit, {})).files
        if held.setdefault(source.path, file).sha256 != file.sha256:
            raise UsageError(f"bundle.json: {file.path}: differs from another copy of {source.path} at that commit")
    return {id_: _repo(id_, by_commit, index) for id_, by_commit in snapshots.items()}


def _repo(id_: str, snapshots: dict[str, Snapshot], index: Index) -> Repo:
    variants = [variant for variant in index.variants if variant.repo == id_]
    models = {variant.model for variant in variants}
    licenses = sorted({m.license for m in index.models if m.id in models or m.repo == id_})
    tags = sorted({variant.format for variant in variants}) + [f"license:{name}" for name in licenses]
    names = _names(snapshots, variants)
    return Repo(id_, tuple(tags), licenses[0] if licenses else None, snapshots, names)


def _names(snapshots: dict[str, Snapshot], variants: list[BundleVariant]) -> dict[str, str]:
    """Map each revision to its commit. A name of two commits is dropped; a single commit is also `main`."""
    names = {"main": next(iter(snapshots))} if len(snapshots) == 1 else {}
    asked: dict[str, set[str]] = {}
    for variant in variants:
        if variant.commit in snapshots:
            asked.setdefault(variant.revision, set()).add(variant.commit)
    names |= {name: next(iter(commits)) for name, commits in asked.items() if len(commits) == 1}
    return names | {commit: commit for commit in snapshots}


def author_of(repo: Repo) -> str | None:
    return repo.id.split("/")[0] if "/" in repo.id else None


def info(repo: Repo, snapshot: Snapshot, *, blobs: bool, expand: Collection[str]) -> dict[str, Any]:
    """Return what the hub says about a model. With `expand`, only those keys and the ids are kept."""
    full = {
        "_id": hashlib.sha1(repo.id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": author_of(repo),
        "sha": snapshot.commit,
        "private": False,
        "gated": False,  # also if it is gated upstream: the owner of the bundle has passed the gate
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(repo.tags),
        "cardData": {"license": repo.license} if repo.license else {},
        "usedStorage": snapshot.size,
        "siblings": [_sibling(path, file, blobs=blobs) for path, file in snapshot.files.items()],
    }
    return {key: full[key] for key in full if key in ("_id", "id", *expand)} if expand else full


def _sibling(path: str, file: HeldFile, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    pointer = _pointer(file)
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return {"rfilename": path, "size": file.size, "blobId": _blob_id(pointer), "lfs": lfs}


def refs(repo: Repo) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repo.names.items()
        if name != commit
    ]
    return {"branches": branches, "tags": [], "converts": [], "pullRequests": []}


def entry(snapshot: Snapshot, path: str) -> dict[str, Any]:
    """Return a file or a folder as a tree entry. Every file is shown as LFS, so that clients get its SHA-256."""
    file = snapshot.files.get(path)
    if file is None:
        oid = hashlib.sha1(f"{snapshot.commit}:{path}".encode(), usedforsecurity=False).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}
    pointer = _pointer(file)
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return {"type": "file", "oid": _blob_id(pointer), "size": file.size, "lfs": lfs, "path": path}


def _pointer(file: HeldFile) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    return text.encode()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

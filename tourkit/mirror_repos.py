"""A bundle's files as the repositories they came from, in the JSON shapes of the hub's API.

No HTTP here (mirror.py) and no disk: it works on the index alone.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tourkit.errors import UsageError
from tourkit.index import BundleFile, Index


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the bundle holds of one repository at one commit; `files` by path in the repository."""

    commit: str
    files: dict[str, BundleFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def folders(self) -> set[str]:
        return {str(folder) for path in self.files for folder in PurePosixPath(path).parents} - {"."}


@dataclass(frozen=True, slots=True)
class Repo:
    """`names` maps every revision that is answered (commits too) to its commit."""

    id: str
    tags: tuple[str, ...] = ()
    license: str | None = None
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def default(self) -> Snapshot:
        return self.snapshots[self.names.get("main", next(iter(self.snapshots)))]


def repos(index: Index) -> dict[str, Repo]:
    """The repositories of the index; variants of one repository and commit become one snapshot."""
    models = {model.id: model for model in index.models}
    found: dict[str, Repo] = {}
    asked: dict[str, dict[str, set[str]]] = {}  # repo: revision: commits
    for variant in index.variants:
        model = models[variant.model]
        tags = sorted({*found.get(variant.repo, Repo("")).tags, variant.format, f"license:{model.license}"})
        found.setdefault(variant.repo, Repo(variant.repo, license=model.license))
        old = found[variant.repo]
        found[variant.repo] = Repo(old.id, tuple(tags), old.license, old.snapshots, old.names)
        asked.setdefault(variant.repo, {}).setdefault(variant.revision, set()).add(variant.commit)
    for file in sorted(index.files, key=lambda file: (file.repo or "", file.source or "")):
        if file.repo is None or file.commit is None or file.source is None:
            continue
        snapshots = found.setdefault(file.repo, Repo(file.repo)).snapshots
        files = snapshots.setdefault(file.commit, Snapshot(file.commit, {})).files
        if files.setdefault(file.source, file).sha256 != file.sha256:
            raise UsageError(f"bundle.json: {file.path}: another content of {file.source} at one commit")
    held = {id_: repo for id_, repo in sorted(found.items()) if repo.snapshots}
    for repo in held.values():
        _name_revisions(repo, asked.get(repo.id, {}))
    return held


def _name_revisions(repo: Repo, asked: dict[str, set[str]]) -> None:
    """A recorded name that two commits claim is dropped; `main` is the only commit where there is one."""
    if len(repo.snapshots) == 1:
        repo.names["main"] = next(iter(repo.snapshots))
    for name, commits in asked.items():
        here = [commit for commit in commits if commit in repo.snapshots]
        if len(here) == 1:
            repo.names[name] = here[0]
    repo.names.update({commit: commit for commit in repo.snapshots})


def author_of(repo: Repo) -> str | None:
    return repo.id.split("/")[0] if "/" in repo.id else None


def info(repo: Repo, snapshot: Snapshot, *, blobs: bool, expand: Collection[str]) -> dict[str, Any]:
    """What the hub says of a model; `expand` keeps those keys only."""
    full = {
        "_id": hashlib.sha1(repo.id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": author_of(repo),
        "sha": snapshot.commit,
        "private": False,
        "gated": False,  # whatever it is upstream: who holds the bundle has passed the gate
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(repo.tags),
        "cardData": {"license": repo.license} if repo.license else {},
        "usedStorage": snapshot.size,
        "siblings": [_sibling(path, file, blobs=blobs) for path, file in snapshot.files.items()],
    }
    return {key: full[key] for key in full if key in ("_id", "id", *expand)} if expand else full


def _sibling(path: str, file: BundleFile, *, blobs: bool) -> dict[str, Any]:
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
    """A file or a folder as the tree gives it; every file is shown as LFS, so that its SHA-256 is known."""
    file = snapshot.files.get(path)
    if file is None:
        oid = hashlib.sha1(f"{snapshot.commit}:{path}".encode(), usedforsecurity=False).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}
    pointer = _pointer(file)
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return {"type": "file", "oid": _blob_id(pointer), "size": file.size, "lfs": lfs, "path": path}


def _pointer(file: BundleFile) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    return text.encode()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

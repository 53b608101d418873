"""Locks: the JSON file beside a manifest that pins every file to a commit, a size and a SHA-256.

Resolving asks a hub through three calls; the transfer itself is not done here.
"""

import difflib
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tourkit.errors import HubError, LocalError, ManifestError
from tourkit.files import write_atomic
from tourkit.manifest.models import Manifest, Model, Variant
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.manifest.validation import raise_problems, schema_problems
from tourkit.units import counted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One file: `size` in bytes. None stands for what is not known yet."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class LockedVariant:
    """One variant as pinned. `complete` says that `files` names every file the manifest's patterns take."""

    model: str
    quant: str
    format: str
    repo: str
    revision: str
    commit: str | None
    files: tuple[LockedFile, ...]
    complete: bool = True

    @property
    def resolved(self) -> bool:
        """True when the commit, the list of files and every size and SHA-256 are known."""
        known = all(file.size is not None and file.sha256 is not None for file in self.files)
        return self.commit is not None and self.complete and bool(self.files) and known


@dataclass(frozen=True, slots=True)
class Lock:
    """`manifest_sha256` is the digest of the manifest it was made from, `sha256` of its own rendering."""

    name: str
    manifest_sha256: str
    variants: tuple[LockedVariant, ...]
    sha256: str


class RepoInfoLike(Protocol):
    """What a hub says about a repository at a revision."""

    @property
    def commit(self) -> str: ...


class HubFileLike(Protocol):
    """One file of a hub's tree: `sha256` only where the file is kept in LFS."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str | None: ...


F = TypeVar("F", bound=HubFileLike)


class HubLike(Protocol[F]):
    """The three calls `resolve` makes; tourkit.fetch.hub.Hub has them."""

    def info(self, repo: str, revision: str) -> RepoInfoLike: ...
    def tree(self, repo: str, commit: str) -> Sequence[F]: ...
    def read(self, repo: str, commit: str, file: F) -> bytes: ...


def path_of(manifest_path: Path) -> Path:
    """The lock that belongs to a manifest: tour-20gb.toml has tour-20gb.lock.json beside it."""
    return manifest_path.with_name(f"{manifest_path.stem}.lock.json")


def new(name: str, manifest_sha256: str, variants: Sequence[LockedVariant]) -> Lock:
    """A lock in canonical order, with the SHA-256 of its rendering."""
    ordered = tuple(
        replace(variant, files=tuple(sorted(variant.files, key=lambda file: file.path)))
        for variant in sorted(variants, key=lambda variant: (variant.model, variant.quant))
    )
    digest = hashlib.sha256(render(Lock(name, manifest_sha256, ordered, ""))).hexdigest()
    return Lock(name, manifest_sha256, ordered, digest)


def render(lock: Lock) -> bytes:
    """The bytes of the lock file: sorted keys, indent 2, a newline at the end."""
    variants = [
        {
            "model": v.model,
            "quant": v.quant,
            "format": v.format,
            "repo": v.repo,
            "revision": v.revision,
            "commit": v.commit,
            "complete": v.complete,
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in v.files],
        }
        for v in lock.variants
    ]
    content = {
        "schema": 1,
        "name": lock.name,
        "manifest_sha256": lock.manifest_sha256,
        "variants": variants,
    }
    return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def read(path: Path) -> Lock:
    """Read and check a lock file, its paths included. Raises ManifestError naming the file and the key."""
    raw = _read_json(path)
    raise_problems(path, schema_problems("lock", raw))
    seen: dict[tuple[str, str], int] = {}
    for index, variant in enumerate(raw["variants"]):
        where = f"{path}: variants[{index}]"
        key = (variant["model"], variant["quant"].casefold())
        if key in seen:
            raise ManifestError(
                f"{where}: {variant['model']} {variant['quant']} is also variants[{seen[key]}]: {_MEND}"
            )
        seen[key] = index
        check_path(variant["model"], f"{where}.model")
        check_path(variant["quant"], f"{where}.quant")
        for number, file in enumerate(variant["files"]):
            check_path(file["path"], f"{where}.files[{number}].path")
        check_distinct([file["path"] for file in variant["files"]], f"{where}.files")
    return new(raw["name"], raw["manifest_sha256"], [_variant(item) for item in raw["variants"]])


def write(path: Path, lock: Lock) -> None:
    """Write the lock so that the file is the old one or the new one, whole. Raises LocalError."""
    try:
        write_atomic(path, render(new(lock.name, lock.manifest_sha256, lock.variants)))
    except OSError as exc:
        raise LocalError(f"{path}: cannot be written ({exc.strerror}): check the folder and the free space") from exc


def check_current(manifest: Manifest, lock: Lock) -> None:
    """Refuse a lock that does not say what the manifest says now. Raises ManifestError with the mend."""
    for difference in _differences(manifest, lock):
        raise ManifestError(f"{path_of(manifest.path)}: {difference}: run `tourkit lock {manifest.path}`")


def resolve(
    manifest: Manifest,
    hub: HubLike[F],
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
    variants = [
        _resolve_variant(manifest, model, variant, asked)
        for model in manifest.models.values()
        for variant in model.variants
    ]
    return new(manifest.name, manifest.digest, variants)


def changes(old: Lock | None, new: Lock) -> list[str]:
    """What `new` pins otherwise than `old`, one line for people per difference; empty when nothing moved."""
    before = {(v.model, v.quant): v for v in old.variants} if old else {}
    after = {(v.model, v.quant): v for v in new.variants}
    lines = []
    for key in sorted(before.keys() | after.keys()):
        name = " ".join(key)
        if key not in after:
            lines.append(f"{name}: removed")
        elif key not in before:
            lines.append(f"{name}: added at {_short(after[key].commit)}, {counted(len(after[key].files), 'file')}")
        else:
            lines.extend(f"{name}: {line}" for line in _variant_changes(before[key], after[key]))
    return lines


_MEND = "run `tourkit lock` on the manifest to write the lock anew"


@dataclass(slots=True)
class _Asked(Generic[F]):
    """What the hub has said so far in one `resolve`, so that it is asked once."""

    hub: HubLike[F]
    progress: Callable[[str], None]
    hashes: dict[tuple[str, str, str, int], str]
    trees: dict[tuple[str, str], tuple[str, Sequence[F]]] = field(default_factory=dict)

    def tree(self, repo: str, revision: str) -> tuple[str, Sequence[F]]:
        if (repo, revision) not in self.trees:
            commit = self.hub.info(repo, revision).commit
            moved = _COMMIT.fullmatch(revision) and commit != revision
            if moved or not _COMMIT.fullmatch(commit):
                raise HubError(f"{repo}@{revision}: the hub answered with commit {commit!r}: check the endpoint")
            files = self.hub.tree(repo, commit)
            self.progress(f"{repo}@{revision}: commit {commit}, {counted(len(files), 'file')}")
            self.trees[repo, revision] = commit, files
        return self.trees[repo, revision]

    def sha256(self, repo: str, commit: str, file: F) -> str:
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
        (variant.repo, variant.commit, file.path, file.size): file.sha256
        for variant in (known.variants if known else ())
        for file in variant.files
        if variant.commit is not None and file.size is not None and file.sha256 is not None
    }


def _resolve_variant(manifest: Manifest, model: Model, variant: Variant, asked: _Asked[F]) -> LockedVariant:
    where = f"{manifest.path}: {model.id} {variant.quant}"
    commit, tree = asked.tree(variant.repo, variant.revision)
    chosen = _chosen(variant, tree, f"{where}: {variant.repo}@{commit}")
    for file in chosen:
        check_path(file.path, f"{where}: {variant.repo}@{commit}")
    check_distinct([file.path for file in chosen], f"{where}: {variant.repo}@{commit}")
    if not any(file.path.endswith(f".{variant.format}") for file in chosen):
        raise ManifestError(f"{where}: no .{variant.format} file among those `files` takes: mend `files` or `format`")
    files = tuple(LockedFile(file.path, file.size, asked.sha256(variant.repo, commit, file)) for file in chosen)
    return LockedVariant(
        model.id, variant.quant, variant.format, variant.repo, variant.revision, commit, files, complete=True
    )


def _chosen(variant: Variant, tree: Sequence[F], where: str) -> list[F]:
    """The files of `tree` that the variant's patterns take, by path; an idle pattern is an error."""
    for pattern in variant.files:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in tree):
            names = [file.path for file in tree]
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or sorted(names)[:3]
            raise ManifestError(
                f"{where}: `files` pattern {pattern!r} matches nothing: the repository has"
                f" {', '.join(near) or 'no files'}"
            )
    taken = {file.path: file for file in tree if _takes(variant, file.path)}
    return [taken[path] for path in sorted(taken)]


def _takes(variant: Variant, path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in variant.files)


def _differences(manifest: Manifest, lock: Lock) -> Iterator[str]:
    """How the lock differs from the manifest, what a person can act on first."""
    if lock.name != manifest.name:
        yield f"this lock is of {lock.name!r}, not of {manifest.name!r}"
    wanted = {(id_, v.quant): v for id_, model in manifest.models.items() for v in model.variants}
    locked = {(v.model, v.quant): v for v in lock.variants}
    for key in sorted(wanted.keys() - locked.keys()):
        yield f"it does not hold {' '.join(key)}, which the manifest names"
    for key in sorted(locked.keys() - wanted.keys()):
        yield f"it holds {' '.join(key)}, which the manifest no longer names"
    for key in sorted(wanted.keys() & locked.keys()):
        want, have = wanted[key], locked[key]
        for name in ("format", "repo", "revision"):
            now, then = getattr(want, name), getattr(have, name)
            if now != then:
                yield f"{' '.join(key)} has {name} {then!r}, the manifest {now!r}"
        if _COMMIT.fullmatch(want.revision) and have.commit not in (None, want.revision):
            yield f"{' '.join(key)} is at commit {have.commit}, the manifest at {want.revision}"
        for file in have.files:
            if not _takes(want, file.path):
                yield f"{' '.join(key)} holds {file.path!r}, which no pattern of the manifest takes"
        for pattern in want.files if have.complete else ():
            if not any(fnmatch.fnmatchcase(file.path, pattern) for file in have.files):
                yield f"{' '.join(key)} has no file for the manifest's pattern {pattern!r}"
    if lock.manifest_sha256 != manifest.digest:
        yield "it was made from another version of the manifest"


def _variant_changes(old: LockedVariant, new: LockedVariant) -> Iterator[str]:
    if (old.repo, old.revision) != (new.repo, new.revision):
        yield f"source {old.repo}@{old.revision} → {new.repo}@{new.revision}"
    if old.commit != new.commit:
        yield f"commit {_short(old.commit)} → {_short(new.commit)}"
    before = {file.path: file for file in old.files}
    after = {file.path: file for file in new.files}
    for path in sorted(before.keys() - after.keys()):
        yield f"{path} removed"
    for path in sorted(after.keys() - before.keys()):
        yield f"{path} added"
    for path in sorted(before.keys() & after.keys()):
        was, now = before[path], after[path]
        if was == now:
            continue
        if was.size is None or was.sha256 is None:
            yield f"{path} resolved"
        else:
            yield f"{path} changed, SHA-256 {was.sha256[:8]}… → {(now.sha256 or 'unknown')[:8]}…"
    if old.complete != new.complete:
        yield f"list of files is now {'complete' if new.complete else 'incomplete'}"


def _short(commit: str | None) -> str:
    return f"{commit[:7]}…" if commit else "unresolved"


def _variant(raw: dict[str, Any]) -> LockedVariant:
    files = tuple(
        LockedFile(file["path"], None if file["size"] is None else int(file["size"]), file["sha256"])
        for file in raw["files"]
    )
    return LockedVariant(
        raw["model"],
        raw["quant"],
        raw["format"],
        raw["repo"],
        raw["revision"],
        raw["commit"],
        files,
        complete=raw["complete"],
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode())
    except FileNotFoundError as exc:
        manifest = path.with_name(path.name.removesuffix(".lock.json") + ".toml")
        raise ManifestError(f"{path}: there is no lock yet: run `tourkit lock {manifest}`") from exc
    except OSError as exc:
        raise ManifestError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{path}: not UTF-8 text: {_MEND}") from exc
    except json.JSONDecodeError as exc:
        raise ManifestError(f"{path}:{exc.lineno}: JSON syntax: {exc.msg}: {_MEND}") from exc
    except (ValueError, RecursionError) as exc:  # a number of 5000 digits, a list 1000 levels deep
        raise ManifestError(f"{path}: a value is too long or too deep for a lock: {_MEND}") from exc

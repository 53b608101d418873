"""Locks: a JSON file beside each manifest. It pins every file to a commit, a size and a SHA-256."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tourkit.errors import LocalError, ManifestError
from tourkit.files import write_atomic
from tourkit.headers.config import values_of
from tourkit.manifest import asset_pins
from tourkit.manifest.asset_pins import AssetPin
from tourkit.manifest.models import (
    Manifest,
    Part,
    PinnedFile,
    PinnedPart,
    Source,
    Variant,
    VariantId,
    pinned,
    wheel_repo,
)
from tourkit.manifest.paths import check_distinct, check_path
from tourkit.manifest.validation import raise_problems, schema_problems
from tourkit.units import counted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_VALUES = 2_000_000  # of a lock, which has about 6 for each file; Python takes about 100 bytes for each
_FIX = "run `tourkit lock` on the manifest to write the lock again"


@dataclass(frozen=True, slots=True)
class LockedVariant:
    """A variant of which everything is known: the commit, and each file that the manifest's patterns take.

    `parts`: the wheels that have the files; empty if a repository has them. Then `commit` is the first 40 hex digits of
    the first wheel's SHA-256.
    """

    model: str
    quant: str
    format: str
    repo: str
    revision: str
    commit: str
    files: tuple[PinnedFile[Source], ...]
    parts: tuple[PinnedPart, ...] = ()

    @property
    def id(self) -> VariantId:
        return VariantId(self.model, self.quant)

    @property
    def complete(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class UnresolvedFile:
    """One file of an unresolved variant. `path`: inside the repository. `size`: bytes. None means not known yet."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class UnresolvedVariant:
    """A variant of which something is not known yet: the commit, a file, a size or a SHA-256.

    `complete`: `files` names every file that the manifest's patterns take.
    """

    model: str
    quant: str
    format: str
    repo: str
    revision: str
    commit: str | None
    files: tuple[UnresolvedFile, ...]
    complete: bool
    parts: tuple[PinnedPart, ...] = ()

    @property
    def id(self) -> VariantId:
        return VariantId(self.model, self.quant)


LockEntry = LockedVariant | UnresolvedVariant


@dataclass(frozen=True, slots=True)
class Lock:
    """What a lock file says. `manifest_sha256`: digest of the manifest. `sha256`: digest of the rendered lock."""

    name: str
    manifest_sha256: str
    variants: tuple[LockEntry, ...]
    sha256: str
    assets: tuple[AssetPin, ...] = ()

    @property
    def resolved(self) -> tuple[LockedVariant, ...]:
        """The variants of which everything is known."""
        return tuple(variant for variant in self.variants if isinstance(variant, LockedVariant))


def path_of(manifest_path: Path) -> Path:
    """Return the path of a manifest's lock: tour-20gb.lock.json beside tour-20gb.toml."""
    return manifest_path.with_name(f"{manifest_path.stem}.lock.json")


def new(name: str, manifest_sha256: str, variants: Sequence[LockEntry], assets: Sequence[AssetPin] = ()) -> Lock:
    """Make a lock in canonical order, with the SHA-256 of its rendering.

    An UnresolvedVariant of which everything is known becomes a LockedVariant.
    """
    ordered = tuple(_in_order(variant) for variant in sorted(variants, key=lambda variant: variant.id))
    pins = tuple(sorted(assets, key=lambda pin: pin.asset.path))
    digest = hashlib.sha256(render(Lock(name, manifest_sha256, ordered, "", pins))).hexdigest()
    return Lock(name, manifest_sha256, ordered, digest, pins)


def render(lock: Lock) -> bytes:
    """Return the bytes of the lock file: sorted keys, indent 2, a newline at the end."""
    content: dict[str, Any] = {
        "schema": 1,
        "name": lock.name,
        "manifest_sha256": lock.manifest_sha256,
        "variants": [_raw(variant) for variant in lock.variants],
    }
    if lock.assets:  # a set without assets keeps the lock that it had before there were any
        content["assets"] = asset_pins.raw_pins(lock.assets)
    return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def _raw(v: LockEntry) -> dict[str, Any]:
    """Return a variant as the lock file has it."""
    raw = {
        "model": v.model,
        "quant": v.quant,
        "format": v.format,
        "repo": v.repo,
        "revision": v.revision,
        "commit": v.commit,
        "complete": v.complete,
        "files": [{"path": path, "size": size, "sha256": sha256} for path, (size, sha256) in facts(v).items()],
    }
    if v.parts:
        parts = [asdict(pin.part) | {"file": pin.file, "size": pin.size, "sha256": pin.sha256} for pin in v.parts]
        raw["parts"] = parts
    return raw


def read(path: Path) -> Lock:
    """Read and check a lock file and the paths in it. Raises ManifestError, which names the file and the key."""
    raw = _read_json(path)
    raise_problems(path, schema_problems("lock", raw))
    seen: dict[VariantId, int] = {}
    for index, variant in enumerate(raw["variants"]):
        where = f"{path}: variants[{index}]"
        key = VariantId(variant["model"], variant["quant"].casefold())
        if key in seen:
            raise ManifestError(f"{where}: {variant['model']} {variant['quant']} is also variants[{seen[key]}]: {_FIX}")
        seen[key] = index
        check_path(variant["model"], f"{where}.model")
        check_path(variant["quant"], f"{where}.quant")
        for number, file in enumerate(variant["files"]):
            check_path(file["path"], f"{where}.files[{number}].path")
        check_distinct([file["path"] for file in variant["files"]], f"{where}.files")
        _check_parts(variant, where)
    assets = asset_pins.pins_of(raw.get("assets", ()), str(path))
    return new(raw["name"], raw["manifest_sha256"], [_entry(item) for item in raw["variants"]], assets)


def _check_parts(variant: dict[str, Any], where: str) -> None:
    """Check what the schema cannot, in a variant of a lock that is inside wheels. Raises ManifestError."""
    parts = variant.get("parts", ())
    for number, part in enumerate(parts):
        check_path(part["path"], f"{where}.parts[{number}].path")
        check_path(part["file"], f"{where}.parts[{number}].file")
        if "/" in part["file"] or not part["file"].endswith(".whl"):
            raise ManifestError(f"{where}.parts[{number}].file: {part['file']!r} is not the name of a wheel: {_FIX}")
    if parts:
        first = parts[0]
        named = (wheel_repo(first["package"]), first["version"], first["sha256"][:40])
        if (variant["repo"], variant["revision"], variant["commit"]) != named:
            raise ManifestError(f"{where}: repo, revision and commit are not those of its first wheel: {_FIX}")


def write(path: Path, lock: Lock) -> None:
    """Write the lock. After a crash the file is the whole old one or the whole new one. Raises LocalError."""
    try:
        write_atomic(path, render(new(lock.name, lock.manifest_sha256, lock.variants, lock.assets)))
    except OSError as exc:
        raise LocalError(f"{path}: cannot be written ({exc.strerror}): check the folder and the free space") from exc


def check_current(manifest: Manifest, lock: Lock) -> None:
    """Refuse a lock that does not fit the manifest as it is now. Raises ManifestError with the fix."""
    for difference in _differences(manifest, lock):
        raise ManifestError(f"{path_of(manifest.path)}: {difference}: run `tourkit lock {manifest.path}`")


def fits(want: Variant, have: LockEntry) -> bool:
    """Return whether an entry of a lock fits this variant of the manifest."""
    return next(_variant_differences(want, have), None) is None


def changes(old: Lock | None, new: Lock) -> list[str]:
    """Return the differences from `old` to `new`, one line each; an empty list if there is none."""
    before = {variant.id: variant for variant in old.variants} if old else {}
    after = {variant.id: variant for variant in new.variants}
    lines = []
    for id_ in sorted(before.keys() | after.keys()):
        if id_ not in after:
            lines.append(f"{id_}: removed")
        elif id_ not in before:
            lines.append(f"{id_}: added at {_short(after[id_].commit)}, {counted(len(after[id_].files), 'file')}")
        else:
            lines.extend(f"{id_}: {line}" for line in _variant_changes(before[id_], after[id_]))
    return [*lines, *asset_pins.changes(old.assets if old else (), new.assets)]


def facts(variant: LockEntry) -> dict[str, tuple[int | None, str | None]]:
    """Return size (bytes) and SHA-256 of each file by its path inside the repository. None means not known yet."""
    if isinstance(variant, LockedVariant):
        return {file.source.path: (file.size, file.sha256) for file in variant.files}
    return {file.path: (file.size, file.sha256) for file in variant.files}


def _differences(manifest: Manifest, lock: Lock) -> Iterator[str]:
    """How the lock differs from the manifest. Differences that a person can act on come first."""
    if lock.name != manifest.name:
        yield f"this is the lock of {lock.name!r}, not of {manifest.name!r}"
    wanted = manifest.variants
    locked = {variant.id: variant for variant in lock.variants}
    for id_ in sorted(wanted.keys() - locked.keys()):
        yield f"it does not hold {id_}, which the manifest names"
    for id_ in sorted(locked.keys() - wanted.keys()):
        yield f"it holds {id_}, which the manifest no longer names"
    for id_ in sorted(wanted.keys() & locked.keys()):
        yield from (f"{id_} {difference}" for difference in _variant_differences(wanted[id_], locked[id_]))
    yield from asset_pins.differences(manifest.assets, lock.assets)
    if lock.manifest_sha256 != manifest.digest:
        yield "it was made from another version of the manifest"


def _variant_differences(want: Variant, have: LockEntry) -> Iterator[str]:
    for name in ("format", "repo", "revision"):
        now, then = getattr(want, name), getattr(have, name)
        if now != then:
            yield f"has {name} {then!r}, the manifest {now!r}"
    if (want.parts or have.parts) and (isinstance(have, LockedVariant) or have.parts):
        if want.parts != tuple(pin.part for pin in have.parts):
            yield "has other parts than the manifest"
    elif _COMMIT.fullmatch(want.revision) and have.commit not in (None, want.revision):
        yield f"is at commit {have.commit}, the manifest at {want.revision}"
    paths = facts(have).keys()
    for path in paths:
        if not want.takes(path):
            yield f"holds {path!r}, which no pattern of the manifest takes"
    for pattern in want.files if have.complete else ():
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            yield f"has no file for the manifest's pattern {pattern!r}"


def _variant_changes(old: LockEntry, new: LockEntry) -> Iterator[str]:
    if (old.repo, old.revision) != (new.repo, new.revision):
        yield f"source {old.repo}@{old.revision} → {new.repo}@{new.revision}"
    if old.commit != new.commit:
        yield f"commit {_short(old.commit)} → {_short(new.commit)}"
    if old.parts[1:] != new.parts[1:]:  # the first part is the commit
        yield f"parts changed, now {', '.join(pin.file for pin in new.parts) or 'none'}"
    before, after = facts(old), facts(new)
    for path in sorted(before.keys() - after.keys()):
        yield f"{path} removed"
    for path in sorted(after.keys() - before.keys()):
        yield f"{path} added"
    for path in sorted(before.keys() & after.keys()):
        (size, was), (_, now) = before[path], after[path]
        if before[path] == after[path]:
            continue
        if size is None or was is None:
            yield f"{path} resolved"
        else:
            yield f"{path} changed, SHA-256 {was[:8]}… → {(now or 'unknown')[:8]}…"
    if old.complete != new.complete:
        yield f"list of files is now {'complete' if new.complete else 'incomplete'}"


def _short(commit: str | None) -> str:
    return f"{commit[:7]}…" if commit else "unresolved"


def _in_order(variant: LockEntry) -> LockEntry:
    """Sort the files of a variant by path. The result is a LockedVariant if everything is known."""
    if isinstance(variant, LockedVariant):
        return replace(variant, files=tuple(sorted(variant.files, key=lambda file: file.path)))
    listed = tuple(sorted(variant.files, key=lambda file: file.path))
    return _resolved(replace(variant, files=listed))


def _resolved(v: UnresolvedVariant) -> LockEntry:
    if v.commit is None or not v.complete or not v.files:
        return v
    files = tuple(
        pinned(v.id, Source(v.repo, v.commit, file.path), file.size, file.sha256)
        for file in v.files
        if file.size is not None and file.sha256 is not None
    )
    if len(files) < len(v.files):
        return v
    return LockedVariant(v.model, v.quant, v.format, v.repo, v.revision, v.commit, files, v.parts)


def _entry(raw: dict[str, Any]) -> UnresolvedVariant:
    """Make a variant from its JSON object. `new` decides whether it is resolved."""
    files = tuple(
        UnresolvedFile(file["path"], None if file["size"] is None else int(file["size"]), file["sha256"])
        for file in raw["files"]
    )
    return UnresolvedVariant(
        raw["model"],
        raw["quant"],
        raw["format"],
        raw["repo"],
        raw["revision"],
        raw["commit"],
        files,
        complete=raw["complete"],
        parts=tuple(
            PinnedPart(Part(part["package"], part["version"], part["path"]), part["file"], part["size"], part["sha256"])
            for part in raw.get("parts", ())
        ),
    )


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if values_of(data) > _MOST_VALUES:
            raise ManifestError(f"{path}: more than {_MOST_VALUES} values, which no lock has: {_FIX}")
        return json.loads(data.decode("utf-8-sig"))
    except FileNotFoundError as exc:
        manifest = path.with_name(path.name.removesuffix(".lock.json") + ".toml")
        raise ManifestError(f"{path}: there is no lock yet: run `tourkit lock {manifest}`") from exc
    except OSError as exc:
        raise ManifestError(f"{path}: cannot be read ({exc.strerror}): check the path and the permissions") from exc
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{path}: not UTF-8 text: {_FIX}") from exc
    except json.JSONDecodeError as exc:
        raise ManifestError(f"{path}:{exc.lineno}: JSON syntax: {exc.msg}: {_FIX}") from exc
    except (ValueError, RecursionError) as exc:  # a number of 5000 digits, a list 1000 levels deep
        raise ManifestError(f"{path}: a value is too long or too deep for a lock: {_FIX}") from exc

"""The files of a bundle besides the weights (skeleton, templates, licences), and the index of all files.

This module writes small files only. The weights are complete before it is called.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tourkit import data
from tourkit.bundle.index import INDEX, BundleAsset, BundleModel, BundleVariant, Index, read_index, variant_files
from tourkit.errors import TourkitError
from tourkit.fetch.download import FetchListener
from tourkit.files import fsync_dir, make_folder_below, write_atomic
from tourkit.manifest.asset_pins import AssetPin
from tourkit.manifest.lock import Lock, LockedVariant
from tourkit.manifest.models import Link, Manifest, Model, PinnedFile, Source

_LICENCE = re.compile(r"(licen[cs]e|copying|notice|use_policy|acceptable_use)([._ -].*)?", re.IGNORECASE)
_LEFTOVER = re.compile(r"(.+)\.[0-9a-f]{12}\.(part|bad)")
_OURS = ("models/", "assets/", "templates/", "licenses/", "START_HERE.", "install.")  # what a prefetch writes
_File = PinnedFile[Source | None]


def assemble(
    manifest: Manifest,
    lock: Lock,
    fetched: Sequence[LockedVariant],
    assets: Sequence[AssetPin],
    root: Path,
    listener: FetchListener,
) -> Index:
    """Write all other files beside the `fetched` variants and their side `assets`, and return the new index.

    Variants and assets of an earlier run with other roles or stacks stay in the index if the lock still names the same
    files. The result depends on the lock and on the files that are there, never on order or time. Raises OSError.
    """
    old = _old_index(manifest, root, listener)
    kept = _kept(old, lock, fetched, root)
    variants = sorted([*fetched, *kept], key=lambda variant: variant.id)
    files: dict[str, _File] = {file.path: file for variant in variants for file in variant.files}
    pins = sorted([*assets, *_kept_assets(old, lock, assets, root)], key=lambda pin: pin.asset.path)
    for file in (pin.file for pin in pins if pin.file is not None):
        files[file.path] = PinnedFile(file.path, file.size, file.sha256, None)
    for path, content in [*_skeleton(), *_templates(), *_licences(manifest, variants, root)]:
        files[path] = _put(root, path, content)
    for other in old.files if old else ():
        if other.path not in files and not other.path.startswith(_OURS) and (root / other.path).is_file():
            files[other.path] = other  # wheels and other files that other commands put there
    _remove_ours(old, files, root)
    for folder in sorted({folder for path in files for folder in (root / path).parents if root in folder.parents}):
        fsync_dir(folder)
    return replace(_index(manifest, lock, variants, files), assets=tuple(BundleAsset.of(pin.asset) for pin in pins))


def clear_leftovers(root: Path, files: Iterable[PinnedFile[Source | Link]]) -> None:
    """Remove part files and wrong content (.bad) of `files`, which are complete now, of every version."""
    whole = {root / file.path for file in files}
    for parent in {path.parent for path in whole}:
        for path in parent.iterdir():
            match = _LEFTOVER.fullmatch(path.name)
            if match and path.with_name(match[1]) in whole and path not in whole:
                path.unlink()


def _index(manifest: Manifest, lock: Lock, variants: Sequence[LockedVariant], files: dict[str, _File]) -> Index:
    present = {variant.model for variant in variants}
    roles = {role: tuple(id_ for id_ in ids if id_ in present) for role, ids in manifest.roles.items()}
    models = [model for id_, model in sorted(manifest.models.items()) if id_ in present]
    return Index(
        name=manifest.name,
        manifest_sha256=lock.manifest_sha256,
        lock_sha256=lock.sha256,
        roles={role: ids for role, ids in roles.items() if ids},
        models=tuple(map(BundleModel.of, models)),
        variants=tuple(BundleVariant(v.model, v.quant, v.format, v.repo, v.revision, v.commit) for v in variants),
        files=tuple(files[path] for path in sorted(files)),
        defaults=tuple(row for row in manifest.defaults if roles.get(row.role)),
    )


def _old_index(manifest: Manifest, root: Path, listener: FetchListener) -> Index | None:
    if not (root / INDEX).exists():
        return None
    try:
        old = read_index(root)
    except TourkitError as exc:
        listener.on_note(f"{exc} (it is written again now)")
        return None
    if old.name != manifest.name:
        listener.on_note(f"{root}: it was the bundle of {old.name!r}, it is now the bundle of {manifest.name!r}")
    return old


def _kept(old: Index | None, lock: Lock, fetched: Sequence[LockedVariant], root: Path) -> Iterator[LockedVariant]:
    """Yield the variants of the earlier index that the lock names with the same files and that are still there."""
    if old is None or old.name != lock.name:
        return
    before = {variant.id: variant for variant in old.variants}
    done = {variant.id for variant in fetched}
    for variant in lock.resolved:
        was = before.get(variant.id)
        if was is None or variant.id in done or was.commit != variant.commit:
            continue
        there = all(_is_there(root / file.path, file.size) for file in variant.files)
        if there and variant.files and variant.files == variant_files(old, was):
            yield variant


def _kept_assets(old: Index | None, lock: Lock, fetched: Sequence[AssetPin], root: Path) -> Iterator[AssetPin]:
    """Yield the assets of the earlier index that the lock names with the same bytes and that are still there."""
    before = {file.path: file.sha256 for file in old.files} if old is not None and old.name == lock.name else {}
    for pin in lock.assets:
        file = pin.file
        if file is None or pin in fetched or before.get(file.path) != file.sha256:
            continue
        if _is_there(root / file.path, file.size):
            yield pin


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _skeleton() -> Iterator[tuple[str, bytes]]:
    """Yield START_HERE in each language and the install scripts. In ./bundle of a checkout they are already there."""
    for path in sorted(data.BUNDLE_SKELETON.glob("*")):
        if path.is_file() and path.name.startswith(("START_HERE.", "install.")):
            yield path.name, path.read_bytes()


def _templates() -> Iterator[tuple[str, bytes]]:
    for path in sorted(data.TEMPLATES.rglob("*")):
        below = path.relative_to(data.TEMPLATES)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in below.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield f"templates/{below.as_posix()}", path.read_bytes()


def _licences(manifest: Manifest, variants: Sequence[LockedVariant], root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a note for every model, and a copy of every licence text among its files."""
    for id_ in sorted({variant.model for variant in variants}):
        own = [variant for variant in variants if variant.model == id_]
        yield f"licenses/{id_}.txt", _note(manifest.models[id_], own).encode()
        for variant in own:
            for file in variant.files:
                if _LICENCE.fullmatch(Path(file.path).name):
                    yield f"licenses/{id_}/{variant.quant}/{file.source.path}", (root / file.path).read_bytes()


def _note(model: Model, variants: Sequence[LockedVariant]) -> str:
    gated = {True: "yes, whoever fetched it accepted its terms", False: "no", None: "not known"}
    lines = [
        f"model:    {model.id}",
        f"upstream: {model.repo}",
        f"licence:  {model.license}",
        f"gated:    {gated[model.gated]}",
        "",
        "Files in this bundle:",
    ]
    for variant in variants:
        lines.append(f"  {variant.quant} ({variant.format}) from {variant.repo}, commit {variant.commit}")
    lines += [
        "",
        f"The full text is on the model's page of the hub ({model.repo}) and, if the repository",
        f"has it, in licenses/{model.id}/. It binds everybody who uses or passes on these files.",
    ]
    return "\n".join(lines) + "\n"


def _put(root: Path, path: str, content: bytes) -> PinnedFile[None]:
    """Write `content` to `path`, unless the file already holds it."""
    dest = root / path
    make_folder_below(root, str(PurePosixPath(path).parent))
    if dest.is_symlink() or not (dest.is_file() and dest.read_bytes() == content):
        write_atomic(dest, content)
        if dest.suffix == ".sh":
            dest.chmod(0o755)
    return PinnedFile(path, len(content), hashlib.sha256(content).hexdigest(), None)


def _remove_ours(old: Index | None, files: dict[str, _File], root: Path) -> None:
    """Remove templates, licences and assets that an earlier run wrote and this run does not. Other files stay."""
    for file in old.files if old else ():
        path = root / file.path
        if file.path in files or not file.path.startswith(("templates/", "licenses/", "assets/")):
            continue
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
            path.unlink()

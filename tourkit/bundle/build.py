"""Making an index out of files that are there."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tourkit.bundle.index import OWN_FILES, BundleFile, BundleModel, BundleVariant, Index, variant_dir
from tourkit.bundle.scan import hash_all, scan
from tourkit.errors import UsageError
from tourkit.manifest.paths import check_path


def build_index(
    root: Path,
    name: str,
    roles: Mapping[str, Iterable[str]],
    models: Iterable[BundleModel],
    variants: Iterable[BundleVariant],
    sources: Mapping[str, str] | None = None,
    *,
    manifest_sha256: str = "",
    lock_sha256: str = "",
    jobs: int | None = None,
) -> Index:
    """The index of the files that lie below `root`, each hashed; `write_index` makes them a bundle.

    A file below a variant's folder gets that variant's repo and commit and, as source, its path below the
    folder unless `sources` (by path in the bundle) says otherwise. Raises UsageError for what cannot be held.
    """
    found = scan(root)
    for path, what in (found.other | found.unreadable).items():
        raise UsageError(f"{root / path}: {what}: a bundle holds plain, readable files only")
    plain = {path: size for path, size in found.plain.items() if path not in OWN_FILES}
    for path in plain:
        check_path(path, str(root))
    hashes = hash_all(root, plain, jobs, None)
    variants = tuple(variants)
    files = []
    for path, size in sorted(plain.items()):
        digest = hashes[path]
        if isinstance(digest, OSError):
            raise UsageError(f"{root / path}: cannot be read ({digest.strerror})") from digest
        owner = next((v for v in variants if path.startswith(variant_dir(v.model, v.quant) + "/")), None)
        if owner is None:
            files.append(BundleFile(path, size, digest, None, None, None))
        else:
            source = (sources or {}).get(path, path.removeprefix(variant_dir(owner.model, owner.quant) + "/"))
            files.append(BundleFile(path, size, digest, owner.repo, owner.commit, source))
    ordered = {role: tuple(ids) for role, ids in roles.items()}
    return Index(name, manifest_sha256, lock_sha256, ordered, tuple(models), variants, tuple(files))

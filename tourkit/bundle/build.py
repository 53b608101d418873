"""Build an index from the files that are in a folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tourkit.bundle.index import OWN_FILES, BundleModel, BundleVariant, Index
from tourkit.bundle.scan import scan, sha256_of_all
from tourkit.errors import UsageError
from tourkit.manifest.models import PinnedFile, Source
from tourkit.manifest.paths import check_path


def build_index(
    root: Path,
    name: str,
    roles: Mapping[str, Iterable[str]],
    models: Iterable[BundleModel],
    variants: Iterable[BundleVariant],
) -> Index:
    """Return the index of all files below `root`. Every file is hashed. `write_index` then makes the folder a bundle.

    A file below a variant's folder gets that variant's repository and commit as its source, with its path below the
    folder. Raises UsageError for a file that a bundle cannot hold: a link, an unreadable file, a bad name.
    """
    found = scan(root)
    for path, what in (found.other | found.unreadable).items():
        raise UsageError(f"{root / path}: {what}: a bundle holds plain, readable files only")
    sizes = {path: size for path, size in found.plain.items() if path not in OWN_FILES}
    for path in sizes:
        check_path(path, str(root))
    hashes = sha256_of_all(root, sizes)
    variants = tuple(variants)
    files = []
    for path, size in sorted(sizes.items()):
        digest = hashes[path]
        if isinstance(digest, OSError):
            raise UsageError(f"{root / path}: cannot be read ({digest.strerror})") from digest
        files.append(PinnedFile(path, size, digest, _source(path, variants)))
    ordered = {role: tuple(ids) for role, ids in roles.items()}
    return Index(name, "", "", ordered, tuple(models), variants, tuple(files))


def _source(path: str, variants: Iterable[BundleVariant]) -> Source | None:
    for variant in variants:
        folder = f"{variant.id.folder}/"
        if path.startswith(folder):
            return Source(variant.repo, variant.commit, path.removeprefix(folder))
    return None

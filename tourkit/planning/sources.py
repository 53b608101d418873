"""The input of a plan: the index of a bundle, or one made from a manifest and its lock, and the models' shapes."""

from __future__ import annotations

from pathlib import Path

from tourkit.bundle.index import BundleModel, BundleVariant, Index
from tourkit.errors import ManifestError
from tourkit.manifest import manifest as manifests
from tourkit.manifest.lock import Lock, LockedVariant, LockEntry
from tourkit.manifest.models import Manifest, PinnedFile, Source, VariantId
from tourkit.planning.model_shape import Shape, of_file, of_model
from tourkit.planning.options import weights_of


def index_of(manifest: Manifest, lock: Lock) -> Index:
    """Return the index of the bundle that `prefetch` would make. A variant of unknown size gets no files."""
    models = tuple(map(BundleModel.of, manifest.models.values()))
    variants = tuple(
        BundleVariant(id_.model, id_.quant, v.format, v.repo, v.revision, "") for id_, v in manifest.variants.items()
    )
    files = tuple(file for v in lock.variants if v.id in manifest.variants for file in _files(v))
    return Index(
        manifest.name,
        manifest.sha256,
        lock.sha256,
        dict(manifest.roles),
        models,
        variants,
        files,
        defaults=manifest.defaults,
    )


def shapes_of_manifest(manifest: Manifest) -> dict[VariantId, Shape]:
    """Return the shapes of the models whose catalogue file states the numbers."""
    return {
        VariantId(model.id, variant.quant): shape
        for model in manifest.models.values()
        if (shape := of_model(model)) is not None
        for variant in model.variants
    }


def shapes_of_bundle(root: Path, index: Index) -> dict[VariantId, Shape]:
    """Return the shapes from the files' own headers, else from the catalogue entry with the model's id."""
    shapes: dict[VariantId, Shape] = {}
    stated = _catalogue()
    for variant in index.variants:
        weights = weights_of(index, variant)
        shape = of_file(root / weights[0]) if weights is not None else None
        shape = shape or stated.get(variant.model)
        if shape is not None:
            shapes[variant.id] = shape
    return shapes


def _catalogue() -> dict[str, Shape]:
    try:
        models = manifests.catalogue().values()
    except ManifestError:  # a complete bundle can be served even if the catalogue is damaged
        return {}
    return {model.id: shape for model in models if (shape := of_model(model)) is not None}


def _files(variant: LockEntry) -> list[PinnedFile[Source | None]]:
    """Return the files of known size; none if the size of the weights is unknown. A hash may be "": plans read none."""
    if isinstance(variant, LockedVariant):
        return list(variant.files)
    weights = [file for file in variant.files if f".{variant.format}" in file.path.lower()]
    if not weights or any(file.size is None for file in weights):
        return []
    return [
        PinnedFile(f"{variant.id.folder}/{file.path}", file.size, file.sha256 or "", None)
        for file in variant.files
        if file.size is not None
    ]

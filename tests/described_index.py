"""The index of a bundle that is only described: models and variants with sizes, and no files."""

from __future__ import annotations

from tourkit.bundle.index import BundleModel, BundleVariant, Index
from tourkit.manifest.models import PinnedFile, Source, VariantId
from tourkit.units import GIB


def index(roles: dict[str, tuple[str, ...]], sizes: dict[str, dict[str, float]], context: int = 8192) -> Index:
    """Return a bundle index. Weight sizes, by model and quant, in GiB. A quant has the format of its usual stack."""
    variants, files = [], []
    for model, quants in sizes.items():
        for quant, size in quants.items():
            fmt = "onnx" if "ONNX" in quant else "gguf" if quant[0] == "Q" or quant == "F16" else "safetensors"
            variants.append(BundleVariant(model, quant, fmt, f"me/{model}", "main", "1" * 40))
            path = f"{VariantId(model, quant).folder}/{model}.{fmt}"
            files.append(PinnedFile(path, int(size * GIB), "0" * 64, Source(f"me/{model}", "1" * 40, path)))
    models = tuple(BundleModel(model, f"me/{model}", "mit", context, None, False) for model in sizes)
    return Index("set", "", "", roles, models, tuple(variants), tuple(files))

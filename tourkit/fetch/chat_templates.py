"""Refuses base models for chat roles: it looks for a chat template in the files that were fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tourkit.errors import LocalError, ManifestError
from tourkit.headers.chat_template import folder_has_template, gguf_has_template
from tourkit.headers.gguf import gguf_parts
from tourkit.manifest.base_models import FIX, chat_models
from tourkit.manifest.lock import LockedVariant
from tourkit.manifest.models import Manifest


def check_templates(manifest: Manifest, variants: Sequence[LockedVariant], root: Path) -> None:
    """Refuse the `variants` of models that must answer chats and have no chat template. Their files are in `root`.

    A file whose header cannot be read is not refused here: the worker says what is wrong with it. Raises ManifestError.
    """
    lines = list(_without_template(manifest, variants, root))
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise ManifestError(f"{manifest.path}: {lines[0]}{more}: {FIX}", details=tuple(lines) if more else ())


def _without_template(manifest: Manifest, variants: Sequence[LockedVariant], root: Path) -> Iterator[str]:
    roles = chat_models(manifest.roles, manifest.models)
    for variant in variants:
        role = roles.get(variant.id.model)
        if role is not None and _has_template(variant, root) is False:
            yield f"{variant.id}: its files have no chat template, so it is a base model and cannot answer as {role}"


def _has_template(variant: LockedVariant, root: Path) -> bool | None:
    """Return whether the files of a variant have a chat template; None if they do not say so."""
    paths = [root / file.path for file in variant.files if file.path.lower().endswith(f".{variant.format}")]
    try:
        if variant.format == "gguf":
            firsts = [path for path in paths if path.name == gguf_parts(path.name)[0]]
            found = [gguf_has_template(path) for path in firsts]
        else:
            found = [folder_has_template(folder) for folder in {path.parent for path in paths}]
    except (LocalError, OSError):
        return None
    return None if not found or None in found else all(found)

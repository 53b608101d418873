"""The paths of tourkit's data folders: at the top level of a checkout, or inside the wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "_data"
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent

MANIFESTS = _ROOT / "manifests"
MODELS = MANIFESTS / "models"
TEMPLATES = _ROOT / "templates"
BUNDLE_SKELETON = _ROOT / "bundle"
TINY = _ROOT / "weights" / "tiny"  # the wheel has only its GGUF and its documents
TINY_GGUF = TINY / "gguf" / "tiny-f16.gguf"
TINY_DOCUMENTS = TINY / "documents"  # <template>/documents.jsonl and gold.jsonl

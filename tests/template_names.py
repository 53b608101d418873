"""The templates: the folders below templates/, and those whose task the tiny model has learnt."""

from tourkit.data import TEMPLATES, TINY_DOCUMENTS

NAMES = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
TAUGHT = sorted(path.name for path in TINY_DOCUMENTS.glob("*/") if path.name in NAMES)

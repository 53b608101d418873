"""Whether the files of a model have a chat template. A base model has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tourkit.headers.bounds import opened
from tourkit.headers.config import json_object
from tourkit.headers.gguf_reader import ARRAY, STRING, TEMPLATE, GgufReader

_TOKENS = "tokenizer.ggml.tokens"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_JSON = "chat_template.json"
_TEMPLATE_FILE = "chat_template.jinja"


def gguf_has_template(path: Path) -> bool | None:
    """Return whether the header of a GGUF file has a chat template; None for a file without a vocabulary.

    Some files have several templates with names: "tokenizer.chat_template.tool_use" counts too. Raises OSError;
    LocalError if the header cannot be read.
    """
    has_vocabulary = False
    with opened(path) as (file, size):
        reader = GgufReader(path, file, size)
        for key, kind in reader.each_key():
            if key.startswith(TEMPLATE):
                return True
            has_vocabulary = has_vocabulary or key == _TOKENS
            if kind == ARRAY and key.startswith("tokenizer."):
                reader.entries(distinct=False)
            elif kind == STRING and key.startswith("tokenizer."):
                reader.pass_text()
            else:
                reader.value(kind)
    return False if has_vocabulary else None


def folder_has_template(folder: Path) -> bool | None:
    """Return whether a folder of safetensors or ONNX has a chat template; None without a tokenizer_config.json.

    Raises OSError; LocalError for a file that is no JSON object.
    """
    if (folder / _TEMPLATE_FILE).is_file():
        return True
    files = [folder / name for name in (_TEMPLATE_JSON, _TOKENIZER_CONFIG) if (folder / name).is_file()]
    if any(_template_in(json_object(file)) for file in files):
        return True
    return False if folder / _TOKENIZER_CONFIG in files else None


def _template_in(config: dict[str, Any]) -> bool:
    return bool(config.get("chat_template"))

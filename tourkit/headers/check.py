"""Checks the headers of all files of a model before a library that loads models gets them."""

from __future__ import annotations

from pathlib import Path

from tourkit.errors import LocalError
from tourkit.headers.config import CONFIG, SHARDS, folder_config, json_object, shard_names
from tourkit.headers.gguf import check_gguf, gguf_parts, is_gguf
from tourkit.headers.safetensors import check_safetensors

_GENAI = "genai_config.json"


def check_weights(path: Path) -> None:
    """Read the headers of a model. `path`: a GGUF file, the first part of a split one, or a folder or a file in it.

    Raises LocalError for a header that no model has; the message names the file and the key. What is missing is no
    error here: the stack knows what it needs.
    """
    try:
        if path.is_file() and is_gguf(path):
            parts = [path.with_name(name) for name in gguf_parts(path.name)]
            heads = [check_gguf(part) for part in parts if part.is_file()]
            is_whole = len(heads) == len(parts)
            if is_whole and any(head.needed for head in heads) and not any(head.there for head in heads):
                fix = "choose another conversion of this model"
                raise LocalError(f"{path}: a reranker without the weights of its head, which gives the scores: {fix}")
        elif path.exists():
            _check_folder(path if path.is_dir() else path.parent)
    except OSError as exc:
        where = exc.filename or path
        raise LocalError(f"{where}: cannot be read ({exc.strerror}): check the drive and the permissions") from exc


def _check_folder(folder: Path) -> None:
    """Check the files of a folder in Hugging Face's layout, or of one that onnxruntime-genai's builder wrote."""
    if (folder / CONFIG).is_file():
        folder_config(folder)
    if (folder / SHARDS).is_file():
        shard_names(folder / SHARDS)
    for each in sorted(folder.glob("*.safetensors")):
        if each.is_file():
            check_safetensors(each)
    for each in sorted(folder.rglob(_GENAI)):
        if each.is_file():
            json_object(each)

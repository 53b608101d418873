"""Weights without a bundle: one GGUF file (or a split one), or one folder of safetensors, as an index to plan with.

Nothing is hashed. This module refuses a path that cannot be the weights of a model. The worker finds out later whether
its stack can load them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tourkit.bundle.index import INDEX, BundleModel, BundleVariant, Index
from tourkit.errors import UsageError
from tourkit.headers.config import SHARDS, folder_config, shard_names
from tourkit.headers.gguf import gguf_header, gguf_parts, is_gguf
from tourkit.manifest.models import CHAT_ROLES, PinnedFile, VariantId
from tourkit.manifest.paths import PICKLED
from tourkit.planning.model_shape import Shape, of_file

_EMBED, _RERANK = "embed", "rerank"
_UNKNOWN = "unknown"  # the quant when neither a name nor a header states it
_UNSTATED_CONTEXT = 4096  # tokens, when no header states the context window
_LONGEST_ID = 64  # characters
_NOT_IN_ID = re.compile(r"[^a-z0-9._-]+")
_QUANT_IN_NAME = re.compile(
    r"(?P<model>.+?)[-._]"
    r"(?P<quant>(?:UD-|i1-)?(?:I?Q|TQ)\d+(?:_(?:\d|K|S|M|L|NL|XS|XXS|XL|XXL))*|BF16|F16|FP16|F32|FP32|MXFP4(?:_MOE)?)",
    re.IGNORECASE,
)
# The numbers of `general.file_type` in the GGUF specification (llama_ftype in llama.h); "-" is not in use any more.
_FILE_TYPE_NAMES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS "
    "IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE "
    "NVFP4 Q1_0"
)
FILE_TYPES = {number: name for number, name in enumerate(_FILE_TYPE_NAMES.split()) if name != "-"}
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Weights:
    """One variant that is in no bundle. `path`: what a stack opens, absolute: the (first) GGUF file, or the folder.

    The paths in `index` are names only: no file is there.
    """

    path: Path
    index: Index
    shapes: Mapping[VariantId, Shape]


def read_weights(path: Path) -> Weights:
    """Describe a GGUF file or a folder of safetensors by its name, header and sizes. Links are followed.

    Raises UsageError for a path that is not the weights of a model, LocalError for a damaged header, OSError.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder: check the path")
    return _of_gguf(path)


def named(file_name: str) -> tuple[str, str | None]:
    """Return the model id and the quant that the name of a GGUF file states; None for a quant that it does not state.

    The id is in lower case and without the suffixes of quants and splits.
    """
    stem = re.sub(r"(?:-\d{5}-of-\d{5})?\.gguf$", "", file_name, flags=re.IGNORECASE)
    found = _QUANT_IN_NAME.fullmatch(stem)
    return (_model_id(found["model"]), found["quant"].upper()) if found else (_model_id(stem), None)


def quant_of_config(config: Mapping[str, Any]) -> str:
    """Return the quant that a config.json states, in the names that planning/options.py knows."""
    config = dict(config.get("text_config") or {}) | dict(config)
    quantisation = config.get("quantization_config") or {}
    method = str(quantisation.get("quant_method") or "")
    if method in ("awq", "gptq"):
        return f"{method.upper()}-INT{quantisation.get('bits', 4)}"
    if method == "bitsandbytes":
        return "bnb-4bit" if quantisation.get("load_in_4bit") else "bnb-8bit"
    if method == "compressed-tensors":
        return _compressed(quantisation)
    if method:
        return method.upper()
    # A config.json without a dtype means float32: it is the default of transformers.
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), _UNKNOWN)


def _compressed(quantisation: Mapping[str, Any]) -> str:
    """FP8, FP4, or bits of weights and activations such as W4A16."""
    groups: Mapping[str, Any] = quantisation.get("config_groups") or {}
    group: Mapping[str, Any] = next(iter(groups.values()), {}) or {}
    weights, activations = group.get("weights") or {}, group.get("input_activations") or {}
    bits = weights.get("num_bits", 4)
    return f"FP{bits}" if weights.get("type") == "float" else f"W{bits}A{activations.get('num_bits', 16)}"


def _of_gguf(path: Path) -> Weights:
    if path.suffix.lower() == ".safetensors":
        raise UsageError(f"{path}: one file of a model: give its folder, {path.parent}")
    if not is_gguf(path):
        raise UsageError(f"{path}: not a GGUF file: give a .gguf file, or a folder with config.json and .safetensors")
    first, *others = _parts(path)
    header = gguf_header(first)
    kind = header.get("general.type", "model")
    if kind != "model":
        raise UsageError(f"{path}: a GGUF of type {kind!r}, which is not a model: give the GGUF file of the model")
    model, quant = named(path.name)
    quant = quant or FILE_TYPES.get(header.get("general.file_type", -1), _UNKNOWN)
    return _described(first, "gguf", model, quant, [first, *others])


def _parts(path: Path) -> list[Path]:
    """All files of the model, the first part first. The parts are beside the file that a link points to.

    The hub's cache names the target of a link by a hash. Then the parts are beside the link.
    """
    real = path.resolve()
    first = real if real.suffix.lower() == ".gguf" else path.absolute()
    names = gguf_parts(first.name)
    if first.name != names[0]:
        number = names.index(first.name) + 1
        raise UsageError(f"{path}: part {number} of {len(names)}: give the first part, {first.with_name(names[0])}")
    files = [first.with_name(name) for name in names]
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file}: no such file: a split model needs all {len(files)} parts in one folder")
    return files


def _of_folder(path: Path) -> Weights:
    if (path / INDEX).is_file():
        raise UsageError(f"{path}: a bundle: give it with --bundle")
    files = _safetensors(path)
    if not (path / "config.json").is_file():
        raise UsageError(f"{path}: no config.json: give the folder as Hugging Face lays it out")
    config = folder_config(path)
    return _described(path.absolute(), "safetensors", _model_id(_folder_name(path)), quant_of_config(config), files)


def _safetensors(folder: Path) -> list[Path]:
    """The weight files: those that the folder's own list names, else all of them."""
    listing = folder / SHARDS
    if listing.is_file():
        names = shard_names(listing)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UsageError(f"{folder / missing[0]}: no such file: {listing.name} names it: copy or download it")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    ggufs = sorted(folder.glob("*.gguf"))
    pickles = sorted(each for each in folder.iterdir() if each.suffix.lower() in PICKLED)
    if ggufs:
        raise UsageError(f"{folder}: a folder of GGUF files: give one of them, such as {ggufs[0]}")
    if pickles:
        raise UsageError(f"{pickles[0]}: a pickle, which can run code when loaded: give safetensors or a GGUF file")
    raise UsageError(
        f"{folder}: no .safetensors files: give a folder with config.json and .safetensors, or a GGUF file"
    )


def _folder_name(path: Path) -> str:
    """The name of the folder. A snapshot in the hub's cache is named by its commit: then that of the repository."""
    path = path.absolute() if path.name not in ("", "..") else path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.name


def _model_id(name: str) -> str:
    return _NOT_IN_ID.sub("-", name.lower())[:_LONGEST_ID].strip("._-") or "model"


def _described(path: Path, format_: str, model: str, quant: str, files: Iterable[Path]) -> Weights:
    """One model with one variant, under every role that it can fill."""
    shape = of_file(path)
    roles: tuple[str, ...] = CHAT_ROLES
    if shape is not None and shape.embeds:
        roles = (_RERANK,) if shape.reranks else (_EMBED,)
    context = (shape.context if shape is not None else 0) or _UNSTATED_CONTEXT
    variant = VariantId(model, quant)
    index = Index(
        name=model,
        manifest_sha256="",
        lock_sha256="",
        roles=dict.fromkeys(roles, (model,)),
        models=(BundleModel(model, model, "unknown", context, None, None),),
        variants=(BundleVariant(model, quant, format_, model, "", ""),),
        files=tuple(
            PinnedFile(f"{variant.folder}/{number:05}.{format_}", file.stat().st_size, "", None)
            for number, file in enumerate(files, 1)
        ),
    )
    return Weights(path, index, {variant: shape} if shape is not None else {})

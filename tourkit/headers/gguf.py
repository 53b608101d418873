"""The facts in the header of a GGUF file, each within its bound. No library that loads models is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tourkit.headers import bounds
from tourkit.headers.bounds import opened, refused, shown, whole, whole_or_each
from tourkit.headers.gguf_reader import ARRAY, FLOAT32, INT32, MAGIC, STRING, TEMPLATE, UINT32, GgufReader

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKENS = "tokenizer.ggml.tokens"
_ALIGNMENT = "general.alignment"
_RANK = 4  # the pooling of a reranker

# Numbers that plans and loaders build from, by the key after the architecture's name.
_NUMBERS = {
    "block_count": bounds.LAYERS,
    "context_length": bounds.CONTEXT,
    "embedding_length": bounds.WIDTH,
    "embedding_length_per_layer_input": bounds.WIDTH,
    "leading_dense_block_count": bounds.LAYERS,
    "vocab_size": bounds.VOCABULARY,
    "expert_count": bounds.EXPERTS,
    "expert_used_count": bounds.EXPERTS,
    "expert_group_count": bounds.EXPERTS,
    "expert_group_used_count": bounds.EXPERTS,
    "attention.key_length": bounds.HEAD_SIZE,
    "attention.value_length": bounds.HEAD_SIZE,
    "attention.key_length_swa": bounds.HEAD_SIZE,
    "attention.value_length_swa": bounds.HEAD_SIZE,
    "attention.shared_kv_layers": bounds.LAYERS,
    "pooling_type": bounds.POOLING,
    "full_attention_interval": bounds.LAYERS,
    "nextn_predict_layers": bounds.LAYERS,
    "shortconv.l_cache": bounds.STATE,
    "ssm.conv_kernel": bounds.STATE,
    "ssm.group_count": bounds.HEADS,
    "ssm.inner_size": bounds.WIDTH,
    "ssm.state_size": bounds.STATE,
    "token_shift_count": bounds.STATE,
    "wkv.head_size": bounds.STATE,
}
_PER_LAYER = {
    "feed_forward_length": bounds.FEED_FORWARD,
    "expert_feed_forward_length": bounds.FEED_FORWARD,
    "attention.head_count": bounds.HEADS,
    "attention.head_count_kv": bounds.HEADS,
}
_AT_LEAST_ONE = ("block_count", "embedding_length")  # llama.cpp aborts if a model has no layers
# llama.cpp aborts if one of these arrays has values of another type.
_TYPES = {
    _TOKENS: (STRING,),
    "tokenizer.ggml.merges": (STRING,),
    "tokenizer.ggml.scores": (FLOAT32,),
    "tokenizer.ggml.token_type": (UINT32, INT32),
}
_FOR_EACH_TOKEN = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")  # llama.cpp reads one value for each token


def is_gguf(path: Path) -> bool:
    """Return whether a file starts as every GGUF file does. Raises OSError; LocalError for a special file."""
    with opened(path) as (file, _):
        return file.read(len(MAGIC)) == MAGIC


def gguf_parts(name: str) -> tuple[str, ...]:
    """Return the file names of all parts of the split GGUF that the file `name` belongs to, the first part first.

    The answer is `name` alone for a model in one file.
    """
    found = _SPLIT.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return (name,)
    count = int(found["count"])
    return tuple(f"{found['stem']}-{number:05}-of-{count:05}{found['suffix']}" for number in range(1, count + 1))


def gguf_header(path: Path) -> dict[str, Any]:
    """Return the keys and values of a GGUF file up to its vocabulary: `general.*` and those of the architecture.

    Writers put these first. The vocabulary is the first array with a key `tokenizer.*`: only its length is kept, and
    nothing after it is read. So only some kilobytes are read, whatever the size of the file. Raises OSError; LocalError
    if the file is no GGUF, is truncated, or states a number that no model has.
    """
    header: dict[str, Any] = {}
    with opened(path) as (file, size):
        reader = GgufReader(path, file, size)
        for key, kind in reader.each_key():
            if kind == ARRAY and key.startswith("tokenizer."):
                header[key] = reader.array_head()[1]
                break
            header[key] = reader.value(kind)
    _check_numbers(path, header)
    return header


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a reranker. `needed`: the header says that the model is one. `there`: the file has its weights."""

    needed: bool
    there: bool


def check_gguf(path: Path) -> Head:
    """Read the whole header of a GGUF file, vocabulary and list of tensors included. Raises as `gguf_header` does.

    Also refuses what would end the process inside llama.cpp: a model without layers, or a token that is there twice.
    """
    header: dict[str, Any] = {}
    kinds: dict[str, int] = {}
    arrays: dict[str, int] = {}  # by key: the type of its values
    with opened(path) as (file, size):
        reader = GgufReader(path, file, size)
        for key, kind in reader.each_key():
            if key in header:
                raise refused(path, f"{shown(key)} is there twice")
            kinds[key] = kind
            if kind == ARRAY and key.startswith("tokenizer."):
                arrays[key], header[key] = reader.entries(distinct=key == _TOKENS)
            elif kind == STRING and key.startswith("tokenizer.") and not key.startswith(TEMPLATE):
                header[key] = reader.pass_text()
            else:
                header[key] = reader.value(kind)
        has_head = reader.check_tensors()
    _check_numbers(path, header)
    _check_vocabulary(path, header, arrays)
    _check_experts(path, header)
    alignment = header.get(_ALIGNMENT, 32)
    if kinds.get(_ALIGNMENT, UINT32) != UINT32 or alignment.bit_count() != 1:
        raise refused(path, f"{_ALIGNMENT} is {shown(alignment)}, not a power of two")
    return Head(header.get(f"{header.get('general.architecture')}.pooling_type") == _RANK, has_head)


def _check_numbers(path: Path, header: dict[str, Any]) -> None:
    """Compare the numbers that plans and loaders build from with their bounds. A number that is absent is no error."""
    for key in ("general.architecture", "general.type"):
        if key in header and not (isinstance(header[key], str) and _NAME.fullmatch(header[key])):
            raise refused(path, f"{key} is {shown(header[key])}, not a name")
    for key, most in (("general.file_type", bounds.FILE_TYPE), (_TOKENS, bounds.VOCABULARY)):
        if key in header:
            whole(header[key], path, key, most)
    name = header.get("general.architecture", "")
    for suffix, most in _NUMBERS.items():
        if (key := f"{name}.{suffix}") in header:
            whole(header[key], path, key, most, least=int(suffix in _AT_LEAST_ONE))
    for suffix, most in _PER_LAYER.items():
        if (key := f"{name}.{suffix}") in header:
            whole_or_each(header[key], path, key, most)


def _check_vocabulary(path: Path, header: dict[str, Any], arrays: dict[str, int]) -> None:
    """Refuse lists that do not fit together, or are none. `arrays`: the type of the values by key."""
    for key, allowed in _TYPES.items():
        if key in header and arrays.get(key) not in allowed:
            raise refused(path, f"{key} is not an array of values of type {allowed[-1]}")
    for key in _FOR_EACH_TOKEN:
        if key in header and header[key] != header.get(_TOKENS):
            raise refused(path, f"{key} has {header[key]} values for {header.get(_TOKENS, 0)} tokens")


def _check_experts(path: Path, header: dict[str, Any]) -> None:
    """Refuse numbers of experts that do not fit together: llama.cpp aborts."""
    name = header.get("general.architecture", "")
    keys = ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count")
    there, used, groups, groups_used = (header.get(f"{name}.{key}", 0) for key in keys)
    if there <= 1 and name.startswith("hunyuan"):  # llama.cpp takes one expert as none in this family
        return
    if used > there or bool(used) != bool(there):
        raise refused(path, f"{name}.expert_used_count is {used}, but {name}.expert_count is {there}")
    odd = groups > 1 and (there % groups or not 0 < groups_used < groups)
    if (groups and groups >= there) or odd:
        raise refused(path, f"{name}.expert_group_count is {groups}, which does not fit {there} experts")

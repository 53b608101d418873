"""A seeded generator of files as strangers may write them: headers of weights, manifests, locks and indexes.

Each kind starts from a file that is right, and changes some of its bytes, numbers, keys and lengths.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from tourkit.bundle.index import INDEX, read_index
from tourkit.errors import TourkitError
from tourkit.headers.check import check_weights
from tourkit.manifest import lock, manifest
from tourkit.planning.weights import read_weights

KINDS = ("gguf", "safetensors", "config", "shards", "manifest", "lock", "index")

_COMMIT, _SHA256 = "0123456789abcdef0123456789abcdef01234567", "5" * 64
_INTEGERS = (0, 1, -1, 2, 127, 2**16, 40_000_000, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    "x",
    "4096",
    "\x1b[2J",
    "a\nb",
    "../../etc/shadow",
    "/dev/zero",
    "\u202egpj.exe",
    "é" * 300,
    "C:\\x",
    "{}",
)


# ---- the files that are right ----------------------------------------------------------------------------------------


def gguf(keys: list[tuple[str, int, Any]], tensors: tuple[str, ...] = (), *, count: int | None = None) -> bytes:
    """Return a GGUF file. `keys`: key, type and value; the value of an array (9) is its type and its values."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys) if count is None else count)]
    parts += [_text(key) + struct.pack("<I", kind) + gguf_value(kind, value) for key, kind, value in keys]
    for number, name in enumerate(tensors):
        parts.append(_text(name) + struct.pack("<IQQIQ", 2, 8, 4, 0, number * 128))
    data = b"".join(parts)
    return data + bytes(-len(data) % 32 + 128 * len(tensors))


def gguf_value(kind: int, value: Any) -> bytes:
    """Return the bytes of a value of a GGUF header. Bytes stand for themselves."""
    if isinstance(value, bytes):
        return value
    if kind == 8:
        return _text(value)
    if kind == 9:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(gguf_value(inner, each) for each in values)
    return struct.pack("<" + {0: "B", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q"}[kind], value)


def nested(depth: int) -> bytes:
    """Return an array of a GGUF header that has an array in it, `depth` times."""
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)


def model_keys(**changes: tuple[int, Any]) -> list[tuple[str, int, Any]]:
    """Return the keys of a small model. `changes`: type and value of a key, with "__" for its dots."""
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (8, "llama"),
        "general.type": (8, "model"),
        "general.name": (8, "small"),
        "general.file_type": (4, 1),
        "general.tags": (9, (8, ["a", "b"])),
        "llama.context_length": (4, 2048),
        "llama.embedding_length": (4, 64),
        "llama.block_count": (4, 2),
        "llama.feed_forward_length": (9, (5, [128, 128])),
        "llama.attention.head_count": (4, 4),
        "llama.attention.head_count_kv": (9, (5, [2, 2])),
        "llama.rope.freq_base": (6, 10000.0),
        "llama.vocab_size": (4, 4),
        "tokenizer.ggml.model": (8, "gpt2"),
        "tokenizer.ggml.tokens": (9, (8, ["a", "b", "c", "<|end|>"])),
        "tokenizer.ggml.token_type": (9, (5, [1, 1, 1, 3])),
        "tokenizer.ggml.merges": (9, (8, ["a b"])),
        "tokenizer.ggml.add_bos_token": (7, False),
        "tokenizer.chat_template": (8, "{{ messages[0].content }}"),
    }
    keys |= {name.replace("__", "."): value for name, value in changes.items()}
    return [(key, kind, value) for key, (kind, value) in keys.items()]


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "sliding_window": 512,
    "layer_types": ["sliding_attention", "full_attention"],
    "dtype": "bfloat16",
    "text_config": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16},
    "attn_config": {"kv_n_heads": 2},
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "bits": 4,
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "input_activations": None}},
    },
}
_SHARDS = {"metadata": {"total_size": 64}, "weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
_TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [16], "data_offsets": [32, 64]},
}
_VARIANT = {"model": "small", "quant": "Q4_K_M", "format": "gguf", "repo": "acme/small", "revision": "main"}
_LOCK = {
    "schema": 1,
    "name": "set",
    "manifest_sha256": _SHA256,
    "variants": [
        _VARIANT
        | {"commit": _COMMIT, "complete": True, "files": [{"path": "small.gguf", "size": 100, "sha256": _SHA256}]},
        _VARIANT
        | {"quant": "Q8_0", "commit": None, "complete": False}
        | {"files": [{"path": "b.gguf", "size": None, "sha256": None}]},
    ],
    "assets": [
        {"path": "v/o200k.tiktoken", "url": "https://example.org/o200k", "env": "TIKTOKEN_DIR", "env_value": "folder"}
        | {"stacks": ["vllm"], "size": 7, "sha256": _SHA256}
    ],
}
_INDEX = {
    "format": 1,
    "name": "set",
    "manifest_sha256": _SHA256,
    "lock_sha256": "",
    "roles": {"tool": ["small"]},
    "models": [
        {"id": "small", "repo": "acme/small", "license": "mit", "context": 2048, "family": None, "gated": False}
    ],
    "variants": [_VARIANT | {"commit": _COMMIT}],
    "files": [
        {"path": "models/small/Q4_K_M/small.gguf", "size": 100, "sha256": _SHA256}
        | {"repo": "acme/small", "commit": _COMMIT, "source": "small.gguf"},
        {"path": "START_HERE.md", "size": 7, "sha256": _SHA256, "repo": None, "commit": None, "source": None},
    ],
}
MANIFEST = """\
schema = 1
name = "set"
summary = "one model"
formats = ["gguf"]
quants = ["Q4_K_M"]
[roles]
tool = ["small"]
[models.small]
repo = "acme/small"
license = "apache-2.0"
context = 4096
params = 135_000_000
arch = {n_layers = 2, n_heads = 4, n_kv_heads = 2, head_dim = 16, hidden_size = 64, vocab_size = 1000}
chat_template = '''
{{ messages }}'''
[[models.small.variants]]
format = "gguf"
quant = "Q4_K_M"
repo = "acme/small"
revision = "main"
size = 100
files = ["*Q4_K_M.gguf"]
[[assets]]
path = "harmony/o200k_base.tiktoken"
url = "https://example.org/o200k_base.tiktoken"
env = "TIKTOKEN_CACHE_DIR"
stacks = ["vllm"]
"""


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutations(kind: str, seed: int, count: int) -> Iterator[bytes]:
    """Yield the content of `count` files of a kind. The same seed gives the same ones."""
    make = _MAKERS[kind]
    rng = random.Random(f"{kind} {seed}")
    for _ in range(count):
        yield make(rng)


def read(kind: str, content: bytes, folder: Path) -> None:
    """Write a file into `folder`, and read it as tourkit does: for a plan, and for a worker before it loads."""
    if kind == "gguf":
        path = folder / "model.gguf"
        path.write_bytes(content)
        check_weights(path)
        read_weights(path)
    elif kind in ("safetensors", "config", "shards"):
        names = {"safetensors": "model.safetensors", "config": "config.json", "shards": "model.safetensors.index.json"}
        whole = {"config.json": orjson.dumps(CONFIG), "model.safetensors": safetensors(orjson.dumps(_TENSORS))}
        for name, data in (whole | {names[kind]: content}).items():
            (folder / name).write_bytes(data)
        check_weights(folder)
        read_weights(folder)
    elif kind == "index":
        (folder / INDEX).write_bytes(content)
        read_index(folder)
    elif kind == "lock":
        (folder / "set.lock.json").write_bytes(content)
        lock.read(folder / "set.lock.json")
    else:
        (folder / "set.toml").write_bytes(content)
        manifest.load(folder / "set.toml")


def refusal(kind: str, content: bytes, folder: Path) -> str:
    """Return the message with which tourkit refuses a file, "" if it takes it. Raises every other exception."""
    try:
        read(kind, content, folder)
    except TourkitError as exc:
        return str(exc)
    return ""


def safetensors(header: bytes, *, length: int | None = None, tensors: int = 64) -> bytes:
    """Return a safetensors file with this header. `length`: what it states as the header's. `tensors`: their bytes."""
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(tensors)


def _gguf(rng: random.Random) -> bytes:
    keys = model_keys()
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(keys))
        key, kind, value = keys[at]
        keys[at] = rng.choice(
            (
                (key, 4, rng.choice(_INTEGERS) % 2**32),
                (key, 5, rng.choice((-1, -(2**31), 2**31 - 1))),
                (key, 6, rng.choice((float("nan"), float("inf"), -0.5, 64.0))),
                (key, 8, rng.choice(_TEXTS)),
                (key, 8, struct.pack("<Q", rng.choice(_INTEGERS) % 2**64)),
                (key, 9, nested(rng.choice((1, 3, 900)))),
                (key, 9, struct.pack("<IQ", rng.randrange(14), rng.choice(_INTEGERS) % 2**64)),
                (key, rng.randrange(20), b"\xff" * 8),
                (rng.choice(keys)[0], kind, value),
            )
        )
    if rng.random() < 0.1:
        rng.shuffle(keys)
    count = rng.choice(_INTEGERS) % 2**64 if rng.random() < 0.1 else None
    data = gguf(keys, tuple(f"blk.{number}.attn_q.weight" for number in range(rng.choice((0, 1, 4)))), count=count)
    return _bytes(rng, data) if rng.random() < 0.5 else data


def _safetensors(rng: random.Random) -> bytes:
    header = _json(rng, _TENSORS)
    length = rng.choice((*_INTEGERS, len(header) + 1, len(header) - 1)) % 2**64 if rng.random() < 0.2 else None
    return safetensors(header, length=length, tensors=rng.choice((64, 64, 0, 63)))


def _index(rng: random.Random) -> bytes:
    """Return an index whose own digest is right in most cases: else nothing of it is looked at."""
    if rng.random() < 0.3:
        return _bytes(rng, _digested(_INDEX))
    return _digested(_changed(rng, _INDEX))


def _digested(raw: Any) -> bytes:
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    try:
        whole = orjson.dumps(raw, option=options)
    except (TypeError, ValueError, RecursionError):  # orjson writes no number of 65 bits, and nothing deep
        return json.dumps(raw).encode()
    if not isinstance(raw, dict):
        return whole
    return orjson.dumps(raw | {"digest": hashlib.sha256(whole).hexdigest()}, option=options)


def _manifest(rng: random.Random) -> bytes:
    """Return TOML with some values, keys and lines changed."""
    lines = MANIFEST.splitlines()
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(lines))
        key, _, value = lines[at].partition(" = ")
        changes = (
            f"{key} = {rng.choice(_INTEGERS)}",
            f"{key} = {json.dumps(rng.choice(_TEXTS))}",
            f"{key} = {rng.choice(('nan', '-inf', '1e308', '0x' + 'f' * 5000, '9' * 5000, 'true', '1979-05-27'))}",
            f"{key} = [{', '.join([value] * 3)}]",
            f"{key} = {'[' * 80}{']' * 80}",
            f"{key} = {'{a = ' * 80}1{'}' * 80}",
            f"{'.'.join([key] * 100)} = 1",
            rng.choice(lines),
            "",
        )
        lines[at] = rng.choice(changes)
    data = "\n".join(lines).encode()
    if rng.random() < 0.1:
        data = b"\xef\xbb\xbf" + data
    return _bytes(rng, data) if rng.random() < 0.4 else data


def _json(rng: random.Random, value: Any) -> bytes:
    """Return the JSON of a value with some parts changed, and some of its bytes in a third of the cases."""
    data = json.dumps(_changed(rng, value)).encode()
    if rng.random() < 0.05:
        return b"[" * 10_000 + data
    return _bytes(rng, data) if rng.random() < 0.3 else data


def _changed(rng: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to three of its parts replaced, added or taken out."""
    whole = {"": copy.deepcopy(value)}
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = [(parent, key) for parent in _containers(whole) for key in _keys(parent)]
        parent, key = rng.choice(places)
        how = rng.random()
        if how < 0.7:
            parent[key] = _hostile(rng, parent[key])
        elif how < 0.85 and parent is not whole:
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[rng.choice(_TEXTS)] = parent[key]
    return whole.get("")


def _hostile(rng: random.Random, old: Any) -> Any:
    deep: Any = old
    for _ in range(rng.choice((5, 70, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            *(rng.choice(_INTEGERS), -rng.choice(_INTEGERS), rng.choice(_TEXTS), rng.choice(_TEXTS), 10**400),
            *(None, True, False, 0.5, 4.0, float("nan"), float("inf"), str(old), [old] * 3, {"a": old}, [], {}, deep),
        )
    )


def _containers(value: Any) -> Iterator[Any]:
    """Yield the lists and objects of a value that have something in them. No recursion: a value may be deep."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict | list) and part:
            yield part
            todo += part.values() if isinstance(part, dict) else part


def _keys(parent: Any) -> list[Any]:
    return list(parent) if isinstance(parent, dict) else list(range(len(parent)))


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """Return the data with some bytes changed, taken out, doubled, or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 4, 8, 64))
        how = rng.randrange(5)
        if how == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            changed[at : at + 8] = struct.pack("<Q", rng.choice(_INTEGERS) % 2**64)
        elif how == 2:
            del changed[at : at + length]
        elif how == 3:
            changed[at:at] = changed[at : at + length]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def _text(value: str) -> bytes:
    raw = value.encode(errors="surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


_MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "config": lambda rng: _json(rng, CONFIG),
    "shards": lambda rng: _json(rng, _SHARDS),
    "manifest": _manifest,
    "lock": lambda rng: _json(rng, _LOCK),
    "index": _index,
}

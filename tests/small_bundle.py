"""A small real bundle on disk, for the tests of verify, the mirror and other readers of bundles."""

import hashlib
from pathlib import Path

from tourkit.bundle.build import build_index
from tourkit.bundle.index import BundleModel, BundleVariant, Index, write_index

COMMIT = hashlib.sha1(b"first").hexdigest()
OTHER = hashlib.sha1(b"second").hexdigest()
FILES = {
    "models/tiny/Q8_0/tiny-Q8_0.gguf": bytes(range(256)) * 5000,
    "models/tiny/Q8_0/README.md": "Маленькая модель\n".encode(),
    "models/tiny/F16/tiny-F16.gguf": b"GGUF" + b"\x07" * 70_001,
    "models/tiny/F16/onnx/a config.json": b'{"a": 1}\n',
    "models/old/BF16/model.safetensors": b"\x00" * 4096,
    "models/old/BF16/empty.txt": b"",
    "models/old-2/BF16/model.safetensors": b"\x01" * 4096,
    "START_HERE.md": b"# start\n",
    "templates/one/one.py": b"print('one')\n",
}
MODELS = (
    BundleModel("tiny", "org/tiny", "apache-2.0", 4096, "Tiny", False),
    BundleModel("old", "plain", "mit", 2048, None, None),
    BundleModel("old-2", "plain", "mit", 2048, None, True),
)
VARIANTS = (
    BundleVariant("tiny", "Q8_0", "gguf", "org/tiny-GGUF", "main", COMMIT),
    BundleVariant("tiny", "F16", "gguf", "org/tiny-GGUF", "main", COMMIT),
    BundleVariant("old", "BF16", "safetensors", "plain", "v1", COMMIT),
    BundleVariant("old-2", "BF16", "safetensors", "plain", "refs/pr/2", OTHER),
)
ROLES = {"brain": ("tiny",), "tool": ("old", "old-2")}


def write_files(root: Path, files: dict[str, bytes] = FILES) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def make_bundle(root: Path) -> Index:
    """Write FILES below `root` and make a bundle of them."""
    write_files(root)
    index = build_index(root, "small", ROLES, MODELS, VARIANTS)
    write_index(root, index)
    return index

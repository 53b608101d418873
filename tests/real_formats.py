"""SmolLM2 in the formats of all stacks, made once from its GGUF into build/real/."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import real_weights

ROOT = Path(__file__).resolve().parents[1]
CONVERT = ROOT / "tools" / "real" / "convert.py"
NEEDED = {
    "gguf": ["gguf"],
    "safetensors": ["gguf", "safetensors", "tokenizers"],
    "onnx": ["gguf", "safetensors", "tokenizers", "torch", "transformers", "onnxruntime_genai", "onnx_ir"],
}
FROM = {"gguf": ["gguf"], "safetensors": ["safetensors"], "onnx": ["safetensors", "onnx"]}


def converted(source: Path, form: str) -> Path:
    """Return the file or folder of SmolLM2 in a format ("gguf" in float32, "safetensors", "onnx"); make it if needed.

    It is made again if the code of the conversion has changed. A missing package skips the test.
    """
    missing = [name for name in NEEDED[form] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed here, to make {form}: make test-real")
    from tools.real.convert import FILES

    code = hashlib.sha256(CONVERT.read_bytes()).hexdigest()[:8]
    folder = real_weights.FOLDER / f"smollm2-{code}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = [each for each in FROM[form] if not (folder / f"{each}.done").exists()]
        if wanted:
            command = [sys.executable, "-m", "tools.real.convert", str(source), str(folder), *wanted]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            for each in wanted:
                (folder / f"{each}.done").touch()
    return folder / FILES[form]

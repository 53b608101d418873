"""Convert the models that make.py made: `python -m tools.arch.convert build/architectures [NAME…]`.

llama.cpp's own script (from the source of the installed llama-cpp-python) converts to GGUF, onnxruntime-genai's builder
to ONNX. If a conversion fails, gguf.txt or onnx.txt has the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.build_llama_cpp import sources
from tools.arch.families import BY_NAME, TINY
from tools.arch.kinds import KINDS
from tools.arch.tiny import Tiny

FILES = {"gguf": "gguf/tiny-f32.gguf", "onnx": "onnx"}


def to_gguf(tiny: Tiny, folder: Path) -> str:
    """Convert to GGUF. Return why llama.cpp's converter refuses the model; empty if it worked."""
    script = _script()
    target = folder / FILES["gguf"]
    target.parent.mkdir(exist_ok=True)
    # The converter recognises a tokenizer by a hash of the tokens of a fixed text. The tokenizers made here are of
    # known kinds, but have other hashes.
    pre = KINDS[tiny.vocabulary].pre
    script.unpublished = {key for key, value in tiny.published.items() if value is None}
    script.TextModel.get_vocab_base_pre = (lambda self, tokenizer: pre) if pre else script.known_pre
    # llama.cpp uses the name to recognise Phi-3's control tokens.
    arguments = ["--outtype", "f32", "--model-name", tiny.name, "--outfile", str(target), *tiny.options]
    sys.argv = ["convert_hf_to_gguf.py", str(folder / "safetensors"), *arguments]
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(said):
            script.main()
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    except Exception as exc:  # noqa: BLE001 - every exception is a reason
        return _line(exc)
    finally:
        logging.getLogger().removeHandler(handler)
    return ""


def _script() -> Any:
    """Load convert_hf_to_gguf as a module; keep its own function for the kind of a tokenizer as `known_pre`."""
    folder = sources()
    if str(folder) not in sys.path:
        sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    import convert_hf_to_gguf as script
    from conversion.base import ModelBase, TextModel

    if not hasattr(script, "known_pre"):
        script.TextModel, script.known_pre = TextModel, TextModel.get_vocab_base_pre
        read = ModelBase.load_hparams

        # The script expects transformers 4, which passes on every name in config.json. Version 5 renames some, also
        # the kinds of layers: Granite's "mamba" and "attention".
        def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
            written: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            found = read(folder, is_mistral_format) | written
            return {key: value for key, value in found.items() if key not in script.unpublished}

        ModelBase.load_hparams = staticmethod(load_hparams)
    return script


def to_onnx(tiny: Tiny, folder: Path) -> str:
    """Convert to ONNX. Return why onnxruntime-genai's builder refuses the model; empty if it worked."""
    target = folder / FILES["onnx"]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder / "safetensors")]
        command += ["-o", str(target), "-p", "fp32", "-e", "cpu", "-c", cache]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    shutil.rmtree(target, ignore_errors=True)
    lines = done.stderr.strip().splitlines()
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception): ", line)), lines[-1])


def _line(exc: Exception) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())


def convert(tiny: Tiny, folder: Path) -> None:
    for form, to in (("gguf", to_gguf), ("onnx", to_onnx)):
        why = to(tiny, folder)
        note = folder / f"{form}.txt"
        note.unlink(missing_ok=True)
        if why:
            (folder / FILES[form]).unlink(missing_ok=True) if form == "gguf" else None
            note.write_text(why.replace(str(folder / "safetensors"), "…") + "\n", encoding="utf-8")
        print(f"{folder}: {form}: {why or 'converted'}", flush=True)


def main() -> None:
    root, names = Path(sys.argv[1]), sys.argv[2:]
    for tiny in [BY_NAME[name] for name in names] or TINY:
        convert(tiny, root / tiny.name)


if __name__ == "__main__":
    main()

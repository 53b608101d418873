"""Checks of a launch for the stacks other than llama.cpp, made before loading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.errors import LocalError
from tourkit.stacks import STACKS

if TYPE_CHECKING:
    from tourkit.launch import Launch


def refuse_foreign(launch: Launch) -> None:
    """Refuse load options that only llama.cpp supports. Raises LocalError with the option."""
    if launch.deterministic and not STACKS[launch.stack].deterministic:
        raise LocalError(
            f"{launch.model}: the stack {launch.stack} does not support --deterministic: use a GGUF of the model"
        )
    foreign = {
        f"a KV cache of {launch.cache_type}": launch.cache_type != "f16",
        "a choice of flash attention": launch.flash_attention is not None,
        "LoRA adapters": bool(launch.lora),
        "some layers on the GPU and others on the CPU": launch.gpu_layers.is_part,
    }
    asked = [name for name, given in foreign.items() if given]
    if asked:
        raise LocalError(
            f"{launch.model}: the stack {launch.stack} does not support {asked[0]}: leave it out, or use llama_cpp"
        )


def safetensors_folder(launch: Launch) -> Path:
    """Return the folder of a safetensors variant: `launch.path` or its parent. Raises LocalError if it is none."""
    path = Path(launch.path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise LocalError(f"{folder}: no config.json: a safetensors variant is one folder in Hugging Face's layout")
    return folder

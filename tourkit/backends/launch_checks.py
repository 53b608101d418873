"""What is checked of a launch before a stack other than llama.cpp loads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.errors import LocalError
from tourkit.stacks import STACKS

if TYPE_CHECKING:
    from tourkit.launch import Launch


def refuse_foreign(launch: Launch) -> None:
    """Refuse what only llama.cpp can load with. Raises LocalError naming it."""
    if launch.deterministic and not STACKS[launch.stack].deterministic:
        raise LocalError(
            f"{launch.model}: --deterministic is for llama_cpp, not {launch.stack}: take a GGUF of the model"
        )
    foreign = {
        f"a KV cache of {launch.cache_type}": launch.cache_type != "f16",
        "flash attention by choice": launch.flash_attention is not None,
        "LoRA adapters": bool(launch.lora),
        "some layers on the GPU and some not": launch.gpu_layers.is_part,
    }
    asked = [name for name, given in foreign.items() if given]
    if asked:
        raise LocalError(f"{launch.model}: the stack {launch.stack} has no {asked[0]}: leave it out, or use llama_cpp")


def safetensors_folder(launch: Launch) -> Path:
    """The folder of a safetensors variant, which `launch.path` is or is in. Raises LocalError when it is none."""
    path = Path(launch.path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise LocalError(f"{folder}: no config.json: a safetensors variant is one folder as Hugging Face lays it out")
    return folder

"""GGUF through llama-cpp-python's low-level API: the engine of models that write text, and of those that embed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.llama_cpp.prefixes import LlamaPrefixes
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a GGUF file and start its engine: the model decides which. Raises LocalError."""
    runner = LlamaRunner(
        Path(launch.path),
        slots=launch.slots,
        context=launch.context,
        threads=launch.threads,
        gpu_layers=launch.gpu_layers,
        lora=[Path(file) for file in launch.lora],
        unified=not launch.deterministic,  # a slot's cells lie where they would lie if it were alone
        cache_type=launch.cache_type,
        flash_attention=launch.flash_attention,
    )
    if runner.embeds:
        runner.embed([[0] * min(8, runner.context)])  # what crashes at first use does so now, while it is loaded
        return BatchEmbedder(runner, "llama_cpp", deterministic=launch.deterministic)
    kept = launch.prefix_cache and not launch.deterministic
    return RunnerEngine(
        runner,
        "llama_cpp",
        deterministic=launch.deterministic,
        prefixes=LlamaPrefixes(runner, Path(launch.prefix_cache)) if kept else None,
        chat_template=launch.chat_template,
    )

"""GGUF through llama-cpp-python's low-level API: the engine of models that write text, and of those that embed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.llama_prefixes import LlamaPrefixes
from tourkit.backends.llama_runner import LlamaRunner
from tourkit.backends.runner_engine import RunnerEngine

if TYPE_CHECKING:
    from tourkit.backends.base import Engine, LoadSpec, PrefixStore


class LlamaEngine(RunnerEngine):
    """The Engine of GGUF variants that write text. `deterministic` and `prefixes` as in BatchEngine."""

    def __init__(
        self,
        runner: LlamaRunner,
        *,
        max_waiting: int = 256,
        speculate: bool = True,
        deterministic: bool = False,
        prefixes: PrefixStore | None = None,
        chat_template: str = "",
    ) -> None:
        super().__init__(
            runner,
            "llama_cpp",
            max_waiting=max_waiting,
            speculate=speculate,
            deterministic=deterministic,
            prefixes=prefixes,
            chat_template=chat_template,
        )


def load(spec: LoadSpec) -> Engine:
    """Load a GGUF file and start its engine: the model decides which. Raises LocalError."""
    runner = LlamaRunner(
        Path(spec.path),
        slots=spec.slots,
        max_len=spec.max_len,
        threads=spec.threads,
        gpu_layers=spec.gpu_layers,
        lora=[Path(file) for file in spec.lora],
        unified=not spec.deterministic,  # a slot's cells lie where they would lie if it were alone
        cache_type=spec.cache_type,
        flash_attention=spec.flash_attention,
    )
    if runner.embeds:
        runner.embed([[0] * min(8, runner.max_len)])  # what crashes at first use does so now, while it is loaded
        return BatchEmbedder(runner, deterministic=spec.deterministic)
    prefixes = LlamaPrefixes(runner, Path(spec.prefix_cache)) if spec.prefix_cache and not spec.deterministic else None
    return LlamaEngine(runner, deterministic=spec.deterministic, prefixes=prefixes, chat_template=spec.chat_template)

"""GGUF through llama-cpp-python's low-level API: the engines of language models, embedding models and rerankers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.llama_cpp.identity import cells_identity
from tourkit.backends.llama_cpp.runner import LlamaRunner
from tourkit.backends.llama_cpp.scorer import LlamaScorer
from tourkit.backends.runner_engine import start
from tourkit.backends.scorer import BatchScorer, Pair
from tourkit.engine.run_store import RunStore, open_store

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a GGUF file and start an engine. The model decides which engine. Raises LocalError."""
    runner = LlamaRunner(
        Path(launch.path),
        slots=launch.slots,
        context=launch.context,
        threads=launch.threads,
        gpu_layers=launch.gpu_layers,
        lora=[Path(file) for file in launch.lora],
        unified=not launch.deterministic,  # if deterministic, a slot's cells lie where they would lie without others
        cache_type=launch.cache_type,
        flash_attention=launch.flash_attention,
    )
    first = [0] * min(8, runner.context)  # a crash at first use happens now, while the model is loading
    if runner.reranks:
        scorer = LlamaScorer(runner)
        scorer.score([Pair(first)])
        return BatchScorer(scorer, "llama_cpp", deterministic=launch.deterministic)
    if runner.embeds:
        runner.embed([first])
        return BatchEmbedder(runner, "llama_cpp", deterministic=launch.deterministic)
    return start(runner, launch, store=_store(runner, launch))


def _store(runner: LlamaRunner, launch: Launch) -> RunStore | None:
    """Return the disk for KV cells; None if there is none, or if the cells of this model cannot be moved."""
    if not launch.prompt_cache_dir or not runner.longest_run or launch.prompt_cache == 0:
        return None
    return open_store(Path(launch.prompt_cache_dir), cells_identity(runner, launch), _say)


def _say(line: str) -> None:
    sys.stderr.write(f"tourkit: {line}\n")  # the gateway passes such lines on

"""safetensors through transformers: the engines of language models and of embedding models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.launch_checks import refuse_foreign, safetensors_folder
from tourkit.backends.runner_engine import start
from tourkit.backends.transformers.encoder import EncoderRunner
from tourkit.backends.transformers.runner import EMULATED, TransformersRunner
from tourkit.backends.vocabulary import read_json
from tourkit.errors import LocalError
from tourkit.planning.model_shape import embeds_by, reranks_by

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a folder of safetensors and start an engine. Its config.json decides which engine. Raises LocalError."""
    refuse_foreign(launch)
    folder = safetensors_folder(launch)
    config = read_json(folder / "config.json")
    if reranks_by(config):
        raise LocalError(f"{folder}: a reranker (it gives scores) is not supported: choose another model")
    if embeds_by(config):
        encoder = EncoderRunner(folder, context=launch.context, threads=launch.threads, gpu_layers=launch.gpu_layers)
        return BatchEmbedder(encoder, "transformers")
    runner = TransformersRunner(
        folder, slots=launch.slots, context=launch.context, threads=launch.threads, gpu_layers=launch.gpu_layers
    )
    return start(runner, launch, emulated=EMULATED)

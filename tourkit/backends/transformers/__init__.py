"""safetensors through transformers: the engines of language models, embedding models and rerankers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.launch_checks import refuse_foreign, safetensors_folder
from tourkit.backends.runner_engine import start
from tourkit.backends.scorer import BatchScorer
from tourkit.backends.transformers.cross_encoder import CrossEncoderRunner
from tourkit.backends.transformers.encoder import EncoderRunner
from tourkit.backends.transformers.runner import EMULATED, TransformersRunner
from tourkit.backends.vocabulary import read_json
from tourkit.errors import LocalError
from tourkit.planning.model_shape import CROSS_ENCODERS, embeds_by, reranks_by

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a folder of safetensors and start an engine. Its config.json decides which engine. Raises LocalError."""
    refuse_foreign(launch)
    folder = safetensors_folder(launch)
    config = read_json(folder / "config.json")
    context, threads, gpu_layers = launch.context, launch.threads, launch.gpu_layers
    if reranks_by(config):
        if config.get("model_type") not in CROSS_ENCODERS:
            raise LocalError(
                f"{folder}: a reranker of the type {config.get('model_type')}, whose prompt is not known here, is not "
                f"supported: use its GGUF, or a model of a type in {', '.join(CROSS_ENCODERS)}"
            )
        scorer = CrossEncoderRunner(folder, context=context, threads=threads, gpu_layers=gpu_layers)
        return BatchScorer(scorer, "transformers", deterministic=launch.deterministic)
    if embeds_by(config):
        encoder = EncoderRunner(folder, context=context, threads=threads, gpu_layers=gpu_layers)
        return BatchEmbedder(encoder, "transformers")
    runner = TransformersRunner(folder, slots=launch.slots, context=context, threads=threads, gpu_layers=gpu_layers)
    return start(runner, launch, emulated=EMULATED)

"""safetensors through transformers: the engine of models that write text, and of those that embed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.embedder import BatchEmbedder
from tourkit.backends.runner_engine import RunnerEngine
from tourkit.backends.slot_runner import refuse_foreign
from tourkit.backends.transformers.encoder import EncoderRunner
from tourkit.backends.transformers.runner import EMULATED, TransformersRunner, device_of, import_torch
from tourkit.backends.vocabulary import read_json
from tourkit.errors import LocalError
from tourkit.planning.model_shape import embeds_by

if TYPE_CHECKING:
    from tourkit.backends.base import Engine
    from tourkit.launch import Launch


def load(launch: Launch) -> Engine:
    """Load a folder of safetensors and start its engine: its configuration decides which. Raises LocalError."""
    refuse_foreign(launch)
    path = Path(launch.path)
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise LocalError(f"{folder}: no config.json: a safetensors variant is one folder as Hugging Face lays it out")
    if embeds_by(read_json(folder / "config.json")):
        torch = import_torch()
        torch.set_num_threads(launch.threads)
        encoder = EncoderRunner(folder, device_of(torch, launch.gpu_layers), context=launch.context)
        return BatchEmbedder(encoder, "transformers", deterministic=launch.deterministic)
    runner = TransformersRunner(
        folder, slots=launch.slots, context=launch.context, threads=launch.threads, gpu_layers=launch.gpu_layers
    )
    return RunnerEngine(
        runner,
        "transformers",
        emulated=EMULATED,
        deterministic=launch.deterministic,
        chat_template=launch.chat_template,
    )

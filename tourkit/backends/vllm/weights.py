"""Read a folder of weights before vLLM loads it: check that vLLM can load it, and get the model's shape and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.launch_checks import refuse_foreign, safetensors_folder
from tourkit.backends.template_trial import try_out
from tourkit.backends.text_side import Texts
from tourkit.backends.transformers.loading import converted_tokenizer
from tourkit.backends.vocabulary import Vocabulary
from tourkit.errors import LocalError
from tourkit.headers.check import check_weights
from tourkit.planning import model_shape

if TYPE_CHECKING:
    from tourkit.launch import Launch
    from tourkit.planning.model_shape import Shape


def folder_of(launch: Launch) -> Path:
    """Return the checked folder of weights. Raises LocalError if vLLM cannot load it or not with these options.

    LocalError too for a header with a number that no model has: vLLM never sees such a file.
    """
    refuse_foreign(launch)
    folder = safetensors_folder(launch)
    check_weights(folder)
    return folder


def shape_of(folder: Path) -> Shape:
    """Return the model's shape. Raises LocalError if config.json does not give it, and for embedding models."""
    shape = model_shape.of_file(folder)
    if shape is None:
        raise LocalError(f"{folder}: config.json does not give the model's shape: run `tourkit verify` on the bundle")
    if shape.embeds:
        does = "gives scores" if shape.reranks else "makes embeddings"
        raise LocalError(f"{folder}: {does}, which vllm does not serve here: use transformers")
    return shape


def texts_of(folder: Path, launch: Launch, n_vocab: int) -> Texts:
    """Try the chat template in a process of its own, and return the text side of the model.

    Raises LocalError if the kind of tokenizer is not supported, and for an unusable chat template.
    """
    source = None if (folder / "tokenizer.json").is_file() else converted_tokenizer(folder)
    vocabulary = Vocabulary(folder, n_vocab, source)
    template = vocabulary.chat_template or launch.chat_template
    if template:
        try_out(template, vocabulary.special_tokens, folder)
    return Texts(
        vocabulary,
        launch.context,
        launch.chat_template,
        special_tokens_in_content=launch.special_tokens_in_content,
    )

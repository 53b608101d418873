"""Encoders in safetensors through transformers: what they all do, and the vectors of texts.

The texts of a call are padded to the longest one and masked. The folder's tokenizer puts its special tokens around
each text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.backends.transformers import loading
from tourkit.backends.vocabulary import read_json
from tourkit.errors import EngineError, LocalError
from tourkit.launch import ALL_LAYERS, GpuLayers

if TYPE_CHECKING:
    import numpy as np

_TEXTS = 32  # in a call
_MOST_TOKENS = 2048  # in a call, without padding
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
_POOLING = "1_Pooling/config.json"  # the pooling settings of sentence-transformers
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class Encoder:
    """One encoder and its tokenizer, on the GPU if there is one: float32 on a CPU, the weights' own type on a GPU.

    `load`: loads the model of a folder on a device. `context`: tokens a text. `gpu_layers`: NO_LAYERS keeps it on the
    CPU. Raises LocalError.
    """

    n_slots = _TEXTS
    n_batch = _MOST_TOKENS

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path, str], Any],
        *,
        context: int,
        threads: int | None,
        gpu_layers: GpuLayers,
    ) -> None:
        torch = loading.import_torch()
        if threads is not None:
            torch.set_num_threads(threads)
        self.tokenizer = _tokenizer(folder)
        self.model = load(folder, loading.device_of(torch, gpu_layers))
        config = self.model.config
        self.n_vocab, self.n_embd = int(config.vocab_size), int(config.hidden_size)
        # RoBERTa's positions start after the id of its padding token, so fewer of them are usable.
        offset = int(config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
        self.context = min(context, int(config.max_position_embeddings) - offset)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not parse_special
        return list(self.tokenizer.encode(text, add_special_tokens=add_special).ids)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token's text; empty for control tokens and padding."""
        text = self.tokenizer.id_to_token(token)
        added = self.tokenizer.get_added_tokens_decoder().get(token)
        if text is None or (added is not None and added.special):
            return b""
        if _SPACE in text or self.tokenizer.token_to_id("[CLS]") is None:
            return str(text).replace(_SPACE, " ").encode()
        return str(text[2:] if text.startswith("##") else f" {text}").encode()

    def padded(self, rows: Sequence[Sequence[int]], pad: int) -> Any:
        """Return rows of numbers as one tensor on the model's device; `pad` fills them to the same length."""
        import torch

        longest = max(map(len, rows))
        return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self.model.device)

    def run(self, texts: Sequence[Sequence[int]], read: Callable[[Any, Any, Any], Any], **more: Any) -> np.ndarray:
        """Return `read` of the model's output, of the mask and of torch, as float32 on the CPU, for texts of one call.

        `more`: further inputs of the model. Raises EngineError if there is no memory.
        """
        import torch

        pad = self.model.config.pad_token_id or 0  # RoBERTa computes positions from it
        mask = self.padded([[1] * len(text) for text in texts], 0)
        try:
            with torch.inference_mode():
                output = self.model(input_ids=self.padded(texts, pad), attention_mask=mask, **more)
                found: np.ndarray = read(output, mask, torch).float().cpu().numpy()
        except RuntimeError as exc:
            if not loading.ran_out_of_memory(exc):
                raise
            longest = max(map(len, texts))
            raise EngineError(f"no memory for {len(texts)} texts of {longest} tokens: send shorter texts") from exc
        return found

    def close(self) -> None:
        self.model = None


class EncoderRunner(Encoder):
    """An encoder that makes embeddings, with the pooling that its folder names. Raises LocalError."""

    def __init__(
        self, folder: Path, *, context: int, threads: int | None = None, gpu_layers: GpuLayers = ALL_LAYERS
    ) -> None:
        self._pooling = _pooling(folder)
        super().__init__(folder, loading.encoder, context=context, threads=threads, gpu_layers=gpu_layers)

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        import numpy as np

        vectors = np.empty((len(texts), self.n_embd), dtype=np.float32)
        for group in alike(texts):
            vectors[group] = self.run([texts[i] for i in group], self._pooled)
        return vectors

    def _pooled(self, output: Any, mask: Any, torch: Any) -> Any:
        """Return the vectors of padded texts."""
        states, weights = output.last_hidden_state.float(), mask[:, :, None].float()
        pooled = states[:, 0] if self._pooling == "cls" else (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)


def alike(texts: Sequence[Sized]) -> list[list[int]]:
    """Group the indices of texts. The longest text of a group is at most twice as long as its shortest one.

    So there is little padding.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if groups and len(texts[i]) <= 2 * len(texts[groups[-1][0]]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _pooling(folder: Path) -> str:
    """Return how the vector of a text is made from its tokens' vectors. Default: the mean. Raises LocalError."""
    said = read_json(folder / _POOLING)
    wanted = [name for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    if not wanted:
        return "mean"
    if len(wanted) > 1 or wanted[0] not in _POOLINGS:
        raise LocalError(f"{folder / _POOLING}: {', '.join(wanted)} is not supported: use a GGUF of this model")
    return _POOLINGS[wanted[0]]


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise LocalError(f"{folder}: no tokenizer.json: this stack needs one next to the weights")
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as exc:  # tokenizers raises nothing narrower
        raise LocalError(f"{path}: not a tokenizer ({exc}): run `tourkit verify`") from exc
    found.no_truncation()
    found.no_padding()
    return found

"""safetensors through transformers: our engine runs the model's own forward pass in packed batches.

transformers' own continuous batching is not used. It takes a temperature, top-k and top-p with each request and drops
every other logits processor: no grammar, seed, penalty, bias, stop string or likeliest alternatives.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tourkit.backends.slot_runner import Part, SlotRunner
from tourkit.backends.transformers import packed
from tourkit.backends.transformers.loading import (
    converted_tokenizer,
    device_of,
    import_torch,
    language_model,
    ran_out_of_memory,
)
from tourkit.backends.vocabulary import Vocabulary
from tourkit.errors import LocalError, one_line
from tourkit.launch import ALL_LAYERS, GpuLayers

if TYPE_CHECKING:
    import numpy as np


# Request fields that transformers' continuous batching does not support; tourkit serves them itself.
EMULATED = (
    *("seed", "stop", "logprobs", "logit_bias", "frequency_penalty", "presence_penalty", "min_p"),
    *("json_schema", "json_object", "regex", "grammar", "choice"),
)
_MOST_TOKENS = 512  # in a batch
_PROBE = 12  # tokens of the trial run of a forward pass
_PACKABLE = {"full_attention", "sliding_attention"}  # kinds of layers


class Pass(Protocol):
    """A model's forward pass and the cells of every slot."""

    def __call__(self, parts: list[Part]) -> Any:
        """Return the logits of the wanted rows: a tensor of shape (rows, n_vocab)."""
        ...

    def copy(self, source: int, target: int, length: int) -> None: ...

    def drop(self, slot: int, length: int) -> None: ...


class SeparatePass:
    """The forward pass of models that cannot be packed: slot by slot, each slot with transformers' own cache."""

    def __init__(self, model: Any, slots: int) -> None:
        self._model = model
        self._caches = [self._prefix(None, 0) for _ in range(slots)]

    def __call__(self, parts: list[Part]) -> Any:
        import torch

        device, found = self._model.device, []
        for part in parts:
            rows = torch.tensor(part.wanted, device=device, dtype=torch.long)
            tokens = torch.tensor([part.tokens], device=device)
            cache = self._caches[part.slot]
            found.append(packed.last_logits(self._model, rows, input_ids=tokens, past_key_values=cache, use_cache=True))
        return torch.cat(found)

    def copy(self, source: int, target: int, length: int) -> None:
        self._caches[target] = self._prefix(self._caches[source], length)

    def drop(self, slot: int, length: int) -> None:
        self._caches[slot] = self._prefix(self._caches[slot], length)

    def _prefix(self, cache: Any, length: int) -> Any:
        """Return a cache with the first `length` cells of another. No cell is written twice, so nothing is copied."""
        from transformers import DynamicCache

        made = DynamicCache()
        for i, layer in enumerate(cache.layers if length else ()):
            made.update(layer.keys[..., :length, :], layer.values[..., :length, :], i)
        return made


class TransformersRunner(SlotRunner):
    """One causal language model, on the GPU if there is one: float32 on a CPU, the weights' own type on a GPU.

    `gpu_layers`: NO_LAYERS keeps it on the CPU. `pack`: False runs every model slot by slot. Raises LocalError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        slots: int,
        context: int,
        threads: int | None = None,
        gpu_layers: GpuLayers = ALL_LAYERS,
        pack: bool = True,
    ) -> None:
        self._torch = torch = import_torch()
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = language_model(folder, device_of(torch, gpu_layers))
        config = self._model.config.get_text_config()
        context = min(context, int(getattr(config, "max_position_embeddings", None) or context))
        self._alone = _rope_goes_by_length(config)
        try:
            self._pass = _choose_pass(self._model, config, folder, slots, context, pack)
            n_vocab = int(self._pass([Part(0, 0, [1], [0])]).shape[-1])
        except RuntimeError as exc:
            if not ran_out_of_memory(exc):
                raise
            raise LocalError(
                f"{folder}: no memory for {slots} slots of {context} tokens: lower --slots or --context"
            ) from exc
        self._pass.drop(0, 0)
        source = None if (folder / "tokenizer.json").is_file() else converted_tokenizer(folder)
        super().__init__(
            Vocabulary(folder, n_vocab, source),
            slots=slots,
            context=context,
            n_batch=_MOST_TOKENS,
            partial_kv=True,
            shares_kv=True,
        )

    def forward(self, parts: list[Part]) -> np.ndarray | None:
        import numpy as np

        batches = [[part] for part in parts] if self._alone else [parts]
        try:
            found = [self._pass(batch).float().cpu().numpy() for batch in batches]
        except RuntimeError as exc:
            if not ran_out_of_memory(exc):
                raise
            self._torch.cuda.empty_cache()
            return None
        rows: np.ndarray = np.concatenate(found) if len(found) > 1 else found[0]
        return rows

    def copy_cells(self, source: int, target: int, length: int) -> None:
        self._pass.copy(source, target, length)

    def drop_cells(self, slot: int, length: int) -> None:
        self._pass.drop(slot, length)

    def close(self) -> None:
        self._pass = self._model = None


def _choose_pass(model: Any, config: Any, folder: Path, slots: int, context: int, pack: bool) -> Any:
    """Return the fastest pass with the same logits as the model's own. Raises LocalError if no pass has them."""
    tokens = [(37 * i + 11) % config.vocab_size for i in range(min(_PROBE, context))]
    expected = _own_logits(model, tokens)
    kinds = set(getattr(config, "layer_types", None) or ())
    if pack and kinds <= _PACKABLE:
        usual = model.config._attn_implementation
        _attend_packed(model)
        found = packed.PackedPass(model, slots, context)
        fault = _fault(found, tokens, expected, slots)
        windows = "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))
        if not fault and found.windowed >= windows:  # our attention would miss a window that is only in a mask
            return found
        model.set_attn_implementation(usual)
    separate = SeparatePass(model, slots)
    fault = _fault(separate, tokens, expected, slots)
    if fault:
        raise LocalError(f"{folder}: transformers cannot compute it in several calls ({fault}): use another stack")
    return separate


def _own_logits(model: Any, tokens: list[int]) -> Any:
    """Return the logits of every token, from one pass without a cache."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0]


def _attend_packed(model: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(packed.NAME, packed.attend)
    model.set_attn_implementation(packed.NAME)


def _fault(run: Pass, tokens: list[int], expected: Any, slots: int) -> str:
    """Return why a pass is wrong; empty if it gives the expected logits.

    It is run in pieces, together with another slot, and from cells that were dropped and copied.
    """
    n, half, other = len(tokens), len(tokens) // 2, slots - 1
    rest, last = tokens[half:], [n - half - 1]
    try:
        first = run([Part(0, 0, tokens[:half], [half - 1])])
        whole = [Part(other, 0, tokens, [n - 1])] if other else []
        found = [*run([*whole, Part(0, half, rest, last)])]
        run.drop(0, half)
        found += [*run([Part(0, half, rest, last)])]
        if other:
            run.drop(other, 0)
            run.copy(0, other, half)
            found += [*run([Part(other, half, rest, last)])]
        run.drop(0, 0)
        run.drop(other, 0)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as exc:
        if ran_out_of_memory(exc):
            raise
        return one_line(str(exc)) or type(exc).__name__
    right = _close(first[0], expected[half - 1]) and all(_close(each, expected[-1]) for each in found)
    return "" if right else "the logits differ from those of one call"


def _close(found: Any, expected: Any) -> bool:
    """Whether both are equal except for rounding. Rounding is coarse with 16 bits."""
    import torch

    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.1
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() <= tolerance * (expected - expected.mean()).norm())


def _rope_goes_by_length(config: Any) -> bool:
    """Whether the rotary positions depend on the longest sequence of a batch. If so, each sequence must run alone."""
    text = json.dumps([getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")], default=str)
    return '"dynamic"' in text or '"longrope"' in text

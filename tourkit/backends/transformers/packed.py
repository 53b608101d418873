"""A transformers model over packed batches: one row has the tokens of all slots; attention runs slot by slot.

Linear layers take most of the time, and they process all tokens at once. Nothing is padded. Slicing is enough to cut,
copy and share the cells of a slot. This works for models that follow transformers' attention interface; runner.py
checks each model.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tourkit.backends.slot_runner import Part

NAME = "tourkit_packed"  # the name of our attention function in transformers
_running = threading.local()


class PackedPass:
    """The forward pass of a model. Each of `slots` has room for `context` cells.

    A layer allocates its cells when it first runs.
    """

    def __init__(self, model: Any, slots: int, context: int) -> None:
        self._model = model
        self._shape = slots, context
        self._cells: dict[int, tuple[Any, Any]] = {}  # layer → keys, values: (slots, heads, context, head size)
        self.parts: list[Part] = []
        self.windowed = False  # whether a layer has used a sliding window

    def __call__(self, parts: list[Part]) -> Any:
        """Return the logits of the wanted rows: a tensor of shape (rows, n_vocab) on the model's device."""
        import torch

        device = self._model.device
        tokens = [token for part in parts for token in part.tokens]
        positions = [part.past + i for part in parts for i in range(len(part.tokens))]
        starts = [sum(len(part.tokens) for part in parts[:i]) for i in range(len(parts))]
        rows = [start + at for start, part in zip(starts, parts, strict=True) for at in part.wanted]
        self.parts = parts
        with _current(self):
            return last_logits(
                self._model,
                torch.tensor(rows, device=device, dtype=torch.long),
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
            )

    def copy(self, source: int, target: int, length: int) -> None:
        import torch

        with torch.inference_mode():
            for keys, values in self._cells.values():
                keys[target, :, :length] = keys[source, :, :length]
                values[target, :, :length] = values[source, :, :length]

    def drop(self, slot: int, length: int) -> None:
        """Do nothing: cells beyond a slot's length are never read, and later tokens overwrite them."""

    def cells(self, layer: int, key: Any, value: Any) -> tuple[Any, Any]:
        """Return the keys and values of a layer. Type and device are those of its first batch."""
        found = self._cells.get(layer)
        if found is None:
            slots, context = self._shape
            made = (new.new_empty(slots, new.shape[1], context, new.shape[3]) for new in (key, value))
            found = self._cells[layer] = (next(made), next(made))
        return found


def last_logits(model: Any, rows: Any, **inputs: Any) -> Any:
    """Return the logits of some rows, shape (rows, n_vocab). Do not compute the others if the model can skip them."""
    import torch

    with torch.inference_mode():
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            return model(**inputs, logits_to_keep=rows).logits[0]
        return model(**inputs).logits[0, rows]


@contextmanager
def _current(step: PackedPass) -> Iterator[None]:
    """Make the pass available to the attention of every layer: some models do not pass extra arguments through."""
    _running.step = step
    try:
        yield
    finally:
        del _running.step


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Any = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Our function for transformers' attention interface. `query`: shape (1, heads, tokens, size).

    `key` and `value` belong to these tokens only. They are written to the cells of their slots; then each slot attends
    to all its cells. Raises ValueError for unsupported kinds of attention.
    """
    import torch

    if attention_mask is not None or position_bias is not None or s_aux is not None:
        raise ValueError("unsupported kind of attention")
    step: PackedPass = _running.step
    step.windowed |= sliding_window is not None
    keys, values = step.cells(module.layer_idx, key, value)
    outputs, start = [], 0
    for part in step.parts:
        n = len(part.tokens)
        length, end = part.past + n, start + n
        keys[part.slot, :, part.past : length] = key[0, :, start:end]
        values[part.slot, :, part.past : length] = value[0, :, start:end]
        first = max(0, part.past + 1 - sliding_window) if sliding_window else 0  # first cell that the first query sees
        mine = slice(part.slot, part.slot + 1), slice(None), slice(first, length)
        mask = _mask(part.past, n, first, sliding_window, query.device)
        outputs.append(_attention(query[:, :, start:end], keys[mine], values[mine], mask, scaling, softcap))
        start = end
    return torch.cat(outputs, dim=1), None


def _mask(past: int, n: int, first: int, window: int | None, device: Any) -> Any:
    """Return which cells each of `n` queries sees, shape (n, cells); None if each sees all.

    `first`: the first of these cells.
    """
    import torch

    if n == 1:
        return None
    at = torch.arange(past, past + n, device=device)[:, None]
    cells = torch.arange(first, past + n, device=device)[None, :]
    seen = cells <= at
    return seen & (cells > at - window) if window else seen


def _attention(query: Any, keys: Any, values: Any, mask: Any, scaling: float | None, softcap: float | None) -> Any:
    """Return the attention of one slot, shape (1, queries, heads, size).

    Query heads that share a key are packed as additional queries.
    """
    import torch

    heads, n, size = query.shape[1:]
    shared = heads // keys.shape[1]
    packed = query.reshape(1, keys.shape[1], shared * n, size)
    mask = mask.repeat(shared, 1) if mask is not None else None
    if softcap is None:
        found = torch.nn.functional.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = packed @ keys.transpose(2, 3) * (size**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        found = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
    return found.reshape(1, heads, n, values.shape[-1]).transpose(1, 2)

"""Predicts how much memory a placement takes: weights, KV cache and the rest, on the GPU and in RAM. Pure.

docs/plan.md explains the formulas and compares them with measurements (bench/memory_estimate.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tourkit.launch import NO_LAYERS, GpuLayers
from tourkit.planning.model_shape import Shape
from tourkit.stacks import STACKS, Stack

CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # per value; q8_0: 32 one-byte values and a 2-byte scale
_WHOLE_BYTES = 4.0  # per value if a stack computes in 32 bits: ONNX Runtime; transformers and vLLM on a CPU

_BATCH = 512  # tokens per llama.cpp call (LlamaRunner's n_batch)
_CELLS_MULTIPLE = 256  # llama.cpp rounds the number of KV cells up to a multiple of this
_CELL = 56  # bytes per KV cell in which llama.cpp records the sequences of the cell
_BLOCK = 16  # tokens per KV block of vLLM
_LARGEST_BLOCK = 128  # tokens: vLLM has blocks of 128 on a CPU, and smaller ones on GPUs
# Tokens of vLLM's steps that have not ended: two steps overlap, and each has 2048 tokens (backends/vllm/arguments.py).
_IN_FLIGHT = 2 * 2048

_VOCAB_ENTRY = 640  # bytes per token: its text, its rank, and its place in the grammar compiler's trie
# llama.cpp's GPU code for these runtimes reads a quantised KV cache through a copy in f16, one layer at a time.
_COPIES_CACHE = ("cuda", "rocm")


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes on one device."""

    weights: int = 0
    cache: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.overhead


@dataclass(frozen=True, slots=True)
class Sizing:
    """The facts that decide the memory of one worker.

    `size`: bytes of the weight files. `bits`: bits per weight. `context`: tokens per sequence. `cache_type`: "f16" or
    "q8_0". `runtime`: with which the stack uses GPUs ("cuda", …), "" if it uses none.
    """

    stack: str
    size: int
    shape: Shape
    context: int
    slots: int
    cache_type: str = "f16"
    gpu_layers: GpuLayers = NO_LAYERS
    bits: int = 16
    runtime: str = ""

    @property
    def traits(self) -> Stack:
        return STACKS[self.stack]

    @property
    def is_widened(self) -> bool:
        """Whether the weights become 32-bit numbers in memory."""
        above = self.traits.widens_above
        return above is not None and self.gpu_layers.is_none and self.bits > above

    @property
    def cache_value_bytes(self) -> float:
        """Bytes per value of the KV cache."""
        if self.is_widened or self.traits.float32_cache:
            return _WHOLE_BYTES
        return CACHE_BYTES["f16" if self.shape.embeds else self.cache_type]  # an embedder keeps nothing between calls


@dataclass(frozen=True, slots=True)
class Estimate:
    gpu: Share
    ram: Share


def estimate(sizing: Sizing) -> Estimate:
    """Return the memory of one worker process after it has answered long prompts in every slot."""
    cache = cache_size(sizing)
    process = sizing.traits.process_bytes + sizing.shape.vocab * _VOCAB_ENTRY
    if sizing.gpu_layers.is_none:
        weights = sizing.size * 32 // sizing.bits if sizing.is_widened else sizing.size
        return Estimate(Share(), Share(weights, cache, process + _buffers(sizing, touched=True)))
    part = sizing.gpu_layers.share(sizing.shape.layers)
    on_gpu = Share(
        weights=round(sizing.size * part),
        cache=round(cache * part),
        overhead=sizing.traits.gpu_process_bytes + _buffers(sizing, touched=False) + _cache_copies(sizing),
    )
    # With all layers on the GPU only the input embeddings stay in RAM. They are counted on both devices.
    left = max(sizing.size - on_gpu.weights, _embeddings(sizing) if sizing.traits.embeddings_in_ram else 0)
    return Estimate(on_gpu, Share(left, cache - on_gpu.cache, process + sizing.traits.gpu_process_ram))


def cache_size(sizing: Sizing) -> int:
    """Return the bytes of the KV cache and the recurrent states on all devices together."""
    shape = sizing.shape
    # llama.cpp has one sequence more than slots: cells of prompts are moved through it.
    states = shape.state * (sizing.slots + sizing.traits.keeps_prompts)
    if sizing.traits.pooled_cache:
        return round(sum(shape.kv) * _cells(sizing) * sizing.cache_value_bytes) + states
    windows = shape.windows if sizing.traits.drops_behind_window else (0,) * shape.layers
    kept = {window: _kept(sizing.context, window) for window in windows}
    padded = _with_padding(windows)
    values = sum(kv * kept[window] * padded[window] for kv, window in zip(shape.kv, windows, strict=True))
    return round(values * sizing.slots * sizing.cache_value_bytes) + states


def _cells(sizing: Sizing) -> int:
    """Return the number of llama.cpp's KV cells. A model that only reads has those of one text, for all slots."""
    if sizing.shape.embeds:
        return _rounded_up(max(sizing.context, _BATCH), _CELLS_MULTIPLE)
    return _rounded_up(sizing.context * sizing.slots, _CELLS_MULTIPLE)


def _kept(context: int, window: int) -> int:
    """Return the tokens that a layer keeps per sequence. `window`: tokens back that the layer attends, 0 for all.

    With a window this is what vLLM reserves: the window, all tokens in flight, and a block because the window may begin
    inside one (`SlidingWindowSpec.max_admission_blocks_per_request`). vLLM refuses to start with less.
    """
    if not window:
        return _rounded_up(context, _BLOCK)
    return _rounded_up(min(context, window - 1 + _IN_FLIGHT), _LARGEST_BLOCK) + _LARGEST_BLOCK


def _with_padding(windows: tuple[int, ...]) -> dict[int, float]:
    """Return by window how many layers vLLM makes memory for, per layer that the model has.

    vLLM puts layers of one kind into groups of one size: the smallest number of layers of a kind, or the largest if it
    is less than 1.5 times the smallest. It pads the last group of a kind (`_get_kv_cache_groups_uniform_page_size`).
    """
    layers = Counter(windows)
    fewest, most = min(layers.values(), default=1), max(layers.values(), default=1)
    group = most if most < 1.5 * fewest else fewest
    return {window: _rounded_up(count, group) / count for window, count in layers.items()}


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _cache_copies(sizing: Sizing) -> int:
    """Return the bytes of the f16 copies of a quantised KV cache on a GPU: keys and values of the widest layer."""
    if sizing.cache_type == "f16" or sizing.runtime not in _COPIES_CACHE:
        return 0
    return 2 * _cells(sizing) * max(sizing.shape.kv, default=0)


def _buffers(sizing: Sizing, *, touched: bool) -> int:
    """Return the bytes of working memory of one call. `touched`: count only pages that are written, as on a CPU."""
    shape = sizing.shape
    cells = sizing.context * sizing.slots
    batch = min(cells, _BATCH)
    if shape.embeds:
        cells = max(sizing.context, _BATCH)
        batch = _BATCH if any(shape.kv) else cells  # an encoder reads a whole text in one call
    mask = 2 * cells * batch
    layer = 4 * batch * (3 * shape.feed_forward * shape.experts_used + 4 * shape.width)
    logits = 4 * shape.vocab * (2 * sizing.slots if touched else batch)
    if shape.embeds:
        logits = 0
    return _CELL * cells + mask + (layer + logits if touched else max(layer, logits + 4 * batch * shape.width))


def _embeddings(sizing: Sizing) -> int:
    """Return the bytes of the input embeddings, assumed to have as many bits as the average weight."""
    shape = sizing.shape
    table = shape.vocab * shape.width
    heads = 2 * sum(shape.kv) * shape.width  # keys and values, and as much again for queries and output: a rough count
    others = heads + 3 * shape.layers * shape.width * shape.feed_forward * shape.experts_used
    return round(sizing.size * table / max(1, 2 * table + others))

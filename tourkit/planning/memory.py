"""Predicts how much memory a placement takes: weights, KV cache and the rest, on the GPU and in RAM. Pure.

docs/plan.md explains the formulas and compares them with measurements (bench/memory_estimate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.launch import NO_LAYERS, GpuLayers
from tourkit.planning.model_shape import Shape
from tourkit.stacks import STACKS, Stack
from tourkit.units import MIB

CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # per value; q8_0: 32 one-byte values and a 2-byte scale
_WHOLE_BYTES = 4.0  # per value if a stack computes in 32 bits: ONNX Runtime; transformers and vLLM on a CPU

_BATCH = 512  # tokens per llama.cpp call (LlamaRunner's n_batch)
_CELLS_MULTIPLE = 256  # llama.cpp rounds the number of KV cells up to a multiple of this
_CELL = 56  # bytes per KV cell in which llama.cpp records the sequences of the cell
_BLOCK = 16  # tokens per KV block of vLLM

_VOCAB_ENTRY = 640  # bytes per token: its text, its rank, and its place in the grammar compiler's trie
_GPU_PROCESS_RAM = 400 * MIB  # RAM for the GPU's libraries and pinned buffers


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
    "q8_0".
    """

    stack: str
    size: int
    shape: Shape
    context: int
    slots: int
    cache_type: str = "f16"
    gpu_layers: GpuLayers = NO_LAYERS
    bits: int = 16

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
        return _WHOLE_BYTES if self.is_widened or self.traits.float32_cache else CACHE_BYTES[self.cache_type]


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
        overhead=sizing.traits.gpu_process_bytes + _buffers(sizing, touched=False),
    )
    # With all layers on the GPU only the input embeddings stay in RAM. They are counted on both devices.
    left = max(sizing.size - on_gpu.weights, _embeddings(sizing) if sizing.traits.embeddings_in_ram else 0)
    return Estimate(on_gpu, Share(left, cache - on_gpu.cache, process + _GPU_PROCESS_RAM))


def cache_size(sizing: Sizing) -> int:
    """Return the bytes of the KV cache on all devices together."""
    shape = sizing.shape
    if sizing.traits.pooled_cache:
        cells = -(-sizing.context * sizing.slots // _CELLS_MULTIPLE) * _CELLS_MULTIPLE
        return round(sum(shape.kv) * cells * sizing.cache_value_bytes)
    length = -(-sizing.context // _BLOCK) * _BLOCK
    # In a layer with a window, vLLM keeps one window of tokens per sequence, plus the current chunk of the prompt.
    windows = shape.windows if sizing.traits.drops_behind_window else (0,) * shape.layers
    kept = [min(length, window + _BATCH) if window else length for window in windows]
    values = sum(kv * tokens for kv, tokens in zip(shape.kv, kept, strict=True))
    return round(values * sizing.slots * sizing.cache_value_bytes)


def _buffers(sizing: Sizing, *, touched: bool) -> int:
    """Return the bytes of working memory of one call. `touched`: count only pages that are written, as on a CPU."""
    shape = sizing.shape
    cells = sizing.context * sizing.slots
    batch = min(cells, _BATCH)
    if shape.embeds:  # it reads a whole text in one call
        cells = batch = max(sizing.context, _BATCH)
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

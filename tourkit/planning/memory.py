"""How much memory a placement will take: weights, KV cache and everything else, on the GPU and in RAM. Pure sums.

docs/plan.md has the formulas in words and what they were measured against (bench/memory_estimate.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.launch import NO_LAYERS, GpuLayers
from tourkit.planning.model_shape import Shape
from tourkit.stacks import STACKS
from tourkit.units import MIB

CACHE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # a value; q8_0: 32 of them and a 2-byte scale
_WHOLE_BYTES = 4.0  # a value where a stack computes in 32 bits: ONNX Runtime; transformers and vLLM on a CPU

_BATCH = 512  # tokens a llama.cpp call (LlamaRunner's n_batch)
_CELLS_MULTIPLE = 256  # llama.cpp rounds its cells up to this
_CELL = 56  # bytes in which it keeps who is in a cell
_BLOCK = 16  # tokens of vLLM's KV blocks

_VOCAB_ENTRY = 640  # bytes: a token's text, its rank, and its place in the grammar compiler's trie
_GPU_PROCESS_RAM = 400 * MIB  # the GPU's libraries and pinned buffers in RAM


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
class Load:
    """What is to be estimated. `size`: bytes of the weight files, of `bits` a weight. `context` in tokens a sequence.
    `cache_type`: f16 or q8_0."""

    stack: str
    size: int
    shape: Shape
    context: int
    slots: int
    cache_type: str = "f16"
    gpu_layers: GpuLayers = NO_LAYERS
    bits: int = 16

    @property
    def in_32_bits(self) -> bool:
        if self.stack == "vllm":
            return self.gpu_layers.is_none and self.bits > 8
        return self.stack == "onnx" or (self.stack == "transformers" and self.gpu_layers.is_none)


@dataclass(frozen=True, slots=True)
class Estimate:
    gpu: Share
    ram: Share


def estimate(load: Load) -> Estimate:
    """Memory of one worker process, once it has answered long prompts in every slot."""
    cache = cache_size(load)
    process = STACKS[load.stack].process_bytes + load.shape.vocab * _VOCAB_ENTRY
    if load.gpu_layers.is_none:
        widened = load.in_32_bits and load.stack != "onnx"
        weights = load.size * 32 // load.bits if widened else load.size
        return Estimate(Share(), Share(weights, cache, process + _buffers(load, touched=True)))
    part = load.gpu_layers.share(load.shape.layers)
    on_gpu = Share(
        weights=round(load.size * part),
        cache=round(cache * part),
        overhead=STACKS[load.stack].gpu_process_bytes + _buffers(load, touched=False),
    )
    # With all layers on the GPU the input embeddings alone stay in RAM; they are counted on both sides.
    left = max(load.size - on_gpu.weights, _embeddings(load) if load.stack == "llama_cpp" else 0)
    return Estimate(on_gpu, Share(left, cache - on_gpu.cache, process + _GPU_PROCESS_RAM))


def cache_size(load: Load) -> int:
    """Bytes of the KV cache over all devices."""
    shape = load.shape
    if load.stack == "llama_cpp":
        cells = -(-load.context * load.slots // _CELLS_MULTIPLE) * _CELLS_MULTIPLE
        return round(sum(shape.kv) * cells * CACHE_BYTES[load.cache_type])
    width = _WHOLE_BYTES if load.in_32_bits else CACHE_BYTES[load.cache_type]
    length = -(-load.context // _BLOCK) * _BLOCK
    # vLLM keeps of a layer with a window that many tokens of a sequence, and those of the prompt's chunk under way.
    windows = shape.windows if load.stack == "vllm" else (0,) * shape.layers
    kept = [min(length, window + _BATCH) if window else length for window in windows]
    return round(sum(kv * tokens for kv, tokens in zip(shape.kv, kept, strict=True)) * load.slots * width)


def _buffers(load: Load, *, touched: bool) -> int:
    """Working memory of one call. `touched`: without the pages that are set aside and never written, as on a CPU."""
    shape = load.shape
    cells = load.context * load.slots
    batch = min(cells, _BATCH)
    if shape.embeds:  # a text at once, in one call
        cells = batch = max(load.context, _BATCH)
    mask = 2 * cells * batch
    layer = 4 * batch * (3 * shape.feed_forward * shape.experts_used + 4 * shape.width)
    logits = 4 * shape.vocab * (2 * load.slots if touched else batch)
    if shape.embeds:
        logits = 0
    return _CELL * cells + mask + (layer + logits if touched else max(layer, logits + 4 * batch * shape.width))


def _embeddings(load: Load) -> int:
    """Bytes of the input embeddings, taken to have as many bits as the average weight."""
    shape = load.shape
    table = shape.vocab * shape.width
    heads = 2 * sum(shape.kv) * shape.width  # keys, values, and as much for queries and output: a rough count
    others = heads + 3 * shape.layers * shape.width * shape.feed_forward * shape.experts_used
    return round(load.size * table / max(1, 2 * table + others))

"""Foretells how fast a placement runs: tokens a second, prompts, and the time to load. Pure.

A step of decoding reads every weight that it uses, and the KV cells of each sequence. So its time is that of the bytes
at the bandwidth of the memory, and that of the multiplications if the processor is slow. docs/plan.md explains the
formulas and compares them with measurements (bench/foretell.py).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from tourkit.hardware.gpu_bandwidth import bandwidth
from tourkit.hardware.machine import Bandwidth, Gpu, Hardware, Kernel
from tourkit.planning.memory import CACHE_BYTES
from tourkit.planning.packing import SizedOption
from tourkit.planning.plan import Speed
from tourkit.stacks import STACKS

FILLED = 512  # tokens in each sequence, and of a prompt, that the figures are for

# Bits a weight of the types of ggml, by the name with which a quant begins (GGML_QUANT_SIZES in gguf-py).
_BITS = {
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_K": 5.5,
    "Q5_0": 5.5,
    "Q5_1": 6,
    "Q4_K": 4.5,
    "Q4_0": 4.5,
    "Q4_1": 5,
    "Q3_K": 3.4375,
    "Q2_K": 2.625,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "MXFP4": 4.25,
}
_TILE = 16  # tokens at once from which llama.cpp multiplies as fast as in a prompt
_FEW = 4  # tokens at once from which it is faster than with one token, but slower than in a prompt
_SHARE_IN_NAME = re.compile(r"-(\d+(?:\.\d+)?)b-a(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)  # qwen3-30b-a3b
# Seconds, from models so small that nothing else counts (docs/plan.md).
_STEP = 0.0002  # of each step: the scheduler, the batch, the threads that start
_LAYER = 0.00002  # of each layer: about twenty-five operations
_MEETING = 0.0001  # of each layer, if there are several threads: they wait for each other after each operation
_SEQUENCE = 0.0001  # of each sequence in a step: a token is drawn, turned into text and passed on
_ENTRY = 10e-9  # of each token of the vocabulary, for each sequence: the draw
_START = 1.0  # until a worker has imported its libraries
_COPY_RATE = 1e9  # bytes a second at which weights are read from the page cache and put in the kernels' order


def foretold(sized: SizedOption, device: str, hardware: Hardware) -> Speed:
    """Return the speed of one placement. `device`: the GPU's id, or "cpu".

    What depends on a rate that the machine does not state is None. An encoder writes no text: it only has a rate of
    prompts.
    """
    load = None if hardware.disk is None else _START + sized.option.size * (1 / hardware.disk + 1 / _COPY_RATE)
    prompt = _prompt_rate(sized, hardware)
    if sized.option.shape.embeds:
        return Speed(prompt=prompt, load=load)
    gpu = next((each for each in hardware.gpus if each.id == device), None)
    alone, together = (_step(sized, gpu, hardware, sequences) for sequences in (1, sized.slots))
    return Speed(
        one=None if alone is None else 1 / alone,
        all=None if together is None else sized.slots / together,
        prompt=prompt,
        load=load,
    )


def _step(sized: SizedOption, gpu: Gpu | None, hardware: Hardware, sequences: int) -> float | None:
    """Return the seconds of a step that gives each of the sequences a token; None if a rate is not known."""
    part = sized.gpu_layers.share(sized.option.shape.layers)
    shape = sized.option.shape
    seconds = _STEP + _between(sized, hardware) + sequences * (_SEQUENCE + shape.vocab * _ENTRY)
    read = _bytes_read(sized, sequences)
    if part > 0:
        peak = None if gpu is None else bandwidth(gpu)
        if not peak:
            return None
        seconds += part * read / peak
    if part < 1:
        rate = _rate(hardware.bandwidth, sized.option.size)
        if not rate:
            return None
        multiplying = _multiplying(sized, hardware.kernels, sequences)
        attending = sequences * _attending(sized, hardware.kernels, 1) * _unevenness(sized, hardware, sequences)
        # Reading and multiplying overlap, but not wholly: the root of the sum of squares was measured.
        seconds += (1 - part) * (math.hypot(read / rate, multiplying) + attending)
    return seconds


def _bytes_read(sized: SizedOption, sequences: int) -> float:
    """Return the bytes that a step reads and writes: weights, KV cells, and recurrent states."""
    option = sized.option
    cells = sum(option.shape.kv) * CACHE_BYTES[sized.cache_type] * min(FILLED, sized.context)
    skipped = _skipped(sized, sequences) / max(1.0, _weights(sized))
    return _in_memory(sized) * (1 - skipped) + sequences * (cells + 2 * option.shape.state)


def _in_memory(sized: SizedOption) -> float:
    """Return the bytes of the weights as the stack holds them: some stacks widen them on a CPU."""
    above = STACKS[sized.option.stack].widens_above
    widened = above is not None and sized.gpu_layers.is_none and sized.option.bits > above
    return sized.option.size * (32 / sized.option.bits if widened else 1)


def _weights(sized: SizedOption) -> float:
    """Return the number of weights."""
    name = _type_of(sized.option.quant, _BITS)
    return sized.option.size * 8 / (_BITS[name] if name else sized.option.bits)


def _skipped(sized: SizedOption, tokens: int) -> float:
    """Return how many weights a step over `tokens` tokens does not read.

    Without a header the name of a model may say it: qwen3-30b-a3b has 30 billion weights, and a token uses 3.
    """
    sparse, weights = sized.option.shape.sparse, _weights(sized)
    named = _SHARE_IN_NAME.search(sized.option.model)
    if not sparse.experts and named is not None and 0 < float(named[2]) < float(named[1]):
        return weights * (1 - float(named[2]) / float(named[1])) ** tokens
    return min(sparse.skipped(tokens), 0.98 * weights)


def _multiplying(sized: SizedOption, kernels: Sequence[Kernel], tokens: int) -> float:
    """Return the seconds in which llama.cpp multiplies the weights with the vectors of `tokens` tokens.

    0 if its kernel was not timed: then only the bytes count.
    """
    kernel = _kernel_of(sized, kernels)
    if kernel is None:
        return 0.0
    rate = kernel.many if tokens >= _TILE else kernel.one if tokens < _FEW else math.sqrt(kernel.one * kernel.many)
    return tokens * (_weights(sized) - _skipped(sized, 1)) / rate


def _prompt_rate(sized: SizedOption, hardware: Hardware) -> float | None:
    """Return tokens a second of a prompt of FILLED tokens on the CPU; None for a GPU, or if no kernel was timed."""
    if not sized.gpu_layers.is_none or _kernel_of(sized, hardware.kernels) is None:
        return None
    # Of the table of the vocabulary, a prompt needs one row for each token at its begin, and the last token at its end.
    shape = sized.option.shape
    part = 1 - min(0.5, shape.vocab * shape.width / _weights(sized))
    seconds = part * _multiplying(sized, hardware.kernels, FILLED) + _attending(sized, hardware.kernels, FILLED)
    return FILLED / (seconds + _STEP + _between(sized, hardware))


def _between(sized: SizedOption, hardware: Hardware) -> float:
    """Return the seconds of a step between the operations of all layers."""
    return sized.option.shape.layers * (_LAYER + (_MEETING if hardware.threads > 1 else 0.0))


def _unevenness(sized: SizedOption, hardware: Hardware, sequences: int) -> float:
    """Return how much longer attention takes because one thread gets more heads than the others."""
    shape, threads = sized.option.shape, hardware.threads
    heads = sequences * max(1, (shape.queries or shape.width) // max(1, shape.head))
    return math.ceil(heads / threads) * threads / heads


def _attending(sized: SizedOption, kernels: Sequence[Kernel], tokens: int) -> float:
    """Return the seconds in which llama.cpp's tokens attend to FILLED cells; 0 if its kernel was not timed.

    In a prompt a token attends to the cells before it, half of them on average, but the kernel for prompts computes
    the other half too. The kernel for the next smaller measured size of heads stands for other sizes.
    """
    shape = sized.option.shape
    kind = f"attention {sized.cache_type} "
    by_size = {int(each.type.removeprefix(kind)): each for each in kernels if each.type.startswith(kind)}
    if STACKS[sized.option.stack].format != "gguf" or not by_size:
        return 0.0
    fitting = [size for size in by_size if size <= shape.head]
    kernel = by_size[max(fitting, default=min(by_size))]
    products = 2 * (shape.queries or shape.width) * sum(map(bool, shape.kv)) * FILLED * tokens
    return products / (kernel.one if tokens == 1 else kernel.many)


def _kernel_of(sized: SizedOption, kernels: Sequence[Kernel]) -> Kernel | None:
    by_type = {kernel.type: kernel for kernel in kernels if kernel.one and kernel.many}
    name = _type_of(sized.option.quant, by_type) if STACKS[sized.option.stack].format == "gguf" else ""
    return by_type[name] if name else None


def _type_of(quant: str, types: Iterable[str]) -> str:
    """Return the type of most weights: "Q4_K" for Q4_K_M. "" if it is none of `types`."""
    plain = quant.upper().removeprefix("UD-").removeprefix("I1-")
    return max((name for name in types if plain.startswith(name)), key=len, default="")


def _rate(measured: Sequence[Bandwidth], size: int) -> float | None:
    """Return the bandwidth for a model of `size` bytes: between two measured sizes, by the logarithm of the size."""
    known = sorted((each.size, each.rate) for each in measured if each.size and each.rate)
    if not known:
        return None
    for (small, fast), (large, slow) in itertools.pairwise(known):
        if small <= size <= large:
            return fast + (slow - fast) * math.log(size / small) / math.log(large / small)
    return known[0][1] if size < known[0][0] else known[-1][1]

"""Write GGUF files of real size with random quantised blocks, at the speed of the disk.

No weight is ever quantised: the blocks are random bytes, and only their scales are set, so that the weights of a matrix
have about the spread of trained ones. The text that such a model writes means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import shapes
from tools.random_gguf import add_tokenizer

if TYPE_CHECKING:
    import numpy as np

_POOL = 32 << 20  # most bytes of random blocks, from which the matrices of one format and width are taken
_PIECE = 4 << 20  # bytes that are taken at once, each from another place of the pool
_CONTEXT = 131_072  # tokens


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantised format. `size`: bytes of a block of `values` weights. `file_type`: of general.file_type."""

    size: int
    values: int
    file_type: int


# The names are those of gguf.GGMLQuantizationType.
FORMATS = {"Q8_0": Blocks(34, 32, 7), "Q4_K": Blocks(144, 256, 15), "Q6_K": Blocks(210, 256, 18)}
LLAMA_8B = shapes.Shape(4096, 32, 32, 8, 14_336)
LLAMA_1B = shapes.Shape(2048, 16, 32, 8, 8192)
TINY = shapes.Shape(256, 2, 4, 2, 512)
VOCAB = {LLAMA_8B: 128_256, LLAMA_1B: 128_256, TINY: 2048}


def write(shape: shapes.Shape, kind: str, path: Path, *, seed: int = 0) -> int:
    """Write a Llama of this shape. `kind`: Q8_0, or Q4_K with an output in Q6_K. Return the bytes of the file."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_header(writer, shape, FORMATS[kind].file_type)
    _add_vocabulary(writer, VOCAB[shape])
    tensors = list(_tensors(shape, kind))
    for name, rows, columns, format_ in tensors:
        dimensions = (rows, columns) if rows > 1 else (columns,)
        quantised = getattr(gguf.GGMLQuantizationType, format_)
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), _bytes(rows, columns, format_), quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools: dict[tuple[str, int], np.ndarray] = {}
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for _, rows, columns, format_ in tensors:
        size = _bytes(rows, columns, format_)
        if format_ == "F32":
            out.write(np.ones(columns, dtype=np.float32).tobytes())
        else:
            key = format_, columns
            if key not in pools:
                largest = max(_bytes(n, m, each) for _, n, m, each in tensors if (each, m) == key)
                pools[key] = _pool(format_, columns, min(largest, _POOL), rng)
            _write_blocks(out, pools[key], size, rng)
        writer.write_padding(out, size)
    writer.close()
    return path.stat().st_size


_vocabulary = cache(shapes.vocabulary)


def _add_header(writer: Any, shape: shapes.Shape, file_type: int) -> None:
    writer.add_name("random blocks")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB[shape])
    writer.add_file_type(file_type)


def _add_vocabulary(writer: Any, size: int) -> None:
    """Add the first `size` tokens of the benchmarks' vocabulary; if it has fewer, fillers that are in no text too."""
    import gguf

    tokens, types, merges = _vocabulary()
    merged = min(
        len(merges), len(merges) + size - len(tokens)
    )  # every merge makes one token, and these are the last ones
    fillers = [f"filler{i}" for i in range(size - len(tokens))]
    made = [*types[:size], *[gguf.TokenType.NORMAL] * len(fillers)]
    add_tokenizer(writer, [*tokens[:size], *fillers], made, merges[:merged], shapes.TEMPLATE)


def _tensors(shape: shapes.Shape, kind: str) -> list[tuple[str, int, int, str]]:
    """Return name, rows, columns and format of every tensor. A vector has one row."""
    kv = shape.width // shape.heads * shape.kv_heads
    vocab, width, feed_forward = VOCAB[shape], shape.width, shape.feed_forward
    output = "Q6_K" if kind == "Q4_K" else kind
    made = [("token_embd.weight", vocab, width, kind), ("output_norm.weight", 1, width, "F32")]
    made.append(("output.weight", vocab, width, output))
    for i in range(shape.layers):
        sizes = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width), "attn_output": (width, width)}
        sizes |= {"ffn_gate": (feed_forward, width), "ffn_up": (feed_forward, width), "ffn_down": (width, feed_forward)}
        made += [(f"blk.{i}.{name}.weight", 1, width, "F32") for name in ("attn_norm", "ffn_norm")]
        made += [(f"blk.{i}.{name}.weight", rows, columns, kind) for name, (rows, columns) in sizes.items()]
    return made


def _bytes(rows: int, columns: int, format_: str) -> int:
    if format_ == "F32":
        return 4 * rows * columns
    blocks = FORMATS[format_]
    return rows * columns // blocks.values * blocks.size


def _pool(format_: str, columns: int, room: int, rng: np.random.Generator) -> np.ndarray:
    """Return `room` bytes of random blocks, shape (blocks, bytes).

    Their scales give the weights a standard deviation of columns ** -0.5.
    """
    import numpy as np

    size = FORMATS[format_].size
    pool = rng.integers(0, 256, (room // size, size), dtype=np.uint8)
    spread = columns**-0.5
    if format_ == "Q8_0":  # scale, 32 values of -128 to 127
        _set_scale(pool, 0, spread / 74)
    elif format_ == "Q4_K":  # scale, scale of the minima, 12 bytes of 6-bit scales, values of 0 to 15
        _set_scale(pool, 0, spread / 260)
        _set_scale(pool, 2, 7.5 * spread / 260)
    else:  # Q6_K: values of -32 to 31, 16 scales of -128 to 127, scale
        _set_scale(pool, size - 2, spread / 1370)
    return pool


def _set_scale(pool: np.ndarray, at: int, scale: float) -> None:
    import numpy as np

    pool[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)


def _write_blocks(out: Any, pool: np.ndarray, size: int, rng: np.random.Generator) -> None:
    """Write `size` bytes of the pool, piece by piece from random places, so that no two rows are equal."""
    block = pool.shape[1]
    piece = min(len(pool), _PIECE // block)
    left = size // block
    while left:
        count = min(piece, left)
        start = int(rng.integers(0, len(pool) - count + 1))
        out.write(memoryview(pool[start : start + count]))
        left -= count

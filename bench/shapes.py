"""Write models of real shapes with random weights, to measure speed: `python bench/shapes.py 205m OUT.gguf`.

Llama architecture, Q8_0 or another quant, a 32k byte-level BPE vocabulary of made-up syllables. So constrained
decoding has tokens of the same lengths as in real vocabularies.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.random_gguf import add_tokenizer
from tourkit.backends.vocabulary import byte_alphabet


@dataclass(frozen=True, slots=True)
class Shape:
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int


SHAPES = {
    "12m": Shape(192, 4, 4, 2, 512),
    "205m": Shape(1024, 10, 16, 8, 3520),
    "1.1b": Shape(2048, 22, 32, 4, 5632),
    "3b": Shape(3072, 28, 24, 8, 8192),
}
N_VOCAB = 32_000
CONTEXT = 16_384
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Return tokens, types and merges: bytes, then syllables, syllables after a space, and pairs of syllables."""
    import gguf

    alphabet = byte_alphabet()
    tokens = ["<|begin|>", "<|start|>", "<|end|>"]
    types = [gguf.TokenType.CONTROL] * 3
    tokens += [alphabet[byte] for byte in range(256)]
    merges: list[str] = []
    seen = set(tokens)

    def merge(left: str, right: str) -> None:
        if left + right not in seen and len(tokens) < N_VOCAB:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
            seen.add(left + right)

    space = alphabet[32]
    for piece in ('": ', '", ', '"}', '"]', "], ", "}, "):
        letters = [alphabet[ord(c)] for c in piece]
        for end in range(2, len(letters) + 1):
            merge("".join(letters[: end - 1]), letters[end - 1])
    syllables = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvwz", "aeiouy")]
    for syllable in syllables:
        merge(syllable[0], syllable[1])
    for syllable in syllables:
        merge(space, syllable)
    for first, second in itertools.product(syllables, syllables):
        merge(first, second)
    for first, second in itertools.product(syllables, syllables):
        merge(space + first, second)
    for first, second, third in itertools.product(syllables[:20], syllables, syllables):
        merge(first + second, third)
    types += [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    return tokens, types, merges


def write(shape: Shape, path: Path, seed: int = 0, *, quant: str = "Q8_0", distinct: int | None = None) -> int:
    """Write the model. Return its number of parameters.

    `quant`: a type that gguf-py can write, such as Q8_0 or Q4_0. `distinct`: how many rows of each matrix are drawn and
    then repeated, which saves minutes for a large model; None for all.
    """
    import gguf
    import numpy as np

    rng = np.random.default_rng(seed)
    tokens, types, merges = vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quant}"])
    add_tokenizer(writer, tokens, types, merges, TEMPLATE)
    count = 0

    def matrix(name: str, rows: int, columns: int) -> None:
        nonlocal count
        drawn = min(rows, distinct or rows)
        weights = rng.standard_normal((drawn, columns), dtype=np.float32) * columns**-0.5
        kind = gguf.GGMLQuantizationType[quant]
        quantised = gguf.quants.quantize(weights, kind)
        writer.add_tensor(name, np.resize(quantised, (rows, quantised.shape[1])), raw_dtype=kind)
        count += rows * columns

    kv = shape.width // shape.heads * shape.kv_heads
    ones = np.ones(shape.width, dtype=np.float32)
    matrix("token_embd.weight", len(tokens), shape.width)
    matrix("output.weight", len(tokens), shape.width)
    writer.add_tensor("output_norm.weight", ones)
    for i in range(shape.layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        for name, rows, columns in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", kv, shape.width),
            ("attn_v", kv, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.feed_forward, shape.width),
            ("ffn_up", shape.feed_forward, shape.width),
            ("ffn_down", shape.width, shape.feed_forward),
        ):
            matrix(f"blk.{i}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


if __name__ == "__main__":
    made = write(SHAPES[sys.argv[1]], Path(sys.argv[2]))
    print(f"{sys.argv[2]}: {made / 1e6:.0f} M parameters")

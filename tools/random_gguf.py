"""Write a tiny Llama GGUF with random weights: valid, but its answers mean nothing. For tests without a download.

The vocabulary is byte-level BPE, so it reads and writes any text. The weights come from a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tourkit.backends.vocabulary import byte_alphabet

_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _FEED_FORWARD = 64, 2, 4, 2, 128
_CONTEXT = 8192  # tokens
_WORDS = [
    "the",
    "and",
    "name",
    "date",
    "type",
    "label",
    "total",
    "answer",
    " the",
    " and",
    " to",
    " of",
    "null",
    "true",
]
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def write_random_gguf(path: Path, *, seed: int = 0) -> None:
    """Write the model (about 0.5 MB). The same seed gives the same bytes."""
    import gguf

    tokens, types, merges = _vocabulary(gguf)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny random")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    add_tokenizer(writer, tokens, types, merges, _CHAT_TEMPLATE)
    for name, tensor in _tensors(len(tokens), seed):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokens: list[str], types: list[int], merges: list[str], chat_template: str) -> None:
    """Add a byte-level BPE tokenizer. The first token begins a text, the third one ends it."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)


def _vocabulary(gguf: Any) -> tuple[list[str], list[int], list[str]]:
    alphabet = byte_alphabet()
    tokens = ["<|begin|>", "<|start|>", "<|end|>"]
    types = [gguf.TokenType.CONTROL] * len(tokens)
    tokens += [alphabet[byte] for byte in range(256)]
    merges: list[str] = []
    for word in _WORDS:
        letters = [alphabet[byte] for byte in word.encode()]
        whole = letters[0]
        for letter in letters[1:]:
            if whole + letter not in tokens:
                merges.append(f"{whole} {letter}")
                tokens.append(whole + letter)
            whole += letter
    types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
    return tokens, types, merges


def _tensors(n_vocab: int, seed: int) -> list[tuple[str, Any]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    kv_width = _WIDTH // _HEADS * _KV_HEADS

    def matrix(rows: int, columns: int) -> Any:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float16)

    def ones() -> Any:
        return np.ones(_WIDTH, dtype=np.float32)

    tensors = [("token_embd.weight", matrix(n_vocab, _WIDTH)), ("output_norm.weight", ones())]
    tensors.append(("output.weight", matrix(n_vocab, _WIDTH) * np.float16(8)))
    for i in range(_LAYERS):
        tensors += [
            (f"blk.{i}.attn_norm.weight", ones()),
            (f"blk.{i}.attn_q.weight", matrix(_WIDTH, _WIDTH)),
            (f"blk.{i}.attn_k.weight", matrix(kv_width, _WIDTH)),
            (f"blk.{i}.attn_v.weight", matrix(kv_width, _WIDTH)),
            (f"blk.{i}.attn_output.weight", matrix(_WIDTH, _WIDTH)),
            (f"blk.{i}.ffn_norm.weight", ones()),
            (f"blk.{i}.ffn_gate.weight", matrix(_FEED_FORWARD, _WIDTH)),
            (f"blk.{i}.ffn_up.weight", matrix(_FEED_FORWARD, _WIDTH)),
            (f"blk.{i}.ffn_down.weight", matrix(_WIDTH, _FEED_FORWARD)),
        ]
    return tensors

"""Write tiny GGUF files that tourkit itself does not write: split, with other metadata, BERT, LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BERT_WIDTH, BERT_CONTEXT = 32, 64
_BERT_WORDS = "the name date of bill total is due number".split()


def rewrite(source: Path, target: Path, *, parts: int = 1, without: str = "", **changes: int) -> Path:
    """Copy tensors and metadata to `target` in `parts` files, with some metadata changed (`pooling_type=3`).

    `without`: a key to leave out. Returns the first file; for one part this is `target`.
    """
    reader = gguf.GGUFReader(source)
    arch = str(reader.fields["general.architecture"].contents())
    per_part = -(-len(reader.tensors) // parts) if parts > 1 else 0
    writer = gguf.GGUFWriter(str(target), arch, split_max_tensors=per_part)
    values = {f"{arch}.{name.replace('__', '.')}": value for name, value in changes.items()}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", without, *values):
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, value in values.items():
        writer.add_uint32(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    finish(writer)
    return target if parts == 1 else target.with_name(f"{target.stem}-00001-of-{parts:05}.gguf")


def write_bert(
    path: Path, *, pooling: gguf.PoolingType = gguf.PoolingType.MEAN, labels: Sequence[str] = (), seed: int = 0
) -> Path:
    """Write a BERT of one layer with random weights: lower-case words and letters, [CLS] and [SEP] around texts.

    `labels`: those of a head that gives a score for each of them; () for a model without a head.
    """
    rng = np.random.default_rng(seed)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\u2581{piece}" for piece in [*_BERT_WORDS, *letters]), *letters]
    width, forward = BERT_WIDTH, 64
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_context_length(BERT_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(tokens) - 4))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)  # [CLS]: llama.cpp stores it under this name
    writer.add_sep_token_id(3)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, rng.standard_normal((rows, columns)).astype(np.float32) * columns**-0.5)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    matrix("token_embd.weight", len(tokens), width)
    matrix("token_types.weight", 2, width)
    matrix("position_embd.weight", BERT_CONTEXT, width)
    for norm in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        vector(f"{norm}.weight", width, 1)
        vector(f"{norm}.bias", width, 0)
    shapes = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width)}
    shapes |= {"attn_output": (width, width), "ffn_up": (forward, width), "ffn_down": (width, forward)}
    for name, (rows, columns) in shapes.items():
        matrix(f"blk.0.{name}.weight", rows, columns)
        vector(f"blk.0.{name}.bias", rows, 0)
    if labels:
        writer.add_classifier_output_labels(labels)
        matrix("cls.weight", width, width)
        matrix("cls.output.weight", len(labels), width)
        writer.add_tensor("cls.bias", rng.standard_normal(width).astype(np.float32))
        writer.add_tensor("cls.output.bias", rng.standard_normal(len(labels)).astype(np.float32))
    finish(writer)
    return path


def write_qwen3(path: Path, base: Path, *, answers: tuple[int, int] | None = None, prompt: str = "") -> Path:
    """Write a Qwen3 with random weights and the tokenizer of `base`. With `answers` it is a reranker.

    Its head then has the rows of the output matrix for these two tokens, "yes" first, as llama.cpp's converter makes
    it. `prompt`: its prompt for reranking.
    """
    width, layers, heads, kv_heads, forward, head = 64, 2, 4, 2, 128, 32
    rng, reader = np.random.default_rng(1), gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), "qwen3")
    n_vocab = copy_tokenizer(writer, reader)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(n_vocab)
    output = rng.standard_normal((n_vocab, width), dtype=np.float32)
    writer.add_tensor("token_embd.weight", rng.standard_normal((n_vocab, width), dtype=np.float32))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    shapes = {"attn_q": (heads * head, width), "attn_k": (kv_heads * head, width), "attn_v": (kv_heads * head, width)}
    shapes |= {"attn_output": (width, heads * head), "ffn_gate": (forward, width), "ffn_up": (forward, width)}
    shapes |= {"ffn_down": (width, forward)}
    for i in range(layers):
        for name, size in {"attn_norm": width, "ffn_norm": width, "attn_q_norm": head, "attn_k_norm": head}.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(size, dtype=np.float32))
        for name, (rows, columns) in shapes.items():
            matrix = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(columns**-0.5)
            writer.add_tensor(f"blk.{i}.{name}.weight", matrix)
    if answers is not None:
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_tensor("cls.output.weight", np.ascontiguousarray(output[list(answers)]))
    if prompt:
        writer.add_string(gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name="rerank"), prompt)
    finish(writer)
    return path


def write_lora(path: Path, base: Path, *, strength: float = 1, seed: int = 0) -> Path:
    """Write a random adapter of rank 4 for the query matrices of `base`. Strength 0 changes nothing."""
    rng = np.random.default_rng(seed)
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), str(reader.fields["general.architecture"].contents()))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4)
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_q.weight"):
            columns, rows = map(int, tensor.shape)  # GGUF puts the inner dimension first
            pair = {"lora_a": (4, columns), "lora_b": (rows, 4)}
            for name, shape in pair.items():
                factor = strength if name == "lora_b" else 1
                writer.add_tensor(f"{tensor.name}.{name}", rng.standard_normal(shape).astype(np.float32) * factor)
    finish(writer)
    return path


def write_sliding(path: Path, base: Path, *, window: int, seed: int = 0) -> Path:
    """Write a model with random weights and the tokenizer of `base`. Three of its four layers see `window` tokens."""
    width, layers, heads, kv_heads, forward = 64, 4, 4, 2, 128
    rng, reader = np.random.default_rng(seed), gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), "cohere2")
    n_vocab = copy_tokenizer(writer, reader)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_logit_scale(1.0)
    writer.add_sliding_window(window)
    writer.add_vocab_size(n_vocab)
    kv_width = width // heads * kv_heads
    shapes = {"attn_q": (width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width)}
    shapes |= {"attn_output": (width, width), "ffn_gate": (forward, width), "ffn_up": (forward, width)}
    shapes |= {"ffn_down": (width, forward)}
    writer.add_tensor("token_embd.weight", rng.standard_normal((n_vocab, width), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(width, dtype=np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{i}.{name}.weight", rng.standard_normal(shape, dtype=np.float32) / 4)
    finish(writer)
    return path


def copy_tokenizer(writer: Any, reader: Any) -> int:
    """Give a file the tokenizer of another one. Return how many tokens it has."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    return len(reader.fields["tokenizer.ggml.tokens"].contents())


def finish(writer: Any) -> None:
    """Write the header and all tensors, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

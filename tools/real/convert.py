"""Write a quantised GGUF of Llama's kind in other formats: `python -m tools.real.convert MODEL.gguf OUT [FORMAT…]`.

OUT gets model-f32.gguf and safetensors/ with the same float32 numbers, and onnx/, which onnxruntime-genai's builder
makes of safetensors/. So the stacks can be compared: llama.cpp rounds activations to 8 bits with quantised weights, and
no other stack does. `gguf` turns quantised blocks into float32, with the formulas of llama.cpp.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tools.tiny.export import write_onnx

FILES = {"gguf": "model-f32.gguf", "safetensors": "safetensors", "onnx": "onnx"}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(source: gguf.GGUFReader, path: Path) -> None:
    """Write the same GGUF with every tensor in float32."""
    arch = value(source, "general.architecture")
    writer = gguf.GGUFWriter(str(path), arch)
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, floats(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(source: gguf.GGUFReader, folder: Path) -> None:
    """Write the folder for transformers and vLLM: config, tokenizer, chat template, weights in float32."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(source)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in source.tensors:
        kind = tensor.name.split(".")[-2]
        matrix = floats(tensor)
        weights[published(tensor.name)] = _halves(matrix, heads[kind]) if kind in heads else matrix
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    for name, about in {"config": config, "generation_config": ends, "tokenizer_config": names_of(source)}.items():
        (folder / f"{name}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(value(source, "tokenizer.chat_template"), encoding="utf-8")
    tokenizer_of(source).save(str(folder / "tokenizer.json"))


def value(source: gguf.GGUFReader, key: str) -> Any:
    field = source.fields.get(key)
    return None if field is None else field.contents()


def floats(tensor: gguf.ReaderTensor) -> np.ndarray:
    """Return the numbers of a tensor in float32, in rows."""
    found: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return np.ascontiguousarray(found)


def published(name: str) -> str:
    """Return the name in safetensors of a tensor of a GGUF."""
    *layer, kind, _ = name.split(".")
    within = f"model.layers.{layer[1]}." if layer else ""
    return f"{within}{_NAMES[kind]}.weight"


def _halves(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head: transformers rotates halves, llama.cpp rotates neighbouring pairs."""
    rows, columns = matrix.shape
    return np.ascontiguousarray(
        matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def config_of(source: gguf.GGUFReader) -> dict[str, Any]:
    """Return config.json of a Llama."""

    def of(name: str) -> Any:
        return value(source, f"llama.{name}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(value(source, "tokenizer.ggml.tokens")),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in source.tensors),
        "bos_token_id": value(source, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": value(source, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": value(source, "tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def names_of(source: gguf.GGUFReader) -> dict[str, Any]:
    """Return tokenizer_config.json."""
    tokens = value(source, "tokenizer.ggml.tokens")
    kinds = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    ids = {name: value(source, f"tokenizer.ggml.{key}_token_id") for key, name in kinds.items()}
    named = {f"{name}_token": tokens[id_] for name, id_ in ids.items() if id_ is not None}
    return named | {
        # Not GPT2Tokenizer: transformers 5 makes that class without the rule for digits that tokenizer.json has.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": value(source, "llama.context_length"),
    }


def tokenizer_of(source: gguf.GGUFReader) -> Any:
    """Return the tokenizer of a GGUF whose pre-tokenizer is `smollm`: each digit alone, then GPT-2's rule."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = value(source, "tokenizer.ggml.pre")
    if kind != "smollm":
        raise ValueError(f"tokenizer.ggml.pre is {kind}, but only smollm is known here")
    tokens = value(source, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value(source, "tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({text: id_ for id_, text in enumerate(tokens)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    made.decoder = decoders.ByteLevel()
    types = value(source, "tokenizer.ggml.token_type")
    control = [text for text, type_ in zip(tokens, types, strict=True) if type_ == gguf.TokenType.CONTROL]
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    return made


def main() -> None:
    source, out = gguf.GGUFReader(sys.argv[1]), Path(sys.argv[2])
    formats = sys.argv[3:] or list(FILES)
    out.mkdir(parents=True, exist_ok=True)
    if "gguf" in formats:
        write_gguf(source, out / FILES["gguf"])
    if "safetensors" in formats:
        write_safetensors(source, out / FILES["safetensors"])
    if "onnx" in formats:
        write_onnx(out / FILES["safetensors"], out / FILES["onnx"])


if __name__ == "__main__":
    main()

"""Write the trained model in every format: `python -m tools.tiny.export --model DIR --tokenizer DIR --out DIR`.

The weights are rounded to 16 bits once, so all formats except Q8_0 hold the same numbers. Q8_0 keeps embeddings and
attention in 16 bits: so it writes the same text on 100 of 102 prompts. With all weights in 8 bits it was 96.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.tiny import prompts

NAME = "tourkit-tiny"
FORMATS = ("gguf", "onnx", "safetensors")
KEPT = ("token_embd.", ".attn_")  # 16-bit in Q8_0 too: small changes mislead the sharp attention of the copying heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--no-onnx", action="store_true")
    args = parser.parse_args()
    write_safetensors(args.model, args.tokenizer, args.out / "safetensors")
    for quant in ("F16", "Q8_0"):
        write_gguf(args.out / "safetensors", args.out / "gguf" / f"tiny-{quant.lower()}.gguf", quant)
    if not args.no_onnx:
        write_onnx(args.out / "safetensors", args.out / "onnx")
    recipe = json.loads((args.model / "recipe.json").read_text(encoding="utf-8"))
    recipe["files"] = sums(args.out)
    (args.out / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    lines = [f"{digest}  {path}\n" for path, digest in sums(args.out).items()]
    (args.out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def sums(root: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of every format, by path."""
    files = sorted(p for folder in FORMATS for p in (root / folder).rglob("*") if p.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_safetensors(source: Path, tokenizer: Path, folder: Path) -> None:
    """Write the folder for transformers and vLLM: config, tokenizer, weights in float16."""
    import torch
    from transformers import LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    (folder / "model.safetensors").chmod(0o644)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / file)
    (folder / "chat_template.jinja").write_text(prompts.CHAT_TEMPLATE, encoding="utf-8")


def write_gguf(source: Path, path: Path, quant: str) -> None:
    """Write one GGUF file with float16 or Q8_0 matrices, from a safetensors folder."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    _describe(writer, gguf, config, vocabulary, quant)
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = load_file(source / "model.safetensors")
    for name in sorted(tensors):
        matrix = tensors[name]
        target = _gguf_name(name)
        if ".attn_q." in target or ".attn_k." in target:
            matrix = _permuted(matrix, heads[0] if ".attn_q." in target else heads[1])
        if matrix.ndim == 1:
            writer.add_tensor(target, matrix.astype(np.float32))
        elif quant == "Q8_0" and not any(part in target for part in KEPT):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(matrix.astype(np.float32), kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(matrix.astype(np.float16)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, gguf: Any, config: dict[str, Any], vocabulary: dict[str, Any], quant: str) -> None:
    kinds = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_file_type(kinds[quant])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    special = len(prompts.SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * special + [gguf.TokenType.NORMAL] * (len(tokens) - special))
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(prompts.CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"


def _permuted(matrix: Any, heads: int) -> Any:
    """Reorder the rows of each head: llama.cpp rotates neighbouring pairs, transformers rotates halves."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_onnx(source: Path, folder: Path) -> None:
    """Write the folder for onnxruntime-genai, in float32."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folder)]
        subprocess.run([*command, "-p", "fp32", "-e", "cpu", "-c", cache], check=True, env=environment)


if __name__ == "__main__":
    main()

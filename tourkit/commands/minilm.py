"""Write the safetensors of a BERT such as MiniLM as a GGUF, so that llama.cpp makes its vectors without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tourkit.errors import LocalError

if TYPE_CHECKING:
    import numpy as np

# Names of tensors: in the safetensors, and in a GGUF. "{}" is the number of the layer.
_TENSORS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_WORD = "\u2581"  # a GGUF marks the pieces that begin a word; vocab.txt marks the others with "##"


def write_gguf(folder: Path, path: Path) -> None:
    """Read `config.json`, `vocab.txt` and `model.safetensors` of `folder`; write float32 weights and mean pooling.

    Raises LocalError if a file cannot be read, or if a tensor is missing or not float32.
    """
    import gguf

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        tensors = _tensors(folder / "model.safetensors")
        names = _names(int(config["num_hidden_layers"]))
        writer = gguf.GGUFWriter(str(path), "bert")
        _add_shape(writer, config)
        _add_vocabulary(writer, vocabulary)
        for source, target in names.items():
            writer.add_tensor(target, tensors[source])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except (OSError, ValueError, KeyError) as exc:
        raise LocalError(f"{folder}: no GGUF can be made of it ({exc!r}): run `tourkit verify`") from exc


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the float32 tensors of a safetensors file: its header names type, shape and bytes of each."""
    import numpy as np

    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    return {
        name: np.frombuffer(data[slice(*about["data_offsets"])], np.float32).reshape(about["shape"])
        for name, about in header.items()
        if about.get("dtype") == "F32"
    }


def _names(layers: int) -> dict[str, str]:
    """Return the name in the GGUF by the name in the safetensors, of every tensor that a text's vector needs."""
    names = {source: target for source, target in _TENSORS.items() if source.endswith(".weight")}
    pairs = {source: target for source, target in _TENSORS.items() if source not in names}
    for i in range(layers):
        pairs |= {f"encoder.layer.{i}.{source}": f"blk.{i}.{target}" for source, target in _LAYER.items()}
    return names | {
        f"{source}.{part}": f"{target}.{part}" for source, target in pairs.items() for part in ("weight", "bias")
    }


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_vocabulary(writer: Any, vocabulary: list[str]) -> None:
    import gguf

    special = {f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    kind = gguf.TokenType
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list([piece if piece in special else _marked(piece) for piece in vocabulary])
    writer.add_token_types([kind.CONTROL if piece in special else kind.NORMAL for piece in vocabulary])
    writer.add_bos_token_id(vocabulary.index("[CLS]"))  # llama.cpp stores [CLS] under this name
    writer.add_sep_token_id(vocabulary.index("[SEP]"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))
    writer.add_unk_token_id(vocabulary.index("[UNK]"))
    writer.add_mask_token_id(vocabulary.index("[MASK]"))


def _marked(piece: str) -> str:
    return piece.removeprefix("##") if piece.startswith("##") else _WORD + piece

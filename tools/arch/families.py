"""Tiny models by the families of the catalogue that they stand for: plain data, to which a new family adds a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tools.arch import templates


@dataclass(frozen=True)
class Tiny:
    """A model small enough to be made in a second, laid out as its families' own folders are.

    `architecture`: as the catalogue names it; `config`: transformers' class; `published`: what the families' config.json says of itself where that differs from
    what the class writes. `pooling`: of an embedder, "mean" or "cls".
    """

    name: str
    families: tuple[str, ...]
    architecture: str
    config: str
    vocabulary: str
    template: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    padding: int = 64  # the vocabulary is padded to a multiple of this, as published weights are


CONTEXT = 2048
_SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_USUAL: dict[str, Any] = _SIZES | {"intermediate_size": 256, "max_position_embeddings": CONTEXT}
_GROUPED = _USUAL | {"num_key_value_heads": 2}
_UNTIED = {"tie_word_embeddings": False}
_BERT = _USUAL | {"type_vocab_size": 2, "max_position_embeddings": 512}
_LLAMA_3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 256,
}

TINY = (
    Tiny(
        "llama-2",
        ("llama-2", "alpaca", "code-llama", "elyza", "koala", "llama-pro", "openllama", "vicuna"),
        *("llama", "LlamaConfig", "llama", templates.LLAMA_2),
        _USUAL | _UNTIED,
    ),
    Tiny("llama-3", ("llama-3",), "llama", "LlamaConfig", "llama-3", templates.LLAMA_3, _GROUPED | _UNTIED),
    Tiny(
        *("llama-3.1", ("llama-3.1",), "llama", "LlamaConfig", "llama-3", templates.LLAMA_3),
        _GROUPED | _UNTIED | {"rope_parameters": _LLAMA_3_ROPE},
    ),
    Tiny("yi", ("yi",), "llama", "LlamaConfig", "yi", templates.CHATML, _GROUPED | _UNTIED),
    Tiny(
        *("mistral", ("mistral", "biomistral", "openmath"), "mistral", "MistralConfig", "mistral", templates.MISTRAL),
        _GROUPED | _UNTIED | {"sliding_window": None},
    ),
    Tiny(
        *("mixtral", ("mixtral",), "mixtral", "MixtralConfig", "llama", templates.LLAMA_2),
        _GROUPED | _UNTIED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    Tiny("qwen2.5", ("qwen",), "qwen2", "Qwen2Config", "qwen2", templates.CHATML, _GROUPED | _UNTIED),
    Tiny(
        *("gemma", ("gemma", "codegemma"), "gemma", "GemmaConfig", "gemma", templates.GEMMA),
        _GROUPED | {"head_dim": 32, "num_key_value_heads": 1},
    ),
    Tiny(
        *("gemma-2", ("gemma-2",), "gemma2", "Gemma2Config", "gemma", templates.GEMMA),
        _GROUPED | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    ),
    Tiny(
        *("phi-2", ("phi-2",), "phi", "PhiConfig", "phi-2", templates.PHI_2),
        _USUAL | _UNTIED | {"intermediate_size": 512, "partial_rotary_factor": 0.5},
    ),
    Tiny(
        *("phi-3", ("phi-3",), "phi3", "Phi3Config", "phi-3", templates.PHI_3),
        _USUAL | _UNTIED | {"sliding_window": 2047, "original_max_position_embeddings": CONTEXT},
    ),
    Tiny(
        "falcon",
        ("falcon", "gpt4all-falcon", "openassistant-falcon"),
        *("falcon", "FalconConfig", "falcon", templates.FALCON),
        _SIZES | {"multi_query": True, "num_kv_heads": 1, "parallel_attn": True, "alibi": False, "bias": False},
    ),
    Tiny(
        *("internlm2", ("internlm2",), "internlm2", "LlamaConfig", "internlm2", templates.CHATML_BOS),
        _GROUPED | _UNTIED,
        {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False},
        padding=1,
    ),
    Tiny(
        *("mpt", ("mpt",), "mpt", "MptConfig", "neox", templates.INSTRUCTION),
        {"d_model": 128, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT, "expansion_ratio": 4},
        {"architectures": ["MPTForCausalLM"]},
    ),
    Tiny(
        *("bloom", ("bloom",), "bloom", "BloomConfig", "bloom", templates.PLAIN),
        {"hidden_size": 128, "n_layer": 2, "n_head": 4, "seq_length": CONTEXT},
    ),
    Tiny(
        *("gpt-neox", ("gpt-neox", "redpajama"), "gpt_neox", "GPTNeoXConfig", "neox", templates.HUMAN_BOT),
        _USUAL | {"rotary_pct": 0.25},
        {"rotary_pct": 0.25},
    ),
    Tiny(
        *("opt", ("opt",), "opt", "OPTConfig", "opt", templates.PLAIN),
        _SIZES | {"ffn_dim": 256, "word_embed_proj_dim": 128, "max_position_embeddings": CONTEXT},
    ),
    Tiny(
        *("stablelm", ("stablelm",), "stablelm", "StableLmConfig", "neox", templates.ZEPHYR),
        _USUAL | {"num_key_value_heads": 4, "partial_rotary_factor": 0.25},
    ),
    Tiny("olmo", ("olmo",), "olmo", "OlmoConfig", "olmo", templates.OLMO, _USUAL | {"num_key_value_heads": 4} | _UNTIED),
    Tiny("all-minilm", ("all-minilm",), "bert", "BertConfig", "bert", fields=_BERT, pooling="mean"),
    Tiny("multilingual-e5", ("multilingual-e5",), "bert", "BertConfig", "xlm-roberta", fields=_BERT, pooling="mean"),
    Tiny(
        *("bge-m3", ("bge-m3",), "xlm-roberta", "XLMRobertaConfig", "xlm-roberta"),
        fields=_BERT | {"type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
        pooling="cls",
    ),
)
BY_NAME = {tiny.name: tiny for tiny in TINY}
OF_FAMILY = {family: tiny for tiny in TINY for family in tiny.families}

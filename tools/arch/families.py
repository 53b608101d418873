"""One tiny model for each group of families in the catalogue. Plain data: for a new family, add a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tools.arch import templates


@dataclass(frozen=True)
class Tiny:
    """A model that is made in a second, with the same files as the published models of its families.

    `architecture`: as in the catalogue. `config`: the class in transformers, with `fields`. `published`: keys of the
    published config.json that the class lacks or names differently. `pooling`: "mean" or "cls" for an embedding model.
    """

    families: tuple[str, ...]
    architecture: str
    config: str
    vocabulary: str  # a key of vocabularies.KINDS
    template: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    pooling: str = ""
    padding: int = 64  # the vocabulary is padded to a multiple of this, as published weights are

    @property
    def name(self) -> str:
        return self.families[0]


CONTEXT = 2048
_SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_TIED = _SIZES | {"intermediate_size": 256, "max_position_embeddings": CONTEXT}
_USUAL = _TIED | {"tie_word_embeddings": False}
_GROUPED = _USUAL | {"num_key_value_heads": 2}
_BERT = _TIED | {"type_vocab_size": 2, "max_position_embeddings": 512}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

TINY = (
    Tiny(
        families=("llama-2", "alpaca", "code-llama", "elyza", "koala", "llama-pro", "openllama", "vicuna"),
        architecture="llama",
        config="LlamaConfig",
        vocabulary="llama",
        template=templates.LLAMA_2,
        fields=_USUAL,
    ),
    Tiny(
        families=("llama-3",),
        architecture="llama",
        config="LlamaConfig",
        vocabulary="llama-3",
        template=templates.LLAMA_3,
        fields=_GROUPED,
    ),
    Tiny(
        families=("llama-3.1",),
        architecture="llama",
        config="LlamaConfig",
        vocabulary="llama-3",
        template=templates.LLAMA_3,
        fields=_GROUPED | {"rope_parameters": _LLAMA_3_ROPE},
    ),
    Tiny(
        families=("yi",),
        architecture="llama",
        config="LlamaConfig",
        vocabulary="yi",
        template=templates.CHATML,
        fields=_GROUPED,
    ),
    Tiny(
        families=("smollm2",),
        architecture="llama",
        config="LlamaConfig",
        vocabulary="smollm",
        template=templates.CHATML,
        fields=_GROUPED | {"tie_word_embeddings": True},
    ),
    Tiny(
        families=("mistral", "biomistral", "openmath"),
        architecture="mistral",
        config="MistralConfig",
        vocabulary="mistral",
        template=templates.MISTRAL,
        fields=_GROUPED | {"sliding_window": None},
    ),
    Tiny(
        families=("mixtral",),
        architecture="mixtral",
        config="MixtralConfig",
        vocabulary="llama",
        template=templates.LLAMA_2,
        fields=_GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    Tiny(
        families=("qwen",),
        architecture="qwen2",
        config="Qwen2Config",
        vocabulary="qwen2",
        template=templates.CHATML,
        fields=_GROUPED,
    ),
    Tiny(
        families=("gemma", "codegemma"),
        architecture="gemma",
        config="GemmaConfig",
        vocabulary="gemma",
        template=templates.GEMMA,
        fields=_TIED | {"num_key_value_heads": 1, "head_dim": 32},
    ),
    Tiny(
        families=("gemma-2",),
        architecture="gemma2",
        config="Gemma2Config",
        vocabulary="gemma",
        template=templates.GEMMA,
        fields=_TIED | {"num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    ),
    Tiny(
        families=("phi-2",),
        architecture="phi",
        config="PhiConfig",
        vocabulary="phi-2",
        template=templates.PHI_2,
        fields=_USUAL | {"intermediate_size": 512, "partial_rotary_factor": 0.5},
    ),
    Tiny(
        families=("phi-3",),
        architecture="phi3",
        config="Phi3Config",
        vocabulary="phi-3",
        template=templates.PHI_3,
        fields=_USUAL | {"sliding_window": 2047, "original_max_position_embeddings": CONTEXT},
    ),
    Tiny(
        families=("falcon", "gpt4all-falcon", "openassistant-falcon"),
        architecture="falcon",
        config="FalconConfig",
        vocabulary="falcon",
        template=templates.FALCON,
        fields=_SIZES | {"multi_query": True, "num_kv_heads": 1, "parallel_attn": True, "alibi": False, "bias": False},
    ),
    Tiny(
        families=("internlm2",),
        architecture="internlm2",
        config="LlamaConfig",
        vocabulary="internlm2",
        template=templates.CHATML_BOS,
        fields=_GROUPED,
        published={"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False},
        padding=1,
    ),
    Tiny(
        families=("mpt",),
        architecture="mpt",
        config="MptConfig",
        vocabulary="neox",
        template=templates.INSTRUCTION,
        fields={"d_model": 128, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT, "expansion_ratio": 4},
        published={"architectures": ["MPTForCausalLM"]},
    ),
    Tiny(
        families=("bloom",),
        architecture="bloom",
        config="BloomConfig",
        vocabulary="bloom",
        template=templates.PLAIN,
        fields={"hidden_size": 128, "n_layer": 2, "n_head": 4, "seq_length": CONTEXT},
    ),
    Tiny(
        families=("gpt-neox", "redpajama"),
        architecture="gpt_neox",
        config="GPTNeoXConfig",
        vocabulary="neox",
        template=templates.HUMAN_BOT,
        fields=_TIED | {"rotary_pct": 0.25},
        published={"rotary_pct": 0.25},
    ),
    Tiny(
        families=("opt",),
        architecture="opt",
        config="OPTConfig",
        vocabulary="opt",
        template=templates.PLAIN,
        fields=_SIZES | {"ffn_dim": 256, "word_embed_proj_dim": 128, "max_position_embeddings": CONTEXT},
    ),
    Tiny(
        families=("stablelm",),
        architecture="stablelm",
        config="StableLmConfig",
        vocabulary="neox",
        template=templates.ZEPHYR,
        fields=_TIED | {"num_key_value_heads": 4, "partial_rotary_factor": 0.25},
    ),
    Tiny(
        families=("olmo",),
        architecture="olmo",
        config="OlmoConfig",
        vocabulary="olmo",
        template=templates.OLMO,
        fields=_USUAL | {"num_key_value_heads": 4},
    ),
    Tiny(
        families=("all-minilm",),
        architecture="bert",
        config="BertConfig",
        vocabulary="bert",
        fields=_BERT,
        pooling="mean",
    ),
    Tiny(
        families=("multilingual-e5",),
        architecture="bert",
        config="BertConfig",
        vocabulary="xlm-roberta",
        fields=_BERT,
        pooling="mean",
    ),
    Tiny(
        families=("bge-m3",),
        architecture="xlm-roberta",
        config="XLMRobertaConfig",
        vocabulary="xlm-roberta",
        fields=_BERT | {"type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
        pooling="cls",
    ),
)
BY_NAME = {tiny.name: tiny for tiny in TINY}
OF_FAMILY = {family: tiny for tiny in TINY for family in tiny.families}

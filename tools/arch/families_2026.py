"""The rows of the families of 2025 and 2026: thinking models, hybrid models, embedding models and rerankers."""

from __future__ import annotations

from tools.arch import templates
from tools.arch.tiny import BERT, CONTEXT, GROUPED, TIED, Tiny

_FOUR = GROUPED | {"num_hidden_layers": 4}
_WIDE_HEADS = GROUPED | {"head_dim": 32}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_QWEN_3_5 = _FOUR | {
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}
_LFM = _FOUR | {"tie_word_embeddings": True, "layer_types": ["conv", "conv", "full_attention", "conv"]}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,  # of transformers' slow scan, whose time grows with it
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.17,
    "residual_multiplier": 0.22,
    "logits_scaling": 1.0,
}
_GEMMA_3 = TIED | {
    "num_hidden_layers": 6,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 32.0,
    "original_max_position_embeddings": CONTEXT // 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "max_position_embeddings": CONTEXT,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}

_WRITERS = (
    Tiny(
        families=("qwen3",),
        architecture="qwen3",
        config="Qwen3Config",
        vocabulary="qwen2",
        template=templates.CHATML,
        fields=_WIDE_HEADS,
    ),
    Tiny(
        families=("qwen3-moe",),
        architecture="qwen3_moe",
        config="Qwen3MoeConfig",
        vocabulary="qwen2",
        template=templates.CHATML,
        fields=_WIDE_HEADS | _EXPERTS | {"norm_topk_prob": True},
    ),
    Tiny(
        families=("qwen3.5", "nuextract"),
        architecture="qwen3_5_text",
        config="Qwen3_5TextConfig",
        vocabulary="qwen35",
        template=templates.CHATML,
        fields=_QWEN_3_5,
        options=("--no-mtp",),
    ),
    Tiny(
        families=("qwen3.5-moe",),
        architecture="qwen3_5_moe_text",
        config="Qwen3_5MoeTextConfig",
        vocabulary="qwen35",
        template=templates.CHATML,
        fields=_QWEN_3_5 | _EXPERTS | {"shared_expert_intermediate_size": 64},
        options=("--no-mtp",),
    ),
    Tiny(
        families=("gemma-3",),
        architecture="gemma3_text",
        config="Gemma3TextConfig",
        vocabulary="gemma",
        template=templates.GEMMA,
        fields=_GEMMA_3,
    ),
    Tiny(
        families=("gemma-4",),
        architecture="gemma4_text",
        config="Gemma4TextConfig",
        vocabulary="gemma-4",
        template=templates.GEMMA_4,
        fields=TIED
        | {
            "num_hidden_layers": 6,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "global_head_dim": 64,
            "sliding_window": 16,
            "final_logit_softcapping": 30.0,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 1108,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        padding=1,
    ),
    Tiny(
        families=("gpt-oss",),
        architecture="gpt_oss",
        config="GptOssConfig",
        vocabulary="harmony",
        template=templates.HARMONY,
        fields=_WIDE_HEADS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "max_position_embeddings": 4096 * 32,  # as published: its YaRN stretches 4,096 positions by 32
        },
    ),
    Tiny(
        families=("ministral-3",),
        architecture="ministral3",
        config="Ministral3Config",
        vocabulary="tekken",
        template=templates.MISTRAL,
        fields=_WIDE_HEADS | {"rope_parameters": _MINISTRAL_ROPE},
    ),
    Tiny(
        families=("lfm2.5",),
        architecture="lfm2",
        config="Lfm2Config",
        vocabulary="lfm2",
        template=templates.CHATML_BOS,
        fields=_LFM,
    ),
    Tiny(
        families=("lfm2.5-moe",),
        architecture="lfm2_moe",
        config="Lfm2MoeConfig",
        vocabulary="lfm2",
        template=templates.CHATML_BOS,
        fields=_LFM | _EXPERTS | {"num_dense_layers": 1},
    ),
    Tiny(
        families=("granite-4",),
        architecture="granitemoehybrid",
        config="GraniteMoeHybridConfig",
        vocabulary="granite",
        template=templates.GRANITE,
        fields=_FOUR
        | _MAMBA
        | _GRANITE
        | {
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 256,
        },
        published={"layer_types": ["mamba", "mamba", "attention", "mamba"]},
    ),
    Tiny(
        families=("granite-4.2",),
        architecture="granite",
        config="GraniteConfig",
        vocabulary="granite",
        template=templates.GRANITE,
        fields=_FOUR | _GRANITE,
    ),
    Tiny(
        families=("smollm3",),
        architecture="smollm3",
        config="SmolLM3Config",
        vocabulary="llama-3",
        template=templates.LLAMA_3,
        fields=_FOUR,
    ),
    Tiny(
        families=("nemotron-3-nano",),
        architecture="nemotron_h",
        config="NemotronHConfig",
        vocabulary="tekken",
        template=templates.CHATML_BOS,
        fields=_FOUR
        | {
            "layers_block_type": ["mamba", "mlp", "attention", "mlp"],
            "head_dim": 32,
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "ssm_state_size": 32,
            "n_groups": 1,
            "chunk_size": 32,
        },
        published={
            "layers_block_type": None,
            "hybrid_override_pattern": "M-*-",
            "num_hidden_layers": 4,
            "num_experts_per_tok": None,
            "n_routed_experts": None,
            "num_local_experts": None,
            "n_group": None,
            "topk_group": None,
        },
    ),
    Tiny(
        families=("phi-4-mini",),
        architecture="phi3",
        config="Phi3Config",
        vocabulary="o200k",
        template=templates.PHI_4,
        fields=GROUPED
        | {"sliding_window": None, "original_max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
)

_READERS = (
    Tiny(
        families=("qwen3-embedding",),
        architecture="qwen3",
        config="Qwen3Config",
        vocabulary="qwen3-embedding",
        fields=_WIDE_HEADS | {"tie_word_embeddings": True},
        pooling="last",
    ),
    Tiny(
        families=("embeddinggemma",),
        architecture="gemma3_text",
        config="Gemma3TextConfig",
        vocabulary="embeddinggemma",
        fields=_GEMMA_3 | {"use_bidirectional_attention": True},
        pooling="mean",
        padding=1,
    ),
    Tiny(
        families=("qwen3-reranker",),
        architecture="qwen3",
        config="Qwen3Config",
        vocabulary="qwen3-reranker",
        template=templates.CHATML_THINK,
        fields=_WIDE_HEADS | {"tie_word_embeddings": True},
        published={"_name_or_path": "Qwen/Qwen3-Reranker-0.6B"},  # the converter recognises a reranker by its name
        pooling="rank",
    ),
    Tiny(
        families=("bge-reranker-v2-m3",),
        architecture="xlm-roberta",
        config="XLMRobertaConfig",
        vocabulary="xlm-roberta",
        fields=BERT | {"type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, "num_labels": 1},
        pooling="rank",
    ),
)
OF_2026 = (*_WRITERS, *_READERS)

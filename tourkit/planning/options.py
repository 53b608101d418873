"""The options for each variant of a model on this machine, or why there are none. Knows stacks, formats and quants.

planner.py decides whether an option fits beside others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from tourkit.bundle.index import BundleModel, BundleVariant, Index, variant_files
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.manifest.models import VariantId
from tourkit.planning.gpu_stacks import gpu_refusal, usable_gpus
from tourkit.planning.model_shape import Shape, of_size
from tourkit.stacks import STACKS, for_format

_EMBEDDING = tuple(name for name, stack in STACKS.items() if stack.embeds)
_BITS = re.compile(r"(?:Q|FP|BF|F|INT|W|NF)(\d+)|(\d+)-?BIT")
_USUAL_BITS = 4
_LAST = 0  # `bits` in the rank of an option that is slow, so that it comes last


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """The order of a model's options: the larger rank is better.

    Ranks compare by `bits` per weight, then by the `preference` for the stack, then by `size` in bytes. On a CPU each
    token reads every weight: more than 8 bits halve the speed with the same answers. Therefore an option with more than
    8 bits comes last on a CPU: its `bits` are 0. So does a slow start for a model that takes turns (`in_turn`).
    """

    bits: int
    preference: int
    size: int

    @property
    def is_last(self) -> bool:
        return self.bits == _LAST


@dataclass(frozen=True, slots=True)
class Option:
    """A variant on one stack, on a GPU or in RAM.

    `path`: the (first) weight file, or the folder. `size`: bytes of weights. `max_context`: the most tokens a sequence
    can have. `lora`: adapter files. Paths are relative to the bundle. `runtime`: with which the stack uses GPUs here,
    "" if it uses none.
    """

    model: str
    quant: str
    stack: str
    path: str
    size: int
    bits: int
    shape: Shape
    max_context: int
    on_gpu: bool
    rank: Rank
    lora: tuple[str, ...] = ()
    runtime: str = ""

    @property
    def place(self) -> tuple[str, bool]:
        """The stack, and whether it is on a GPU."""
        return self.stack, self.on_gpu

    @property
    def cache_types(self) -> tuple[str, ...]:
        """The KV cache types that this option can use, the smallest first."""
        divided = self.shape.head > 0 and self.shape.head % 32 == 0
        return ("q8_0", "f16") if STACKS[self.stack].quantises_cache and divided and any(self.shape.kv) else ("f16",)


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A variant that is not used, and why."""

    model: str
    quant: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """How weights are stored, and what that needs.

    `parts`: the quant's name, in capitals, contains one of them. `capability`: the lowest CUDA compute capability.
    """

    name: str
    parts: tuple[str, ...] = ()
    runs_on_cpu: bool = False
    bitsandbytes: bool = False
    capability: tuple[int, int] = (0, 0)


_PLAIN = _Kind("plain", runs_on_cpu=True)
# Kinds of safetensors; the first kind that matches the quant's name is used. The capabilities are those of vLLM
# (`get_min_capability` of each method): below the GPUs that compute in FP4 or FP8, Marlin unpacks the weights.
_QUANTISED = (
    _Kind("bnb", ("BNB",), bitsandbytes=True),
    _Kind("mxfp4", ("MXFP4",), capability=(8, 0)),
    _Kind("nvfp4", ("FP4",), capability=(7, 5)),
    _Kind("fp8", ("FP8",), capability=(7, 5)),  # vLLM's FP8 page: weight-only FP8 from Turing, FP8 computation from 8.9
    _Kind("packed", ("AWQ", "GPTQ", "INT", "W4A", "W8A"), runs_on_cpu=True),
)
_ASSUMED_CAPABILITY = (7, 5)  # of a GPU that is not here (--vram)
_NO_LIMIT = (99, 0)


def bits_of(quant: str) -> int:
    """Return bits per weight from the quant's name: 4 for Q4_K_M, AWQ-INT4, bnb-4bit; 8 for FP8, Q8_0; 16 for BF16."""
    found = _BITS.search(quant.upper())
    return int(found[1] or found[2]) if found else _USUAL_BITS


def options_of(
    index: Index, model: BundleModel, hardware: Hardware, shapes: Mapping[VariantId, Shape]
) -> tuple[list[Option], list[PassedOver]]:
    """Return the options for the model's variants here, best first, and the variants that have none.

    A LoRA adapter has the options of its base.
    """
    lora = _adapter(index, model)
    if model.adapts is not None and lora is None:
        return [], [PassedOver(model.id, "adapter", "not in the bundle")]
    options: list[Option] = []
    passed: list[PassedOver] = []
    for variant in index.variants:
        if variant.model != (model.adapts or model.id):
            continue
        weights = weights_of(index, variant)
        if weights is None:
            passed.append(PassedOver(model.id, variant.quant, _nothing_to_weigh(index, variant)))
            continue
        path, size = weights
        bits = bits_of(variant.quant)
        shape = shapes.get(variant.id) or of_size(size, bits, model.context)
        places, refusals = _places(variant, hardware)
        runtimes = {stack.name: stack.runtime for stack in hardware.stacks}
        if lora is not None:
            size += lora[1]
            places = [place for place in places if STACKS[place[0]].adapters]
            refusals.append("an adapter needs the GGUF of its base")
        if shape.embeds:
            places = [place for place in places if STACKS[place[0]].embeds]
            does = "gives scores" if shape.reranks else "makes embeddings"
            refusals.append(f"{does}, which needs {' or '.join(_EMBEDDING)}")
        if not places:
            passed.append(PassedOver(model.id, variant.quant, "; ".join(dict.fromkeys(refusals))))
        options += [
            Option(
                model=model.id,
                quant=variant.quant,
                stack=stack,
                path=path,
                size=size,
                bits=bits,
                shape=shape,
                max_context=min(shape.context or model.context, model.context),
                on_gpu=on_gpu,
                rank=_rank(bits, stack, size, on_gpu=on_gpu),
                lora=(lora[0],) if lora is not None else (),
                runtime=runtimes[stack],
            )
            for stack, on_gpu in places
        ]
    return sorted(options, key=lambda option: option.rank, reverse=True), passed


def _adapter(index: Index, model: BundleModel) -> tuple[str, int] | None:
    """Return the file and bytes of an adapter; None if `model` is no adapter or its file is missing."""
    variants = [variant for variant in index.variants if variant.model == model.id] if model.adapts is not None else []
    return weights_of(index, variants[0]) if variants else None


def _rank(bits: int, stack: str, size: int, *, on_gpu: bool) -> Rank:
    preference = STACKS[stack].gpu_preference if on_gpu else STACKS[stack].cpu_preference
    return Rank(_LAST if bits > 8 and not on_gpu else bits, -preference, size)


def starts_fast(options: Iterable[Option]) -> bool:
    """Return whether one of the options is on a GPU with a stack that starts in seconds."""
    return any(option.on_gpu and not STACKS[option.stack].starts_slowly for option in options)


def in_turn(option: Option) -> Option:
    """Return the option as a model that takes turns has it: on a GPU a stack that starts slowly comes last."""
    if option.on_gpu and STACKS[option.stack].starts_slowly:
        return replace(option, rank=replace(option.rank, bits=_LAST))
    return option


def weights_of(index: Index, variant: BundleVariant) -> tuple[str, int] | None:
    """Return what a stack opens (a file for GGUF, else a folder) and the bytes of weights; None if there are none."""
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
    if any(file.path.startswith(f"{variant.id.folder}/") for file in index.files):
        return f"the bundle has no .{variant.format} file of it"
    return "the sizes of its files are unknown: run `tourkit lock`, which asks the hub"


def _places(variant: BundleVariant, hardware: Hardware) -> tuple[list[tuple[str, bool]], list[str]]:
    """Return each stack that can load the variant here, and whether on a GPU; and why other stacks cannot."""
    kind = _kind_of(variant)
    able = [name for name in for_format(variant.format) if kind is _PLAIN or kind.name in STACKS[name].quantised]
    here = {stack.name: stack for stack in hardware.stacks}
    installed = [here[name] for name in able if name in here]
    places: list[tuple[str, bool]] = []
    refusals: list[str] = []
    if not able:
        refusals.append(f"no stack loads {variant.format} {variant.quant}")
    elif not installed:
        preferred = sorted(able, key=lambda name: STACKS[name].gpu_preference)
        refusals.append(f"needs {' or '.join(preferred)}; not installed")
    for stack in installed:
        tried = [(False, _cpu_refusal(kind, stack))]
        if STACKS[stack.name].uses_gpu and hardware.gpus:
            tried.insert(0, (True, gpu_refusal(stack, hardware) or _kind_refusal(kind, stack, hardware)))
        places += [(stack.name, on_gpu) for on_gpu, refusal in tried if not refusal]
        refusals += [refusal for _, refusal in tried if refusal][:1]  # the GPU's reason is the one to fix
    return places, refusals


def _kind_of(variant: BundleVariant) -> _Kind:
    """Return the kind of safetensors from the quant's name. Other formats are plain: all their stacks load them."""
    if variant.format != "safetensors":
        return _PLAIN
    quant = variant.quant.upper()
    return next((kind for kind in _QUANTISED if any(part in quant for part in kind.parts)), _PLAIN)


def _kind_refusal(kind: _Kind, stack: InstalledStack, hardware: Hardware) -> str:
    """Return why a stack that can use the GPUs cannot load this kind of weights on all of them; "" if it can."""
    gpus = usable_gpus(stack, hardware)
    if kind.bitsandbytes and not (stack.bitsandbytes and all(gpu.runtime == "cuda" for gpu in gpus)):
        return "needs bitsandbytes and CUDA"
    if any(_capability(gpu) < kind.capability for gpu in gpus):
        return f"needs a GPU of compute capability {kind.capability[0]}.{kind.capability[1]}"
    return ""


def _capability(gpu: Gpu) -> tuple[int, int]:
    """Return CUDA's compute capability. Kinds of weights have no limit for GPUs of other runtimes."""
    return gpu.capability or _ASSUMED_CAPABILITY if gpu.runtime == "cuda" else _NO_LIMIT


def _cpu_refusal(kind: _Kind, stack: InstalledStack) -> str:
    if stack.problem and not (stack.cpu and stack.runtime):  # what is built for a GPU may still run on the CPU
        return stack.problem
    if not stack.cpu:
        return f"needs a GPU: this {stack.name} is not built for CPUs"
    return "" if kind.runs_on_cpu else "needs a GPU"

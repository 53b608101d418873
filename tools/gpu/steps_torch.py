"""Steps: the stack transformers on the GPU, and bitsandbytes."""

from __future__ import annotations

import json
import os
import queue
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.gpu.ballast import ballast, free_memory
from tools.gpu.findings import MEMORY, SPEED, Finding, check, measured, skipped
from tools.gpu.place import NO_GPU, ROOT, Place, is_installed
from tools.gpu.random_blocks import LLAMA_8B, VOCAB
from tourkit import backends
from tourkit.errors import LocalError, TourkitError
from tourkit.generation import Delta, Request, SamplingParams
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch
from tourkit.planning import memory, model_shape

if TYPE_CHECKING:
    from bench import shapes
    from tourkit.backends.base import Engine

TINY = ROOT / "weights" / "tiny" / "safetensors"
_PROMPT = "Anna paid 1200 rubles on 2025-03-14. Write what happened as JSON."
_NO_TORCH = "torch and transformers are not installed here"
_PATTERN = 16 << 20  # random numbers that are repeated in every matrix
_MARGIN = 4 << 30  # bytes that stay free beside the weights of the large model


def tiny(place: Place) -> Iterator[Finding]:
    """Compare the greedy answer of the tiny model on the GPU with the one on the CPU."""
    if not is_installed("torch", "transformers"):
        yield skipped("the tiny model through transformers", _NO_TORCH)
        return
    on_cpu = _answer(TINY, NO_LAYERS)
    yield check("the tiny model answers on the CPU", bool(on_cpu), "its answer is empty")
    if place.dry:
        yield skipped("the tiny model on the GPU", NO_GPU)
        return
    on_gpu = _answer(TINY, ALL_LAYERS)
    same = next((i for i, (a, b) in enumerate(zip(on_cpu, on_gpu, strict=False)) if a != b), len(on_gpu))
    # 16-bit numbers may turn a near-tie, so the answers may part. They begin with the same words.
    figures = {"equal characters": same, "characters": len(on_cpu)}
    yield check("the answers on CPU and GPU begin the same", same >= min(8, len(on_cpu)), repr(on_gpu), **figures)


def packed(place: Place) -> Iterator[Finding]:
    """Load a random model of 8B in bf16, and decode in packed batches. A dry run makes a tiny one on the CPU."""
    if not is_installed("torch", "transformers"):
        yield skipped("a random 8B in bf16 through transformers", _NO_TORCH)
        return
    shape, folder = LLAMA_8B, Path(place.work) / "8b-bf16"
    if place.dry:
        shape = type(LLAMA_8B)(128, 2, 4, 2, 256)
    needed = 2 * parameters(shape) + (0 if place.dry else _MARGIN)
    if shutil.disk_usage(place.work).free < needed:
        yield skipped("a random 8B in bf16 through transformers", f"{place.work} has not {needed / 2**30:.0f} GiB free")
        return
    started = time.perf_counter()
    write_folder(shape, folder)
    yield measured("wrote safetensors", seconds=time.perf_counter() - started)
    layers = NO_LAYERS if place.dry else ALL_LAYERS
    slots, context, answer = (2, 256, 4) if place.dry else (4, 4096, 64)
    before = 0 if place.dry else free_memory(os.environ)
    started = time.perf_counter()
    engine = backends.load(_launch(folder, slots, context, layers))
    yield measured("loaded it", seconds=time.perf_counter() - started)
    for count in (1, slots):
        seconds = _decode(engine, count, context // 8, answer)
        speed = {"sequences": count, "tokens/s": count * answer / seconds}
        yield measured("transformers, packed pass, bf16", "" if place.dry else SPEED, **speed)
    if place.dry:
        yield skipped("a random 8B on the GPU", NO_GPU)
    else:
        taken, found = before - free_memory(os.environ), model_shape.of_file(folder)
        if found is None:
            raise RuntimeError(f"{folder}: its config.json has no shape")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        predicted = memory.estimate(memory.Sizing("transformers", size, found, context, slots, "f16", ALL_LAYERS))
        title = f"8b bf16 through transformers, {slots} x {context}"
        yield measured(title, MEMORY, predicted=predicted.gpu.total, measured=taken)
    engine.close()


def out_of_memory(place: Place) -> Iterator[Finding]:
    """Load the large model where it does not fit. It must be refused in one line, and the GPU must be free again."""
    folder = Path(place.work) / "8b-bf16"
    if place.dry or not (folder / "config.json").is_file():
        yield skipped("a forced out-of-memory", NO_GPU if place.dry else "the large model was not written")
        return
    with ballast(os.environ, 8 << 30) as left:
        yield measured("the ballast leaves", bytes=left)
        try:
            backends.load(_launch(folder, 4, 4096, ALL_LAYERS))
        except LocalError as exc:
            text = str(exc)
            yield check("a model that does not fit is refused in one line", "\n" not in text, "more lines", said=text)
            yield check("the line says that memory is the reason", "memory" in text.lower(), text)
        else:
            yield check("a model that does not fit is refused in one line", False, "it was loaded")
    engine = backends.load(_launch(TINY, 2, 512, ALL_LAYERS))
    yield check("the same process can load another model then", _decode(engine, 1, 16, 4) > 0)
    engine.close()


def bitsandbytes(place: Place) -> Iterator[Finding]:
    """Quantise a model of two layers to 4 bits, save it, load it with tourkit, and compare the answers."""
    if not is_installed("torch", "transformers", "bitsandbytes"):
        yield skipped("bitsandbytes", "torch, transformers or bitsandbytes is not installed here")
        return
    source, target = Path(place.work) / "two-layers", Path(place.work) / "two-layers-bnb"
    write_folder(type(LLAMA_8B)(512, 2, 8, 4, 1024), source)
    if place.dry:
        yield skipped("bitsandbytes: quantise, save, load", NO_GPU)
        return
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    wanted = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=wanted, device_map={"": "cuda"})
    model.save_pretrained(target)
    _copy_tokenizer(target)
    tokens = torch.tensor([[(37 * i + 11) % 1000 for i in range(24)]], device="cuda")
    with torch.inference_mode():
        first = model(tokens).logits[0, -1].float()
        again = AutoModelForCausalLM.from_pretrained(target, device_map={"": "cuda"})
        second = again(tokens).logits[0, -1].float()
    distance = float((first - second).norm() / first.norm())
    title = "the saved model computes what the quantised one computed"
    yield check(title, distance < 0.01, "the logits differ", distance=distance)
    del model, again
    engine = backends.load(_launch(target, 2, 512, ALL_LAYERS))
    yield check("tourkit loads and runs it", _decode(engine, 2, 32, 8) > 0)
    engine.close()


# --- models -------------------------------------------------------------------------------------------------------


def parameters(shape: shapes.Shape) -> int:
    return sum(rows * columns for rows, columns in _matrices(shape).values())


def write_folder(shape: shapes.Shape, folder: Path) -> None:
    """Write a random Llama in bf16: config.json, model.safetensors, and the tokenizer of the tiny model."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    numbers = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    numbers |= {"num_key_value_heads": shape.kv_heads, "intermediate_size": shape.feed_forward}
    numbers |= {"vocab_size": _vocab(shape), "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config | numbers | {"tie_word_embeddings": False}))
    _copy_tokenizer(folder)
    header, at = {}, 0
    for name, (rows, columns) in _matrices(shape).items():
        size = 2 * rows * columns
        dimensions = [columns] if rows == 1 else [rows, columns]
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    normal = np.random.default_rng(0).standard_normal(_PATTERN, dtype=np.float32)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        patterns: dict[tuple[bool, int], bytes] = {}
        for rows, columns in _matrices(shape).values():
            key = rows == 1, columns
            if key not in patterns:
                values = np.ones(columns, dtype=np.float32) if rows == 1 else normal * np.float32(columns**-0.5)
                patterns[key] = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bf16: the upper half
            _write_repeated(out, patterns[key], 2 * rows * columns)


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)


def _write_repeated(out: Any, pattern: bytes, size: int) -> None:
    while size:
        size -= out.write(memoryview(pattern)[:size])


def _vocab(shape: shapes.Shape) -> int:
    """Return the size of the vocabulary. A small model has the one of the tiny model, rounded up."""
    return VOCAB.get(shape, 8192)


def _matrices(shape: shapes.Shape) -> dict[str, tuple[int, int]]:
    """Return rows and columns of every tensor by its name. A vector has one row."""
    kv, width, wide = shape.width // shape.heads * shape.kv_heads, shape.width, shape.feed_forward
    made = {"model.embed_tokens.weight": (_vocab(shape), width), "lm_head.weight": (_vocab(shape), width)}
    made["model.norm.weight"] = (1, width)
    for i in range(shape.layers):
        sizes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)}
        sizes |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width)}
        sizes |= {"mlp.down_proj": (width, wide), "input_layernorm": (1, width), "post_attention_layernorm": (1, width)}
        made |= {f"model.layers.{i}.{name}.weight": size for name, size in sizes.items()}
    return made


# --- engines ------------------------------------------------------------------------------------------------------


def _launch(folder: Path, slots: int, context: int, layers: GpuLayers) -> Launch:
    threads = os.cpu_count() or 1
    return Launch(folder.name, "transformers", str(folder), slots, context, threads, gpu_layers=layers)


def _answer(folder: Path, layers: GpuLayers) -> str:
    """Return the greedy answer to a prompt."""
    engine = backends.load(_launch(folder, 2, 512, layers))
    request = Request(prompt=_PROMPT, params=SamplingParams(max_tokens=32, temperature=0))
    text = "".join(delta.text for delta in _deltas(engine, [request]))
    engine.close()
    return text


def _decode(engine: Engine, count: int, prompt: int, answer: int) -> float:
    """Return the seconds in which `count` sequences get `answer` tokens each. The time for the prompts counts too."""
    text = "word " * prompt
    ids = engine.tokenize(text, add_special=False)[:prompt]
    params = SamplingParams(max_tokens=answer, temperature=0.8, seed=1)
    started = time.perf_counter()
    _deltas(engine, [Request(prompt=engine.detokenize(ids), params=params)] * count)
    return time.perf_counter() - started


def _deltas(engine: Engine, requests: list[Request]) -> list[Delta]:
    """Return all deltas of some requests. Raises the error of a request."""
    arriving: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    for request in requests:
        engine.submit(request, arriving.put)
    found: list[Delta] = []
    while sum(delta.finish is not None for delta in found) < len(requests):
        found.append(arriving.get())
        if isinstance(found[-1].error, TourkitError):
            raise found[-1].error
    return found

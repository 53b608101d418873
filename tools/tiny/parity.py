"""Compare the formats GGUF, safetensors and ONNX: `python -m tools.tiny.parity WEIGHTS [--count N]`.

They should split a text into the same tokens, and write the same greedy text on held-out prompts.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tools.tiny import prompts, tasks
from tools.tiny.documents import Split
from tools.tiny.names import HELD

MOST = 200  # tokens of an answer

Messages = list[dict[str, str]]
Writer = Callable[[Messages], str]


def held_out_prompts(count: int) -> list[Messages]:
    """Return prompts of every task, with held-out names and sentences."""
    rng = Random("parity")
    split = Split(names=HELD, lines=HELD)
    found = []
    for index in range(count):
        lang = tasks.pick_lang(rng)
        made = [
            tasks.json_sample(rng, split, lang=lang),
            tasks.json_sample(rng, Split(names=HELD), lang=lang),
            tasks.graph_sample(rng, split, lang=lang, full=True),
            tasks.classify_sample(rng, split, lang=lang),
            tasks.cite_sample(rng, split, lang=lang),
            tasks.arithmetic_sample(rng, split, lang=lang),
        ][index % 6]
        found.append(made.messages[:-1])
    return found


def gguf_writer(path: Path) -> Writer:
    from tourkit.backends.llama_cpp.runner import LlamaRunner
    from tourkit.backends.runner_engine import RunnerEngine
    from tourkit.generation import Request, SamplingParams

    engine = RunnerEngine(LlamaRunner(path, slots=1, context=2048, threads=1), "llama_cpp")

    def write(messages: Messages) -> str:
        params = SamplingParams(max_tokens=MOST, temperature=0)
        return ask(engine, Request(messages=tuple(messages), params=params))[0]

    return write


def ask(engine: Any, request: Any) -> list[str]:
    """Return the texts of the sequences of one request."""
    import threading

    texts: list[list[str]] = [[] for _ in range(request.n)]
    left, done = [request.n], threading.Event()

    def emit(delta: Any) -> None:
        texts[delta.index].append(delta.text)
        if delta.finish:
            left[0] -= 1
            if not left[0]:
                done.set()

    engine.submit(request, emit)
    done.wait()
    return ["".join(parts) for parts in texts]


def transformers_writer(folder: Path) -> Writer:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def write(messages: Messages) -> str:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=MOST, do_sample=False)
        return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return write


def onnx_writer(folder: Path) -> Writer:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    end = len(prompts.SPECIAL_TOKENS) - 1

    def write(messages: Messages) -> str:
        ids = tokenizer.encode(prompts.render(messages))
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + MOST, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(ids)
        found: list[int] = []
        while not generator.is_done() and len(found) < MOST:
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return str(tokenizer.decode([token for token in found if token != end]))

    return write


def same_tokens(weights: Path, texts: list[str]) -> int:
    """Count the texts that llama.cpp and the tokenizer file split differently."""
    from tokenizers import Tokenizer

    from tourkit.backends.llama_cpp.runner import LlamaRunner

    runner = LlamaRunner(weights / "gguf" / "tiny-q8_0.gguf", slots=1, context=64, threads=1)
    tokenizer = Tokenizer.from_file(str(weights / "safetensors" / "tokenizer.json"))
    different = sum(
        runner.tokenize(text, add_special=False, parse_special=True)
        != tokenizer.encode(text, add_special_tokens=False).ids
        for text in texts
    )
    runner.close()
    return different


def compare(weights: Path, count: int, onnx: bool = True) -> dict[str, Any]:
    """Return the share of prompts on which each format writes the same text as the safetensors."""
    texts = held_out_prompts(count)
    writers = {
        "GGUF F16": gguf_writer(weights / "gguf" / "tiny-f16.gguf"),
        "GGUF Q8_0": gguf_writer(weights / "gguf" / "tiny-q8_0.gguf"),
    }
    if onnx:
        writers["ONNX"] = onnx_writer(weights / "onnx")
    reference = transformers_writer(weights / "safetensors")
    expected = [reference(text) for text in texts]
    same = {
        name: sum(write(text) == right for text, right in zip(texts, expected, strict=True)) / count
        for name, write in writers.items()
    }
    documents = [piece for i in range(2000) for piece, _ in tasks.pieces(tasks.sample(99, i).messages)]
    return {
        "prompts": count,
        "same_text": same,
        "texts": len(documents),
        "split_differently": same_tokens(weights, documents),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-onnx", action="store_true")
    args = parser.parse_args()
    found = compare(args.weights, args.count, not args.no_onnx)
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

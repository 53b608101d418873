"""Try a tiny model on a stack over HTTP: does it load, answer and extract, and if not, why."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from tests.launch_server import stack_server
from tools.arch.make import ANSWER, MESSAGES, TEXTS
from tools.arch.tiny import Tiny
from tourkit.stacks import STACKS

WHERE = {"gguf": "gguf/tiny-f32.gguf", "safetensors": "safetensors", "onnx": "onnx"}
PACKAGES = {
    "llama_cpp": "llama_cpp",
    "vllm": "vllm",
    "transformers": "transformers",
    "onnx": "onnxruntime_genai",
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "rubles": {"type": "integer", "minimum": 0, "maximum": 99999},
        "kind": {"enum": ["paid", "owed"]},
    },
    "required": ["name", "rubles", "kind"],
    "additionalProperties": False,
}
_AGAIN = "the worker ended 3 times in a row, last with "
_NEAR = 0.02  # tolerance of log probabilities: llama.cpp has a 16-bit KV cache
_SAME = 0.999  # the least cosine of embeddings


class Failed(Exception):
    """A step failed; the message says why in a few words."""


@dataclass(frozen=True)
class Tried:
    """One model on one stack: its URL, and the reference results of transformers."""

    url: str
    reference: dict[str, Any]

    def ask(self, path: str, **fields: Any) -> dict[str, Any]:
        """Send one request. Raises Failed with the server's reason."""
        data = json.dumps({"model": "tool"} | fields).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request) as reply:
                found: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as exc:
            with exc:
                raise Failed(_message(exc.read().decode())) from exc
        return found

    def chat(self, **fields: Any) -> dict[str, Any]:
        """Return a greedy answer to the question of the reference."""
        return self.ask("/v1/chat/completions", messages=MESSAGES, temperature=0, **fields)


def attempt(tiny: Tiny, stack: str, folder: Path, log: Path) -> str:
    """Run all steps. Return the failed step and why; empty if all pass.

    The result begins with "but " if only the tokens of some text differ.
    """
    form = STACKS[stack].format
    note = folder / f"{form}.txt"
    if note.is_file():
        return f"convert: {_short(note.read_text(encoding='utf-8').strip(), stack, folder)}"
    reference = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    with stack_server(stack, folder / WHERE[form], log) as server:
        tried, but = Tried(server.url, reference), ""
        for name, step in _steps(tiny).items():
            try:
                step(tried)
            except Failed as exc:
                why = f"{name}: {_short(str(exc), stack, folder)}"
                if name != READ:
                    return why
                but = f"but {why}"
    return but


# --- steps of a model that generates text ---------------------------------------------------------------------------


def loads(tried: Tried) -> None:
    tried.ask("/tokenize", prompt="a")


def reads(tried: Tried) -> None:
    """Check that plain texts have the same tokens as by the model's tokenizer.json."""
    for text, expected in tried.reference["texts"].items():
        found = tried.ask("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        _expect(found, expected, f"tokens of {text!r}")


def chats(tried: Tried) -> None:
    """Check that the greedy answer and its log probabilities are those of transformers."""
    reply = tried.chat(max_tokens=ANSWER, logprobs=True, top_logprobs=1)
    choice = reply["choices"][0]
    _expect(reply["usage"]["prompt_tokens"], tried.reference["prompt_tokens"], "tokens of the prompt")
    _expect(choice["message"]["content"], tried.reference["answer"], "the answer")
    found = [row["logprob"] for row in choice["logprobs"]["content"]]
    apart = max(abs(one - other) for one, other in zip(found, tried.reference["logprobs"], strict=True))
    if apart > _NEAR:
        raise Failed(f"log probabilities are off by up to {apart:.2g}")


def ends(tried: Tried) -> None:
    choice = tried.chat(max_tokens=8, logit_bias={str(tried.reference["eos"]): 100})["choices"][0]
    _expect((choice["message"]["content"], choice["finish_reason"]), ("", "stop"), "an answer that ends at once")


def extracts(tried: Tried) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "payment", "schema": SCHEMA, "strict": True}}
    text = tried.chat(max_tokens=200, response_format=form)["choices"][0]["message"]["content"]
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (json.JSONDecodeError, jsonschema.ValidationError) as exc:
        raise Failed(f"{text!r} does not meet the schema") from exc


# --- steps of an embedding model ------------------------------------------------------------------------------------


def embeds(tried: Tried) -> None:
    """Check that the vectors have the same direction as those of transformers."""
    rows = tried.ask("/v1/embeddings", input=TEXTS)["data"]
    for text, row, expected in zip(TEXTS, rows, tried.reference["vectors"], strict=True):
        cosine = sum(one * other for one, other in zip(row["embedding"], expected, strict=True))
        if cosine < _SAME:
            raise Failed(f"the vector of {text!r} is another one (cosine {cosine:.3f})")


# --- steps of a reranker ---------------------------------------------------------------------------------------------


def reranks(tried: Tried) -> None:
    """Check that the scores are those of transformers."""
    rows = tried.ask("/v1/rerank", query=TEXTS[0], documents=TEXTS[1:])["results"]
    found = {row["index"]: row["relevance_score"] for row in rows}
    apart = max(abs(found[i] - score) for i, score in enumerate(tried.reference["scores"]))
    if apart > _NEAR:
        raise Failed(f"scores are off by up to {apart:.2g}")


Step = Callable[[Tried], None]
READ = "read"
WRITER: dict[str, Step] = {"load": loads, READ: reads, "chat": chats, "end": ends, "extract": extracts}
EMBEDDER: dict[str, Step] = {"load": loads, "embed": embeds}
RERANKER: dict[str, Step] = {"load": loads, "rerank": reranks}


def _steps(tiny: Tiny) -> dict[str, Step]:
    if tiny.pooling == "rank":
        return RERANKER
    return EMBEDDER if tiny.pooling else WRITER


def _expect(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise Failed(f"{what}: {found!r} for {expected!r}")


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body.strip()


def _short(text: str, stack: str, folder: Path) -> str:
    """Return the first sentence of a reason, without the paths of this machine."""
    for known in (folder.resolve(), folder):
        text = re.sub(re.escape(str(known)) + r"[\w./-]*", folder.name, text)
    for known in (f"tiny test on {stack}: ", f"{folder.name}: ", "tiny test: the worker ended (", _AGAIN):
        text = text.removeprefix(known)
    return re.split(r"(?<=[.!]) ", text)[0]

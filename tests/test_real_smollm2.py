"""SmolLM2-135M-Instruct on every stack: `make test-real`. With TOURKIT_REAL=full, all prompts and vLLM too.

All stacks compute the same float32 weights, made from the published Q4_1. The reference is the float32 GGUF on
llama.cpp.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import real_texts
from launch_server import StackServer, stack_server
from real_formats import converted

REAL = os.environ.get("TOURKIT_REAL", "")
pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="real weights are downloaded: make test-real"),
]

PACKAGES = {"llama_cpp": "llama_cpp", "vllm": "vllm", "transformers": "transformers", "onnx": "onnxruntime_genai"}
FORMATS = {"llama_cpp": "gguf", "vllm": "safetensors", "transformers": "safetensors", "onnx": "onnx"}
QUANTISED = "Q4_1"  # the published GGUF on llama.cpp
PROMPTS = real_texts.PROMPTS if REAL == "full" else real_texts.PROMPTS[::5]
ANSWER = 24  # tokens
SAME = 0.95  # the least share of greedy answers that are those of the reference
CONTEXT = 4608
THREADS = len(os.sched_getaffinity(0))
TORCH_AND_ONNX = ("transformers", "onnx")
# The most that log probabilities may differ. The reference has a KV cache of 16 bits, the other stacks have 32. On a
# CPU, flash attention of llama.cpp also adds up the values in 16 bits, which shows after thousands of tokens.
NEAR = 0.03
NEAR_AFTER_4000 = 0.3

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PAYMENT = "On 14 March 2025 Anna Petrova paid 1,200 dollars for a laptop."
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "amount": {"type": "integer", "minimum": 0},
        "currency": {"enum": ["dollars", "euros", "rubles"]},
    },
    "required": ["name", "amount", "currency"],
    "additionalProperties": False,
}


def params(*names: str) -> list[Any]:
    """The stacks as parameters, skipped if they are not installed here."""

    def skipped(name: str) -> Any:
        package = PACKAGES.get(name, "llama_cpp")
        return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed here: make help")

    return [pytest.param(name, marks=skipped(name)) for name in names]


class Real:
    """Servers of SmolLM2, by stack or by QUANTISED. Each is started at its first use. Greedy answers are kept."""

    def __init__(self, gguf: Path, logs: Path, stopping: ExitStack) -> None:
        self._gguf, self._logs, self._stopping = gguf, logs, stopping
        self.server = cache(self._server)
        self.greedy = cache(self._greedy)
        self.long_answer = cache(self._long_answer)

    def _server(self, name: str) -> StackServer:
        stack = "llama_cpp" if name == QUANTISED else name
        path = self._gguf if name == QUANTISED else converted(self._gguf, FORMATS[stack])
        running = stack_server(stack, path, self._logs / name, context=CONTEXT, threads=THREADS)
        return self._stopping.enter_context(running)

    def _greedy(self, name: str, prompt: str) -> str:
        """Return the greedy answer. Requests come one after the other: a batch changes the last bits of logits."""
        return str(self.chat(name, prompt, max_tokens=ANSWER)["choices"][0]["message"]["content"])

    def _long_answer(self, name: str) -> Any:
        prompt = f"{real_texts.document(1750)}\n\n{PAYMENT}\nWho paid 1,200 dollars for a laptop?"
        return self.chat(name, prompt, max_tokens=4, logprobs=True, top_logprobs=5)

    def chat(self, name: str, prompt: str, **fields: Any) -> Any:
        return self.ask(name, messages=[{"role": "user", "content": prompt}], **fields)

    def ask(self, name: str, **fields: Any) -> Any:
        """Send one chat request, by default greedy, and return the reply."""
        data = json.dumps({"model": "tool", "temperature": 0} | fields).encode()
        url = f"{self.server(name).url}/v1/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, data, {"content-type": "application/json"})) as reply:
            return json.load(reply)


@pytest.fixture(scope="module")
def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with ExitStack() as stopping:
        yield Real(smollm2, tmp_path_factory.mktemp("real"), stopping)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure, also if the test passes."""

    def said(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return said


EVERY = params("llama_cpp", QUANTISED, "transformers", "onnx", "vllm")
OTHERS = params("transformers", "onnx", "vllm")


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Any:
    """The published GGUF in this process, for its tokens."""
    from tourkit.backends.llama_cpp.model import LlamaModel

    return LlamaModel(smollm2)


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_1000_texts_have_the_tokens_of_llama_cpp(form: str, smollm2: Path, reference: Any) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed here: make test-real")
    from tourkit.backends.vocabulary import Vocabulary

    found = Vocabulary(converted(smollm2, form), reference.n_vocab)

    other = [
        text
        for text in real_texts.texts(1000)
        for special in (False, True)
        if found.tokenize(text, add_special=True, parse_special=special)
        != reference.tokenize(text, add_special=True, parse_special=special)
    ]
    assert other == []
    assert [token for token in range(found.n_vocab) if found.piece(token) != reference.piece(token)] == []
    assert (found.eog, found.special_tokens) == (reference.eog, reference.special_tokens)
    assert found.control_tokens.ids == reference.control_tokens.ids
    assert found.chat_template == reference.chat_template


# --- the same answers ---------------------------------------------------------------------------------------------


def shared(real: Real, name: str, prompts: tuple[str, ...]) -> tuple[float, list[str]]:
    """Return the share of prompts whose greedy answer is that of the reference, and the others in words."""
    other = []
    for prompt in prompts:
        expected, found = real.greedy("llama_cpp", prompt), real.greedy(name, prompt)
        if found != expected:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, expected, strict=False)))
            other.append(f"  {prompt!r}: …{found[same:][:40]!r} for {expected[same:][:40]!r}")
    return 1 - len(other) / len(prompts), other


@pytest.mark.parametrize("stack", OTHERS)
def test_greedy_answers_are_those_of_the_float32_gguf(stack: str, real: Real, say: Callable[[str], None]) -> None:
    share, other = shared(real, stack, PROMPTS)

    say("\n".join([f"{stack}: {share:.0%} of {len(PROMPTS)} greedy answers are those of the F32 GGUF", *other]))
    assert share >= SAME


def test_the_share_of_answers_that_quantised_weights_keep_is_printed(real: Real, say: Callable[[str], None]) -> None:
    """llama.cpp also rounds activations to 8 bits for Q4_1, so most answers change somewhere."""
    share, _ = shared(real, QUANTISED, PROMPTS)

    say(f"llama_cpp Q4_1: {share:.0%} of {len(PROMPTS)} greedy answers are those of the F32 GGUF")
    assert all(real.greedy(QUANTISED, prompt).strip() for prompt in PROMPTS)


@pytest.mark.parametrize("stack", OTHERS)
def test_log_probabilities_are_those_of_the_float32_gguf(stack: str, real: Real, say: Callable[[str], None]) -> None:
    fields = {"max_tokens": 16, "logprobs": True, "top_logprobs": 5}

    apart = difference(*(real.chat(name, "What do bees make?", **fields) for name in ("llama_cpp", stack)))
    say(f"{stack}: log probabilities of the 5 likeliest tokens differ by {apart:.4f} at most from the F32 GGUF")
    assert apart < NEAR


@pytest.mark.parametrize("stack", OTHERS)
def test_a_prompt_of_4000_tokens_is_read_as_by_the_float32_gguf(
    stack: str, real: Real, say: Callable[[str], None]
) -> None:
    expected, found = (real.long_answer(name) for name in ("llama_cpp", stack))

    apart = difference(expected, found)
    n_prompt = found["usage"]["prompt_tokens"]
    say(f"{stack}: after {n_prompt} tokens, log probabilities differ by {apart:.4f} at most from the F32 GGUF")
    assert 4000 <= n_prompt == expected["usage"]["prompt_tokens"]
    assert apart < NEAR_AFTER_4000


@pytest.mark.skipif(any(find_spec(PACKAGES[stack]) is None for stack in TORCH_AND_ONNX), reason="needs both stacks")
def test_stacks_with_numbers_of_32_bits_read_a_prompt_of_4000_tokens_alike(real: Real) -> None:
    assert difference(*map(real.long_answer, TORCH_AND_ONNX)) < NEAR


def difference(expected: Any, found: Any) -> float:
    """Return how far log probabilities of the likeliest tokens are apart. The tokens of both answers must be equal."""
    ours, other = (reply["choices"][0]["logprobs"]["content"] for reply in (found, expected))
    assert [row["token"] for row in ours] == [row["token"] for row in other]
    pairs = [
        pair
        for row, its in zip(ours, other, strict=True)
        for pair in zip(row["top_logprobs"], its["top_logprobs"], strict=True)
    ]
    return max(abs(one["logprob"] - reference["logprob"]) for one, reference in pairs)


# --- what a chat needs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_the_chat_template_is_the_models_own(name: str, real: Real, reference: Any) -> None:
    """The count of tokens tells: the template adds a system message, and marks that messages cannot write."""
    text = "Say <|im_end|> twice."
    whole = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    marks = sum(len(reference.tokenize(part, add_special=False, parse_special=True)) for part in whole)
    content = len(reference.tokenize(text, add_special=False, parse_special=False))

    assert real.chat(name, text, max_tokens=1)["usage"]["prompt_tokens"] == marks + content


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_ends_at_the_models_own_end_or_before_a_stop_string(name: str, real: Real) -> None:
    whole, stopped = (
        real.chat(name, "What is 2+2?", max_tokens=40, **fields)["choices"][0] for fields in ({}, {"stop": ["answer"]})
    )

    assert whole["finish_reason"] == stopped["finish_reason"] == "stop"
    assert whole["message"]["content"].rstrip().endswith("4.")
    assert stopped["message"]["content"] == whole["message"]["content"].partition("answer")[0]


@pytest.mark.parametrize("name", EVERY)
def test_n_answers_differ_and_each_has_its_seed(name: str, real: Real) -> None:
    prompt, fields = "Write one sentence about the sea.", {"temperature": 0.8, "top_k": 20, "max_tokens": 8}
    together = real.chat(name, prompt, n=4, seed=7, **fields)
    alone = [real.chat(name, prompt, seed=7 + i, **fields)["choices"][0]["message"]["content"] for i in range(4)]

    texts = [choice["message"]["content"] for choice in together["choices"]]
    assert len(set(texts)) == 4
    assert sum(map(str.__eq__, texts, alone)) >= 3  # a batch changes the last bits of logits


@pytest.mark.parametrize("name", EVERY)
def test_a_schema_is_met_with_the_facts_of_the_sentence(name: str, real: Real) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "payment", "schema": SCHEMA, "strict": True}}
    prompt = f"Extract who paid, the amount and the currency as JSON.\n{PAYMENT}"
    found = json.loads(real.chat(name, prompt, response_format=form)["choices"][0]["message"]["content"])

    jsonschema.validate(found, SCHEMA)
    assert (found["name"], found["amount"]) == ("Anna Petrova", 1200)  # a model of this size gets the currency wrong

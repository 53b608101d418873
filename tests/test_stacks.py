"""Every parameter on every stack: native, emulated (and named) or refused; and the same answers on all stacks.

No environment needs all stacks: `make test`, `make test-transformers` and `make test-onnx` each have their own.
The model is the trained tiny one of weights/tiny. TOURKIT_TINY may name another folder with the same layout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from launch_server import StackServer, stack_server

from tourkit import backends
from tourkit.errors import LocalError
from tourkit.launch import NO_LAYERS, GpuLayers, Launch
from tourkit.net import is_loopback

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path(os.environ.get("TOURKIT_TINY", ROOT / "weights" / "tiny"))
MODELS = {
    "llama_cpp": "gguf/tiny-f16.gguf",
    "vllm": "safetensors",
    "transformers": "safetensors",
    "onnx": "onnx",
}
PACKAGES = {
    "llama_cpp": "llama_cpp",
    "vllm": "vllm",
    "transformers": "transformers",
    "onnx": "onnxruntime_genai",
}

# The fields that the header x-tourkit-emulated names if a request uses them. All other fields are native.
EMULATED: dict[str, set[str]] = {
    "llama_cpp": set(),
    "vllm": set(),
    "transformers": {
        *("seed", "stop", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs"),
        *("json_schema", "json_object", "regex", "grammar", "choice"),
    },
    "onnx": {
        *("n", "stop", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs"),
        *("json_object", "choice"),
    },
}
SAME = 0.99  # share of greedy answers that must be equal on every stack
PARITY_PROMPTS = 100

QUESTION = [{"role": "user", "content": "Anna Petrova paid 1200 rubles on 2025-03-14. Write what happened, in words."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
UNCUT = {"top_p": 1, "top_k": 0, "min_p": 0}
HOT = {"temperature": 1.5, **UNCUT}  # texts of different seeds differ
SAMPLES = {"temperature": 1.2, **UNCUT, "seed": 7, "n": 8, "max_tokens": 80}


def usable(stack: str) -> str:
    """Return why a stack cannot be tested here; empty if it can."""
    if find_spec(PACKAGES[stack]) is None:
        return f"{PACKAGES[stack]} is not installed here: see make help"
    return "" if (WEIGHTS / MODELS[stack]).exists() else f"no {MODELS[stack]} in {WEIGHTS}"


def stack_params(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.skipif(bool(usable(name)), reason=usable(name))) for name in names]


Starter = Callable[[str], StackServer]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Servers by stack. Each is started at its first use."""
    running: dict[str, StackServer] = {}
    with ExitStack() as stopping:

        def started(stack: str) -> StackServer:
            if stack not in running:
                log = tmp_path_factory.mktemp(stack) / "log"
                running[stack] = stopping.enter_context(stack_server(stack, WEIGHTS / MODELS[stack], log))
            return running[stack]

        yield started


@pytest.fixture(params=stack_params(*MODELS))
def server(request: pytest.FixtureRequest, start: Starter) -> StackServer:
    return start(request.param)


@dataclass(frozen=True)
class Answer:
    status: int
    emulated: set[str]
    body: Any
    raw: str = ""

    @property
    def texts(self) -> list[str]:
        return [choice["message"]["content"] for choice in self.body["choices"]]

    @property
    def text(self) -> str:
        return self.texts[0]


def ask(server: StackServer, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
    """Send one request, by default greedy and short. A field with the value ... is left out."""
    body = {"model": "tool", "messages": QUESTION, "temperature": 0, "max_tokens": 24} | fields
    data = json.dumps({name: value for name, value in body.items() if value is not ...}).encode()
    request = urllib.request.Request(f"{server.url}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            status, headers, raw = reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            status, headers, raw = exc.code, exc.headers, exc.read().decode()
    named = {name for name in headers.get("x-tourkit-emulated", "").split(", ") if name}
    return Answer(status, named, None if raw.startswith("data:") else json.loads(raw), raw)


def tokens(server: StackServer, text: str) -> list[int]:
    found: list[int] = ask(server, "/tokenize", prompt=text, messages=..., temperature=..., max_tokens=...).body[
        "tokens"
    ]
    return found


# --- the table ----------------------------------------------------------------------------------------------------


def same_as_greedy(server: StackServer, answer: Answer) -> None:
    assert answer.text == ask(server).text


def one_seed_one_text(server: StackServer, answer: Answer) -> None:
    sampled = partial(ask, server, **HOT)

    assert answer.text == sampled(seed=7).text
    assert len({sampled(seed=seed).text for seed in range(7, 12)}) > 1


def each_sample_has_the_next_seed(server: StackServer, answer: Answer) -> None:
    alone = [ask(server, **HOT, seed=7 + i).text for i in range(5)]

    # In a batch the last bits of logits differ, so one or two answers may differ (docs/http-api.md). With other seeds
    # all of them differ.
    assert sum(map(str.__eq__, answer.texts, alone)) >= 3
    assert [choice["index"] for choice in answer.body["choices"]] == [0, 1, 2, 3, 4]


def ends_before_the_stop(server: StackServer, answer: Answer) -> None:
    whole = ask(server).text

    assert whole[5:8] not in answer.text
    assert whole.startswith(answer.text)
    assert answer.body["choices"][0]["finish_reason"] == "stop"


def counts_its_tokens(server: StackServer, answer: Answer) -> None:
    assert answer.body["usage"]["completion_tokens"] == 3
    assert answer.body["choices"][0]["finish_reason"] == "length"


def repeats_less(server: StackServer, answer: Answer) -> None:
    free = ask(server, **SAMPLES)

    assert answer.texts != free.texts
    assert repeated(server, answer) < repeated(server, free)


def repeated(server: StackServer, answer: Answer) -> int:
    """Return how many tokens of the answers occurred before in the same answer."""
    return sum(len(found) - len(set(found)) for found in (tokens(server, text) for text in answer.texts))


def only_the_favoured_token(server: StackServer, answer: Answer) -> None:
    assert set(answer.text) == {"Q"}


def probabilities_of_each_token(server: StackServer, answer: Answer) -> None:
    rows = answer.body["choices"][0]["logprobs"]["content"]

    assert "".join(bytes(b for row in rows for b in row["bytes"]).decode()) == answer.text
    for row in rows:
        likeliest = [other["logprob"] for other in row["top_logprobs"]]
        assert len(likeliest) == 4
        assert likeliest == sorted(likeliest, reverse=True)
        assert row["logprob"] == likeliest[0] <= 0


def meets_the_schema(server: StackServer, answer: Answer) -> None:
    jsonschema.validate(json.loads(answer.text), PERSON)


def is_an_object(server: StackServer, answer: Answer) -> None:
    assert isinstance(json.loads(answer.text), dict)


def matches(pattern: str, server: StackServer, answer: Answer) -> None:
    assert re.fullmatch(pattern, answer.text)


@dataclass(frozen=True)
class Case:
    """A request field: its name in the header, a value that changes the answer, and a check of the answer."""

    name: str
    fields: dict[str, Any]
    holds: Callable[[StackServer, Answer], None]


CASES = [
    Case("temperature", {"temperature": 0}, same_as_greedy),
    Case("top_k", {"temperature": 1.5, "top_k": 1}, same_as_greedy),
    Case("top_p", {"temperature": 1.5, "top_p": 1e-6}, same_as_greedy),
    Case("min_p", {"temperature": 1.5, "min_p": 1}, same_as_greedy),
    Case("seed", {**HOT, "seed": 7}, one_seed_one_text),
    Case("n", {**HOT, "seed": 7, "n": 5}, each_sample_has_the_next_seed),
    Case("max_tokens", {"max_tokens": 3}, counts_its_tokens),
    Case("max_completion_tokens", {"max_tokens": ..., "max_completion_tokens": 3}, counts_its_tokens),
    Case("frequency_penalty", {"frequency_penalty": 2, **SAMPLES}, repeats_less),
    Case("presence_penalty", {"presence_penalty": 2, **SAMPLES}, repeats_less),
    Case("logprobs", {"logprobs": True, "top_logprobs": 4}, probabilities_of_each_token),
    Case(
        "json_schema",
        {"max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
        meets_the_schema,
    ),
    Case("json_object", {"max_tokens": 60, "response_format": {"type": "json_object"}}, is_an_object),
    Case("regex", {"regex": "[A-Z][a-z]{2,5}-[0-9]{3}"}, partial(matches, "[A-Z][a-z]{2,5}-[0-9]{3}")),
    Case("grammar", {"grammar": 'start: ("yes" | "no") " "? /[0-9]{2}/'}, partial(matches, "(yes|no) ?[0-9]{2}")),
    Case("choice", {"choice": ["alpha", "beta"]}, partial(matches, "alpha|beta")),
    Case("user", {"user": "somebody"}, same_as_greedy),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_parameter_works_and_the_header_names_those_that_are_emulated(server: StackServer, case: Case) -> None:
    answer = ask(server, **case.fields)

    assert answer.status == 200, answer.body
    case.holds(server, answer)
    stated = {name for name, value in case.fields.items() if UNCUT.get(name) != value}  # what is off is not asked for
    asked = {case.name, *stated} & set().union(*EMULATED.values())
    assert answer.emulated == asked & EMULATED[server.stack]


def test_a_bias_and_a_stop_work_and_are_named(server: StackServer) -> None:
    """These values depend on the vocabulary and on the answer, so they are not in the table."""
    [favoured] = tokens(server, "Q")
    biased = ask(server, logit_bias={str(favoured): 100})
    stopped = ask(server, stop=ask(server).text[5:8])

    only_the_favoured_token(server, biased)
    ends_before_the_stop(server, stopped)
    assert biased.emulated == {"logit_bias"} & EMULATED[server.stack]
    assert stopped.emulated == {"stop"} & EMULATED[server.stack]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"n": 0}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"regex": "("}, "regex"),
    ],
)
def test_what_no_stack_can_do_is_refused_by_name(server: StackServer, fields: dict[str, Any], param: str) -> None:
    answer = ask(server, **fields)

    assert answer.status == 400
    assert answer.body["error"]["param"] == param


def test_a_stream_gives_the_same_text_and_the_same_header(server: StackServer) -> None:
    fields = {"temperature": 0.5, "seed": 7, "n": 2, "stop": ["zzz"]}
    whole = ask(server, **fields)
    streamed = ask(server, **fields, stream=True, stream_options={"include_usage": True})

    events = [json.loads(line[6:]) for line in streamed.raw.split("\n\n") if line.startswith("data: {")]
    texts = ["", ""]
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == whole.texts
    found = [usage.pop("prompt_tokens_details") for usage in (whole.body["usage"], events[-1]["usage"])]
    assert events[-1]["usage"] == whole.body["usage"]
    assert found[1]["cached_tokens"] >= found[0]["cached_tokens"]
    assert streamed.raw.endswith("data: [DONE]\n\n")
    assert streamed.emulated == whole.emulated


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_usage_says_how_many_tokens_of_the_prompt_were_found(server: StackServer, n: int, stream: bool) -> None:
    """vLLM finds whole blocks only, of at most 128 tokens. On onnx a prompt finds its own slot's cells only."""
    document = f"Bill {n} {stream}. " + "Anna Petrova paid 1200 rubles for the paper. " * 30
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": document}], "max_tokens": 3}
    fields |= {"n": n, "temperature": 1} if n > 1 else {}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}

    first, again = (_usage(ask(server, **fields)) for _ in range(2))

    block = 128 if server.stack == "vllm" else 1
    assert first["prompt_tokens"] == again["prompt_tokens"]
    if server.stack != "vllm" or n == 1:  # vLLM's number for several samples is that of one of them
        assert first["prompt_tokens_details"]["cached_tokens"] < 64
    assert 0 < again["prompt_tokens"] - again["prompt_tokens_details"]["cached_tokens"] <= block


def _usage(answer: Answer) -> dict[str, Any]:
    """Return the usage of a whole or streamed answer."""
    events = [line[6:] for line in answer.raw.split("\n\n") if line.startswith("data: {")]
    found: dict[str, Any] = (json.loads(events[-1]) if events else answer.body)["usage"]
    return found


# --- tools ------------------------------------------------------------------------------------------------------------

# The age has an upper limit, because vLLM does not close out a number that goes on.
AGE = {"type": "integer", "minimum": 0, "maximum": 150}
ADULT = PERSON | {"properties": PERSON["properties"] | {"age": AGE}}
TOOL = {"type": "function", "function": {"name": "save_person", "parameters": ADULT}}
CALLING = {"messages": [{"role": "user", "content": "Save Anna Petrova, who is 30."}], "tools": [TOOL]}


def _calls(answer: Answer) -> list[tuple[str, Any]]:
    """Return name and arguments of each call of a whole or streamed answer. The arguments must follow the schema."""
    calls: dict[int, dict[str, str]] = {}
    events = [json.loads(line[6:]) for line in answer.raw.split("\n\n") if line.startswith("data: {")]
    messages = [choice["delta"] for event in events for choice in event["choices"]]
    for message in messages or [choice["message"] for choice in answer.body["choices"]]:
        for at, piece in enumerate(message.get("tool_calls", ())):
            call = calls.setdefault(piece.get("index", at), {"name": "", "arguments": ""})
            for key, text in piece["function"].items():
                call[key] += text
    found = [(call["name"], json.loads(call["arguments"])) for call in calls.values()]
    for _, arguments in found:
        jsonschema.validate(arguments, ADULT)
    return found


def test_a_required_tool_is_called_and_a_stream_brings_the_same_call(server: StackServer) -> None:
    required = {**CALLING, "max_tokens": 80, "tool_choice": "required", "parallel_tool_calls": False}

    whole, streamed = ask(server, **required), ask(server, **required, stream=True)

    assert whole.status == 200, whole.body
    assert whole.body["choices"][0]["finish_reason"] == "tool_calls"
    assert not whole.text
    [(name, arguments)] = _calls(whole)
    assert name == "save_person"
    assert _calls(streamed) == [(name, arguments)]


def test_a_model_that_may_call_a_tool_answers_with_text_or_a_valid_call(server: StackServer) -> None:
    """The tiny model was not trained on tools, so which of both it does is not promised."""
    answer = ask(server, **CALLING, max_tokens=40)

    assert answer.status == 200, answer.body
    assert "<tool_call" not in (answer.text or "")
    assert bool(answer.text) != bool(_calls(answer))


def test_plain_completions_work_too(server: StackServer) -> None:
    answer = ask(server, "/v1/completions", prompt="Anna paid", messages=..., stop=["zzz"])

    assert answer.body["usage"]["completion_tokens"] > 0
    assert answer.emulated == {"stop"} & EMULATED[server.stack]


def test_tokens_are_text_again(server: StackServer) -> None:
    text = "Счёт № 42 на сумму 1 200,50 ₽ <|end|> 🙂"
    back = ask(server, "/detokenize", tokens=tokens(server, text), messages=..., temperature=..., max_tokens=...)

    assert back.body["prompt"] == text


def test_many_at_once_get_the_answers_they_get_alone(server: StackServer) -> None:
    questions = [[{"role": "user", "content": f"Item {i} costs {i * 7} rubles. Say so again."}] for i in range(12)]
    alone = [ask(server, messages=question).text for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: ask(server, messages=question).text, questions))

    assert sum(one == other for one, other in zip(alone, together, strict=True)) >= 11  # rounding may change a near-tie


def test_a_client_that_hangs_up_frees_its_slot(server: StackServer) -> None:
    """Open twice as many streams as slots, and leave each after its first bytes. Then a request is still answered."""
    body = json.dumps({"model": "tool", "messages": QUESTION, "stream": True, "logit_bias": {"2": -100}}).encode()
    for _ in range(8):
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            assert reply.read(5) == b"data:"

    assert ask(server, max_tokens=3).status == 200


# --- the same answers ---------------------------------------------------------------------------------------------


def greedy_answers(server: StackServer, prompts: list[Any]) -> list[str]:
    """Return answers to requests sent one after the other, because a batch changes the last bits of logits."""
    return [ask(server, messages=messages, max_tokens=200).text for messages in prompts]


@pytest.mark.slow
@pytest.mark.skipif(bool(usable("llama_cpp")), reason=usable("llama_cpp"))
@pytest.mark.parametrize("stack", stack_params("vllm", "transformers", "onnx"))
def test_held_out_greedy_answers_are_those_of_llama_cpp(
    stack: str, start: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.tiny.parity import held_out_prompts

    prompts = held_out_prompts(PARITY_PROMPTS)
    expected, found = (greedy_answers(start(name), prompts) for name in ("llama_cpp", stack))

    same = sum(map(str.__eq__, found, expected))
    with capsys.disabled():
        sys.stdout.write(f"\n{stack}: {same} of {len(prompts)} held-out greedy answers are those of llama_cpp\n")
    assert same / len(prompts) >= SAME


@pytest.mark.skipif(bool(usable("llama_cpp")), reason=usable("llama_cpp"))
@pytest.mark.parametrize("stack", stack_params("vllm", "transformers", "onnx"))
def test_prompts_have_the_same_tokens_on_every_stack(stack: str, start: Starter) -> None:
    texts = ["the name and the date", "Счёт № 42 на сумму 1 200,50 ₽", "emoji 🙂", "a\x00b", "<|end|>", " x\n\n  y"]

    assert [tokens(start(stack), text) for text in texts] == [tokens(start("llama_cpp"), text) for text in texts]


# --- loading ------------------------------------------------------------------------------------------------------


def spec(stack: str, path: Path, **more: Any) -> Launch:
    return Launch(model="tiny", stack=stack, path=str(path), slots=1, context=64, threads=1, **more)


@pytest.mark.parametrize("stack", ["transformers", "onnx"])
@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"cache_type": "q8_0"}, "KV cache of q8_0"),
        ({"flash_attention": True}, "flash attention"),
        ({"lora": ("a.gguf",)}, "LoRA"),
        ({"gpu_layers": GpuLayers(3)}, "some layers"),
        ({"deterministic": True}, "does not support --deterministic"),
    ],
)
def test_what_a_stack_cannot_load_with_is_refused(
    stack: str, option: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(LocalError, match=word):
        backends.load(spec(stack, tmp_path, **option))


@pytest.mark.parametrize("stack", ["transformers", "onnx"])
def test_a_stack_that_is_not_installed_is_named_with_its_extra(stack: str, tmp_path: Path) -> None:
    if find_spec(PACKAGES[stack]) is not None:
        pytest.skip(f"{PACKAGES[stack]} is installed here")
    for name in ("config.json", "genai_config.json"):
        (tmp_path / name).write_text("{}")

    with pytest.raises(LocalError, match=rf"install tourkit\[{stack}\]"):
        backends.load(spec(stack, tmp_path))


@pytest.mark.parametrize("stack", stack_params("transformers", "onnx"))
@pytest.mark.parametrize("harm", ["empty folder", "half a weight file", "config is not JSON", "no tokenizer"])
def test_a_folder_that_is_no_good_is_named(stack: str, harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / MODELS[stack], folder)
    match harm:
        case "empty folder":
            shutil.rmtree(folder)
            folder.mkdir()
        case "half a weight file":
            weights = max(folder.iterdir(), key=lambda file: file.stat().st_size)
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "config is not JSON":
            for name in ("config.json", "genai_config.json"):
                (folder / name).write_text("{")
        case "no tokenizer":
            for file in folder.glob("tokenizer*"):
                file.unlink()

    with pytest.raises(LocalError, match=re.escape(str(folder))):
        backends.load(spec(stack, folder))


@pytest.mark.parametrize("stack", stack_params("transformers"))
def test_bitsandbytes_weights_are_refused_without_a_cuda_gpu(stack: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / MODELS[stack], folder)
    config = json.loads((folder / "config.json").read_text())
    quantized = config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (folder / "config.json").write_text(json.dumps(quantized))

    with pytest.raises(LocalError, match="need a CUDA GPU"):
        backends.load(spec(stack, folder, gpu_layers=NO_LAYERS))


@pytest.mark.parametrize("stack", stack_params("transformers"))
def test_code_that_comes_with_weights_is_never_run(stack: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / MODELS[stack], folder)
    ran = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(LocalError, match="transformers cannot load it"):
        backends.load(spec(stack, folder))
    assert not ran.exists()


@pytest.mark.parametrize("stack", stack_params("vllm", "transformers", "onnx"))
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no system calls to look at")
def test_no_system_call_of_a_stack_leaves_the_machine(stack: str, tmp_path: Path) -> None:
    """strace lists every connect and every send of gateway and worker, native code included."""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    with stack_server(stack, WEIGHTS / MODELS[stack], tmp_path / "log", prefix=strace) as running:
        answers = [ask(running, max_tokens=200, logit_bias={"2": -100}) for _ in range(3)]
        pid = running.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)  # strace does not pass signals on, so end the gateway itself
        running.process.wait()

    assert [answer.status for answer in answers] == [200] * 3
    calls = trace.read_text()
    addresses = re.findall(r'sin6?_addr=inet_[a-z]+\([^"]*"([^"]+)"', calls)
    addresses += re.findall(r'inet_addr\("([^"]+)"', calls)
    assert "AF_UNIX" in calls
    assert [address for address in addresses if not is_loopback(address)] == []

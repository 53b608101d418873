"""vLLM behind the gateway: tests that are not in the table of test_stacks.py. `make test-vllm` runs them.

The model is the tiny one of weights/tiny. TOURKIT_TINY may name another folder with the same layout.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from launch_server import LaunchServer, launch_server

from tourkit.backends.vllm import weights
from tourkit.backends.vllm.arguments import environment, serve_arguments
from tourkit.defaults import RoleDefaults, Sampling
from tourkit.errors import LocalError
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch
from tourkit.planning.plan import Placement

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path(os.environ.get("TOURKIT_TINY", ROOT / "weights" / "tiny"))
SAFETENSORS, GGUF = WEIGHTS / "safetensors", WEIGHTS / "gguf" / "tiny-f16.gguf"
if find_spec("vllm") is None:
    MISSING = "vllm is not installed here: `make test-vllm` has an environment with it"
elif not SAFETENSORS.is_dir():
    MISSING = f"no {SAFETENSORS}"
else:
    MISSING = ""
needs_vllm = pytest.mark.skipif(bool(MISSING), reason=MISSING)

QUESTION = [{"role": "user", "content": "Anna Petrova paid 1200 rubles on 2025-03-14. Write what happened, in words."}]
CONFIG = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 299}
AWQ = {"quantization_config": {"quant_method": "awq"}}
# How checkpoints ask for an FP8 KV cache: ModelOpt in config.json, and llm-compressor. Made by hand after such files.
FP8_CACHE = {"num_bits": 8, "type": "float", "dynamic": False}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": FP8_CACHE}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
}
COMPRESSED_INT4 = COMPRESSED | {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}
# A100, RTX 30, RTX 40, H100, B200, RTX 50
AMPERE, CONSUMER_AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER_BLACKWELL = (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)
# No grammar can express that all items of a list differ.
UNIQUE = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "maxItems": 4}},
    "required": ["a"],
    "additionalProperties": False,
}
NAME = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}


def launch(*roles: str, path: Path = SAFETENSORS, context: int = 2048, **more: Any) -> Placement:
    launch = Launch("tiny", "vllm", str(path), slots=4, context=context, threads=1, quant="F16", **more)
    return Placement(roles, launch)


def gguf() -> Placement:
    launch = Launch("tiny", "llama_cpp", str(GGUF), slots=4, context=2048, threads=1, quant="F16")
    return Placement(("tool",), launch)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: str

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])

    @property
    def events(self) -> list[Any]:
        return [json.loads(line[6:]) for line in self.raw.split("\n\n") if line.startswith("data: {")]


def ask(server: LaunchServer, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
    """Send one request, by default greedy and short. A field with the value ... is left out."""
    body = {"model": "tool", "messages": QUESTION, "temperature": 0, "max_tokens": 24} | fields
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    sent = json.dumps({name: value for name, value in body.items() if value is not ...})
    connection.request("POST", path, sent, {"content-type": "application/json"})
    reply = connection.getresponse()
    answer = Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read().decode())
    connection.close()
    return answer


def structured(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def get(server: LaunchServer, path: str) -> str:
    try:
        with urllib.request.urlopen(f"{server.url}{path}") as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as exc:
        with exc:
            return str(exc.read().decode())


def metric(server: LaunchServer, name: str) -> int:
    line = rf"^tourkit_{name}\{{.*stack=\"vllm\"\}} (\d+)\.0$"
    return int(re.findall(line, get(server, "/metrics"), re.MULTILINE)[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchServer]:
    """One worker for graph, and one for all other roles."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with launch_server(launch("tool"), log=log) as running:
        yield running


# --- how it is started ----------------------------------------------------------------------------------------------


def options(arguments: list[str]) -> dict[str, str | None]:
    """Return the options and their values; None for a switch."""
    following = [*arguments[1:], "--"]
    return {
        name: None if value.startswith("--") else value
        for name, value in zip(arguments, following, strict=True)
        if name.startswith("--")
    }


def started(
    folder: Path,
    *roles: str,
    cpu: bool = True,
    layers: GpuLayers = ALL_LAYERS,
    capability: tuple[int, int] | None = None,
    **config: Any,
) -> dict[str, str | None]:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    spec = launch(path=folder, capability=capability, gpu_layers=layers).launch
    return options(
        serve_arguments(spec, folder, weights.shape_of(folder), "unix:/s", roles, middleware="a.Front", cpu=cpu)
    )


@pytest.mark.parametrize(("cpu", "packed", "dtype"), [(True, {}, "float32"), (True, AWQ, "auto"), (False, {}, "auto")])
def test_a_cpu_computes_in_32_bits_unless_the_weights_are_quantised(
    cpu: bool, packed: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    assert started(tmp_path, "tool", cpu=cpu, **packed)["--dtype"] == dtype


def test_the_cache_has_room_for_every_slot_and_is_not_sized_by_what_is_free(tmp_path: Path) -> None:
    """Keys and values of 2 layers with 64 numbers, for 4 sequences of 2048 tokens, and one more block."""
    given, on_gpu = started(tmp_path, "tool"), started(tmp_path, "tool", cpu=False)

    assert given["--kv-cache-memory-bytes"] == str(2 * 2 * 64 * 4 * (4 * 2048 + 128))
    assert on_gpu["--kv-cache-memory-bytes"] == str(2 * 2 * 64 * 2 * (4 * 2048 + 128))
    assert (given["--max-num-seqs"], given["--max-model-len"]) == ("4", "2048")


def test_only_safetensors_are_read_and_no_code_of_a_model_is_run(tmp_path: Path) -> None:
    given = started(tmp_path, "tool")

    assert given["--load-format"] == "safetensors"
    assert "--trust-remote-code" not in given


@pytest.mark.parametrize(("roles", "guesses"), [(("graph",), True), (("tool",), False), (("graph", "brain"), False)])
def test_only_a_worker_for_graphs_guesses_from_the_prompt(
    roles: tuple[str, ...], guesses: bool, tmp_path: Path
) -> None:
    assert ("--speculative-config" in started(tmp_path, *roles)) is guesses


def test_on_a_cpu_nothing_is_guessed(tmp_path: Path) -> None:
    """vLLM's CPU build cannot sample guessed tokens."""
    assert "--speculative-config" not in started(tmp_path, "graph", layers=NO_LAYERS)


def test_it_is_told_to_stay_offline_whether_or_not_the_gateway_is() -> None:
    given = environment(launch().launch, cpu=True)

    assert given["HF_HUB_OFFLINE"] == given["VLLM_NO_USAGE_STATS"] == given["DO_NOT_TRACK"] == "1"
    assert given["VLLM_HOST_IP"] == "127.0.0.1"  # without it vLLM uses the network to find its own address
    assert given["OMP_NUM_THREADS"] == "1"


# --- how it is started on a GPU -------------------------------------------------------------------------------------


def on_gpu(folder: Path, capability: tuple[int, int] | None, **config: Any) -> dict[str, str | None]:
    return started(folder, "tool", cpu=False, capability=capability, **config)


def test_the_sampler_that_is_compiled_on_the_machine_is_off_on_a_gpu() -> None:
    assert environment(launch().launch, cpu=False)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment(launch().launch, cpu=True)


@pytest.mark.parametrize("packed", [MODELOPT, COMPRESSED | {"kv_cache_scheme": FP8_CACHE}])
@pytest.mark.parametrize(
    ("capability", "cache"),
    [
        ((7, 5), "float16"),  # no bfloat16 there
        (AMPERE, "bfloat16"),
        (CONSUMER_AMPERE, "bfloat16"),
        (ADA, "bfloat16"),  # FlashAttention refuses FP8 there too, and FlashInfer needs nvcc
        (HOPPER, None),
        (BLACKWELL, None),
        (CONSUMER_BLACKWELL, "bfloat16"),
        (None, None),
    ],
)
def test_an_fp8_cache_is_used_only_where_it_needs_no_nvcc(
    packed: dict[str, Any], capability: tuple[int, int] | None, cache: str | None, tmp_path: Path
) -> None:
    assert on_gpu(tmp_path, capability, quantization_config=packed).get("--kv-cache-dtype") == cache


def test_the_cache_has_the_type_of_a_model_in_float16(tmp_path: Path) -> None:
    given = on_gpu(tmp_path, AMPERE, quantization_config=MODELOPT, torch_dtype="float16")

    assert given["--kv-cache-dtype"] == "float16"


def test_the_wish_for_an_fp8_cache_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    """ModelOpt up to 0.29 writes hf_quant_config.json beside config.json, and vLLM reads it."""
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))

    assert on_gpu(tmp_path, AMPERE)["--kv-cache-dtype"] == "bfloat16"


@pytest.mark.parametrize("packed", [{}, AWQ, {"quantization_config": COMPRESSED}])
def test_a_checkpoint_that_asks_for_no_fp8_cache_keeps_the_usual_one(packed: dict[str, Any], tmp_path: Path) -> None:
    assert "--kv-cache-dtype" not in on_gpu(tmp_path, AMPERE, **packed)


@pytest.mark.parametrize(
    ("packed", "capability", "backend"),
    [
        (COMPRESSED, (7, 5), "marlin"),
        (COMPRESSED, AMPERE, "marlin"),
        (COMPRESSED, ADA, None),
        (COMPRESSED, None, None),
        (COMPRESSED_INT4, AMPERE, None),
        (MODELOPT, AMPERE, None),
    ],
)
def test_compressed_fp8_weights_take_the_kernels_that_are_in_the_wheel(
    packed: dict[str, Any], capability: tuple[int, int] | None, backend: str | None, tmp_path: Path
) -> None:
    assert on_gpu(tmp_path, capability, quantization_config=packed).get("--linear-backend") == backend


def test_the_bytes_of_the_cache_are_those_of_16_bits_with_an_fp8_checkpoint(tmp_path: Path) -> None:
    plain, packed = on_gpu(tmp_path, AMPERE), on_gpu(tmp_path, AMPERE, quantization_config=MODELOPT)

    assert (
        packed["--kv-cache-memory-bytes"] == plain["--kv-cache-memory-bytes"] == str(2 * 2 * 64 * 2 * (4 * 2048 + 128))
    )


@needs_vllm
def test_this_vllm_knows_the_options_for_a_gpu() -> None:
    code = (
        "from typing import get_args\n"
        "from vllm import envs\n"
        "from vllm.config.cache import CacheDType\n"
        "from vllm.config.kernel import LinearBackend\n"
        "assert {'float16', 'bfloat16'} <= {*get_args(CacheDType)}\n"
        "assert 'marlin' in get_args(LinearBackend)\n"
        "assert 'VLLM_USE_FLASHINFER_SAMPLER' in envs.environment_variables\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"cache_type": "q8_0"}, "KV cache of q8_0"),
        ({"flash_attention": True}, "flash attention"),
        ({"lora": ("a.gguf",)}, "LoRA"),
        ({"gpu_layers": GpuLayers(3)}, "some layers"),
        ({"deterministic": True}, "deterministic"),
        ({}, "no config.json"),
    ],
)
def test_what_it_cannot_load_with_is_refused_before_it_starts(
    option: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(LocalError, match=word):
        weights.folder_of(launch(path=tmp_path, **option).launch)


# --- the same API ---------------------------------------------------------------------------------------------------


@needs_vllm
def test_the_reply_names_what_answered_and_repeats_the_name_that_was_asked(server: LaunchServer) -> None:
    whole, streamed = ask(server), ask(server, stream=True)

    assert whole.headers["x-tourkit-model"] == streamed.headers["x-tourkit-model"] == "tiny F16 vllm"
    assert whole.body["model"] == "tool"
    assert {event["model"] for event in streamed.events} == {"tool"}
    assert set(whole.body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}


@needs_vllm
def test_a_schema_that_no_grammar_can_hold_is_relaxed_by_name_and_checked_afterwards(server: LaunchServer) -> None:
    for seed in range(4):
        answer = ask(server, temperature=1, seed=seed, max_tokens=120, **structured(UNIQUE))
        [outcome] = answer.body["tourkit"]["choices"]

        assert (answer.status, answer.headers["x-tourkit-constraint"]) == (200, "relaxed")
        assert answer.body["tourkit"]["dropped"] == ["/properties/a/uniqueItems"]
        assert outcome["valid"] == jsonschema.Draft202012Validator(UNIQUE).is_valid(json.loads(answer.text))


@needs_vllm
def test_a_stream_under_a_relaxed_schema_ends_with_what_was_dropped(server: LaunchServer) -> None:
    answer = ask(server, max_tokens=120, stream=True, **structured(UNIQUE))

    assert answer.headers["x-tourkit-constraint"] == "relaxed"
    assert answer.events[-1]["tourkit"]["dropped"] == ["/properties/a/uniqueItems"]
    assert answer.raw.endswith("data: [DONE]\n\n")


@needs_vllm
def test_a_stream_under_a_strict_schema_is_valid_and_needs_no_remark(server: LaunchServer) -> None:
    answer = ask(server, max_tokens=120, stream=True, **structured(NAME))
    text = "".join(choice["delta"].get("content", "") for event in answer.events for choice in event["choices"])

    jsonschema.validate(json.loads(text), NAME)
    assert not any("tourkit" in event for event in answer.events)


@needs_vllm
def test_an_answer_that_runs_out_of_tokens_is_said_to_be_cut_off(server: LaunchServer) -> None:
    """Close-out (ending a document when tokens run short) is a feature of our engine. vLLM does not have it."""
    answer = ask(server, max_tokens=3, **structured(NAME))
    [outcome] = answer.body["tourkit"]["choices"]

    assert not outcome["valid"]
    assert "raise it" in outcome["errors"][0]


@needs_vllm
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, "messages"),
        ({"max_tokens": 2047}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
def test_what_does_not_fit_the_context_is_refused_in_the_words_of_every_stack(
    server: LaunchServer, fields: dict[str, Any], param: str
) -> None:
    answer = ask(server, **fields)

    assert answer.status == 400
    assert (answer.body["error"]["param"], answer.body["error"]["code"]) == (param, "context_length_exceeded")
    assert answer.body["error"]["type"] == "invalid_request_error"


@needs_vllm
def test_a_streamed_request_that_is_refused_gets_a_plain_error(server: LaunchServer) -> None:
    answer = ask(server, stream=True, max_tokens=100_000)

    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert answer.body["error"]["code"] == "context_length_exceeded"


@needs_vllm
def test_a_budget_and_a_schema_apply_to_a_model_that_thinks(tmp_path: Path) -> None:
    """The tiny model never closes its thinking by itself, so the budget does."""
    folder = Path(shutil.copytree(SAFETENSORS, tmp_path / "thinks"))
    template = folder / "chat_template.jinja"
    template.write_text(
        template.read_text() + "{% if enable_thinking is not false %}<think>\n{% endif %}{# </think> #}"
    )
    think = {"thinking_budget": 6, "n": 2, "temperature": 1, "seed": 1, "max_tokens": 100}
    with launch_server(launch("tool", path=folder), log=tmp_path / "log") as running:
        whole, free = ask(running, **think, **structured(NAME)), ask(running, **think)
        streamed = ask(running, **think, **structured(NAME), stream=True)
        silent = ask(running, **structured(NAME), chat_template_kwargs={"enable_thinking": False, "mood": 1})

    for choice in whole.body["choices"]:
        assert json.loads(choice["message"]["content"])["name"]
        assert choice["message"]["reasoning_content"]
    assert whole.body["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 12
    assert free.body["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 12
    assert not any("think>" in choice["message"]["content"] for choice in free.body["choices"])
    parts = [each for event in streamed.events for each in event["choices"] if each["index"] == 1]
    assert json.loads("".join(part["delta"].get("content", "") for part in parts))["name"]
    assert any(part["delta"].get("reasoning_content") for part in parts)
    assert "reasoning_content" not in silent.body["choices"][0]["message"]
    assert silent.headers["x-tourkit-ignored"] == "chat_template_kwargs.mood"


@needs_vllm
def test_special_tokens_in_a_plain_prompt_are_text(server: LaunchServer) -> None:
    count = ask(server, "/tokenize", prompt="<|end|>", messages=..., temperature=..., max_tokens=...).body["count"]
    used = ask(server, "/v1/completions", prompt="<|end|>", messages=...).body["usage"]["prompt_tokens"]

    assert count > 1
    assert used >= count


@needs_vllm
def test_logprobs_have_the_bytes_of_tokens_that_are_parts_of_a_character(server: LaunchServer) -> None:
    answer = ask(server, regex="🙂🙃", logprobs=True, top_logprobs=2)
    rows = answer.body["choices"][0]["logprobs"]["content"]

    assert answer.text == "🙂🙃"
    assert bytes(byte for row in rows for byte in row["bytes"]).decode() == "🙂🙃"
    assert all(len(row["top_logprobs"]) == 2 for row in rows)


@needs_vllm
def test_streamed_logprobs_are_those_of_the_whole_answer(server: LaunchServer) -> None:
    whole = ask(server, logprobs=True, top_logprobs=1).body["choices"][0]["logprobs"]["content"]
    streamed = [
        row
        for event in ask(server, logprobs=True, top_logprobs=1, stream=True).events
        for choice in event["choices"]
        for row in (choice["logprobs"] or {"content": []})["content"]
    ]

    assert [row["bytes"] for row in streamed] == [row["bytes"] for row in whole]
    assert [row["logprob"] for row in streamed] == pytest.approx([row["logprob"] for row in whole], abs=1e-2)


@needs_vllm
def test_more_than_can_wait_is_answered_429(server: LaunchServer) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(server, n=128, max_tokens=40, temperature=1), range(3)))

    assert sorted(answer.status for answer in answers) == [200, 200, 429]
    [refused] = [answer for answer in answers if answer.status == 429]
    assert refused.headers["retry-after"] == "1"


@needs_vllm
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slots(server: LaunchServer, stream: bool) -> None:
    end = json.loads((SAFETENSORS / "config.json").read_text())["eos_token_id"]
    endless = {"max_tokens": 1800, "logit_bias": {str(end): -100}, "n": 3, "temperature": 1, "stream": stream}
    ask(server)  # a worker has figures only after it is up
    before = metric(server, "generated_tokens_total")
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "tool", "messages": QUESTION} | endless))
    while metric(server, "sequences_running") < 3:
        pass
    connection.close()

    while metric(server, "sequences_running") or metric(server, "sequences_waiting"):
        pass
    assert metric(server, "generated_tokens_total") - before < 3 * 1800


@needs_vllm
def test_its_figures_are_among_the_metrics(server: LaunchServer) -> None:
    before = metric(server, "generated_tokens_total")
    used = ask(server, temperature=1).body["usage"]["completion_tokens"]

    assert metric(server, "generated_tokens_total") == before + used
    assert metric(server, "prompt_tokens_total") > 0
    assert metric(server, "offline_refused_total") == 0


@needs_vllm
def test_a_prompt_it_has_seen_is_not_computed_again(server: LaunchServer) -> None:
    messages = [{"role": "user", "content": "The same words again and again. " * 40}]
    ask(server, messages=messages)
    before = metric(server, "prompt_tokens_cached_total")
    ask(server, messages=messages)

    assert metric(server, "prompt_tokens_cached_total") > before


@needs_vllm
def test_embeddings_are_refused_by_name(server: LaunchServer) -> None:
    answer = ask(server, "/v1/embeddings", input="text", messages=..., temperature=..., max_tokens=...)

    assert (answer.status, answer.body["error"]["code"]) == (400, "unsupported_model")


@needs_vllm
def test_guesses_from_the_prompt_change_no_answer_and_what_they_exclude_is_refused(
    server: LaunchServer, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Repeat: " + "Anna paid Boris. " * 12}]
    excluded: dict[str, Any] = {"min_p": 0.5, "logit_bias": {"5": 1}}
    # A plan for a GPU, without cuts: vLLM's CPU build cannot sample a guessed token with a top_k (tourkit/stacks.py).
    defaults = (RoleDefaults("graph", sampling=Sampling(top_p=1.0, top_k=0, min_p=0.0)),)
    with launch_server(launch("graph", defaults=defaults), log=tmp_path / "log") as guessing:
        found = ask(guessing, model="graph", messages=messages, max_tokens=60)
        held = ask(guessing, model="graph", max_tokens=120, **structured(NAME))
        refused = [ask(guessing, model="graph", temperature=1, **{name: value}) for name, value in excluded.items()]
        drafted = metric(guessing, "draft_tokens_total")

    assert found.text == ask(server, messages=messages, max_tokens=60).text
    assert drafted > 0
    jsonschema.validate(json.loads(held.text), NAME)
    assert [answer.status for answer in refused] == [400, 400]
    assert [answer.body["error"]["param"] for answer in refused] == list(excluded)


# --- its end, and its failures --------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# A plugin that vLLM loads in each of its processes. It tries to reach the network and writes down what came of it.
PLUGIN = """
import os, pathlib, socket

def knock():
    try:
        socket.create_connection(("192.0.2.1", 9), timeout=1)
        said = "connected"
    except Exception as exc:
        said = type(exc).__name__
    pathlib.Path(os.environ["KNOCKED"], str(os.getpid())).write_text(said)
"""


def with_plugin(folder: Path) -> dict[str, str]:
    """Install the plugin in a folder. Return the environment in which vLLM loads it."""
    site, knocked = folder / "site", folder / "knocked"
    info = site / "knocking-1.dist-info"
    info.mkdir(parents=True)
    knocked.mkdir()
    (site / "knocking.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: knocking\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nknocking = knocking:knock\n")
    return {"PYTHONPATH": str(site), "KNOCKED": str(knocked)}


# The processes of vLLM. On a GPU they are the server and its engine. On a CPU vLLM puts the model into a third process
# unless this variable is 0.
LAYOUTS = {"server and engine": "0", "server, engine and worker": "1"}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment for one layout of vLLM's processes."""
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": LAYOUTS[request.param]}


@contextmanager
def serving_alone(temporary: Path, environment: dict[str, str]) -> Iterator[tuple[LaunchServer, list[int]]]:
    """Run a server with its temporary files in `temporary`. Yield it and its processes after its first answer."""
    with launch_server(
        launch("tool"), log=temporary.with_suffix(".log"), environment={"TMPDIR": str(temporary)} | environment
    ) as running:
        assert ask(running).status == 200
        yield running, family(running.process.pid)


@contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder with a short path, because the path of a socket has at most about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="vllm-") as folder:
        (Path(folder) / "t").mkdir()
        yield Path(folder) / "t"


@dataclass(frozen=True)
class Life:
    """What was seen of one server from its start to its end. Its engine was killed once."""

    of_vllm: list[int]  # its server, its engine, and what they started
    reached: dict[int, str]  # what came of the attempts to reach the network, by process
    after_kill: Answer  # the first answer after the engine was killed
    left_of_first: list[int]  # processes of the killed engine's server at that time
    left: list[int]  # processes after the end
    files: list[Path]  # temporary files after the end


@pytest.fixture(scope="module")
def life(layout: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    with short_folder() as temporary:
        with serving_alone(temporary, layout | with_plugin(folder)) as (running, processes):
            reached = {int(path.name): path.read_text() for path in (folder / "knocked").iterdir()}
            os.kill(engine_of(processes[1]), signal.SIGKILL)
            while (answer := ask(running)).status != 200:
                assert answer.status in (500, 503)
            left_of_first = [pid for pid in processes[1:] if alive(pid)]
            second = family(running.process.pid)
        left = [pid for pid in (*processes, *second) if alive(pid)]
        return Life(processes[1:], reached, answer, left_of_first, left, list(temporary.iterdir()))


def engine_of(server: int) -> int:
    """Return the process of vLLM's engine: the last child of its server that is not the process of trials."""
    children = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
    return [child for child in children if b"tourkit.grammar.trial" not in Path(f"/proc/{child}/cmdline").read_bytes()][
        -1
    ]


@needs_vllm
def test_every_process_of_vllm_refuses_the_network(life: Life, layout: dict[str, str]) -> None:
    several = {"0": 2, "1": 3}[layout["VLLM_ENABLE_V1_MULTIPROCESSING"]]

    assert len(life.reached) == several
    assert life.reached.keys() <= set(life.of_vllm)
    assert set(life.reached.values()) == {"OfflineError"}


@needs_vllm
def test_an_engine_that_dies_is_started_again(life: Life) -> None:
    assert life.after_kill.headers["x-tourkit-model"] == "tiny F16 vllm"
    assert life.left_of_first == []


@needs_vllm
def test_it_leaves_no_process_and_no_file_behind(life: Life) -> None:
    assert len(life.of_vllm) >= 2  # vLLM's server, vLLM's engine
    assert life.left == []
    assert life.files == []


@needs_vllm
def test_it_ends_with_a_gateway_that_is_killed(layout: dict[str, str]) -> None:
    with short_folder() as temporary, serving_alone(temporary, layout) as (running, processes):
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        while any(map(alive, processes)):
            pass


@needs_vllm
def test_an_engine_that_hangs_is_replaced_and_the_request_is_answered(tmp_path: Path) -> None:
    """vLLM's server still answers /health. Only the missing output shows that its engine hangs."""
    log, timeouts = tmp_path / "log", {"call": 10, "first_call": 10, "asked_again": 600}
    with launch_server(launch("tool"), log=log, timeouts=timeouts) as running:
        assert ask(running).status == 200
        os.kill(engine_of(family(running.process.pid)[1]), signal.SIGSTOP)
        answer = ask(running)

    assert answer.status == 200
    assert "its engine hangs: a call" in log.read_text()


@needs_vllm
def test_it_goes_with_all_its_processes_when_its_turn_is_over_and_comes_back(tmp_path: Path) -> None:
    in_turn = replace(launch("tool"), resident=False)
    other = replace(gguf(), launch=replace(gguf().launch, model="other"), roles=("brain",), resident=False)
    with launch_server(in_turn, other, log=tmp_path / "log") as running:
        models = [ask(running).headers["x-tourkit-model"]]
        processes = family(running.process.pid)[1:]
        models.append(ask(running, model="brain").headers["x-tourkit-model"])
        left = [pid for pid in processes if alive(pid)]
        models.append(ask(running).headers["x-tourkit-model"])

    assert models == ["tiny F16 vllm", "other F16 llama_cpp", "tiny F16 vllm"]
    assert len(processes) >= 2  # vLLM's server and its engine
    assert left == []


@needs_vllm
@pytest.mark.parametrize("harm", ["half a weight file", "more memory than there is"])
def test_what_it_cannot_load_is_answered_by_the_next_link(harm: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SAFETENSORS, folder)
    first = launch("tool", path=folder)
    if harm == "half a weight file":
        [weights] = folder.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        words = "bytes after the header"  # read before vLLM gets the file
    else:
        first = replace(first, launch=replace(first.launch, slots=20_000))
        words = "Available memory"
    with launch_server(replace(first, fallbacks=(gguf(),)), log=tmp_path / "log") as running:
        answer = ask(running)
        [worker] = json.loads(get(running, "/health"))["workers"].values()

    assert (answer.status, answer.headers["x-tourkit-model"]) == (200, "tiny F16 llama_cpp")
    [reason] = worker["passed_over"]
    assert words in reason

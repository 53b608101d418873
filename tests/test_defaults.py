"""What a request gets if it leaves sampling out: from the set, the model's entry, its own files, or llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
from described_index import index

from tourkit.bundle.index import Index, parse_index, render_index
from tourkit.defaults import FALLBACK, UNSTATED, RoleDefaults, Sampling, defaults_of
from tourkit.errors import LocalError, UsageError
from tourkit.generation import SamplingParams
from tourkit.headers.sampling import GENERATION_CONFIG, GGUF_METADATA, sampling_in
from tourkit.launch import ALL_LAYERS, NO_LAYERS, GpuLayers, Launch
from tourkit.manifest import manifest
from tourkit.planning import sources
from tourkit.planning.defaults import with_defaults
from tourkit.planning.plan import Placement
from tourkit.server.api.completion_fields import parse_completion
from tourkit.server.api.requests import parse_chat
from tourkit.server.gateway import status
from tourkit.server.gateway.supervisor import State

CHAT: dict[str, Any] = {"model": "brain", "messages": [{"role": "user", "content": "hi"}]}
SET, MODEL, LLAMA_CPP = "the manifest's [defaults]", "the model's [sampling]", "llama.cpp's default"
OFF = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
TEXT = """
schema = 1
name = "mine"
[roles]
brain = ["m"]
tool = ["m"]
[defaults.tool]
thinking = false
reasoning_effort = "low"
thinking_budget = 64
temperature = 1
top_k = 20
[models.m]
repo = "me/m"
license = "mit"
context = 512
sampling = { temperature = 0.6, top_p = 0.9 }
[[models.m.variants]]
format = "gguf"
quant = "F16"
repo = "me/m"
revision = "main"
files = ["m.gguf"]
"""


def written_gguf(path: Path, **values: float) -> Path:
    """Write a GGUF file that has only a header. `values`: by the end of the key `general.sampling.*`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in values.items():
        (writer.add_int32 if isinstance(value, int) else writer.add_float32)(f"general.sampling.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def folder(path: Path, content: str) -> Path:
    (path / GENERATION_CONFIG).write_text(content)
    return path


def loaded(tmp_path: Path, text: str = TEXT) -> Any:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return manifest.load(path)


def placed(path: Path, *, roles: tuple[str, ...] = ("brain", "tool"), stack: str = "llama_cpp") -> Placement:
    return Placement(roles, Launch("m", stack, str(path), 1, 64, 1))


def described(sampling: Sampling = UNSTATED, *rows: RoleDefaults) -> Index:
    """Return an index with one model, `m`, and what its entry and its set state."""
    made = index({"brain": ("m",), "tool": ("m",), "graph": ("m",)}, {"m": {"F16": 1}})
    return replace(made, models=(replace(made.models[0], sampling=sampling),), defaults=rows)


def row(placement: Placement, role: str) -> RoleDefaults:
    return defaults_of(placement.launch.defaults, role)


# --- the set and the bundle -----------------------------------------------------------------------------------------


def test_a_set_states_defaults_for_a_role_and_sampling_for_a_model(tmp_path: Path) -> None:
    mine = loaded(tmp_path)

    assert mine.defaults == (RoleDefaults("tool", False, "low", 64, Sampling(temperature=1.0, top_k=20)),)
    assert mine.models["m"].sampling == Sampling(temperature=0.6, top_p=0.9)


def test_defaults_do_not_make_a_lock_stale(tmp_path: Path) -> None:
    plain = TEXT.replace("sampling = { temperature = 0.6, top_p = 0.9 }\n", "").replace("top_k = 20\n", "")

    assert loaded(tmp_path).digest == loaded(tmp_path, plain).digest


def test_a_bundle_keeps_them_and_the_plan_of_a_manifest_has_them_too(tmp_path: Path) -> None:
    mine = loaded(tmp_path)
    made = sources.index_of(mine, SimpleNamespace(sha256="", variants=()))  # type: ignore[arg-type]
    made = replace(made, variants=tuple(replace(variant, commit="1" * 40) for variant in made.variants))
    data = render_index(made)
    raw = json.loads(data)

    assert parse_index(data, "bundle.json") == made
    assert made.defaults == mine.defaults
    assert raw["defaults"]["tool"] == {
        "thinking": False,
        "reasoning_effort": "low",
        "thinking_budget": 64,
        "temperature": 1.0,
        "top_k": 20,
    }
    assert raw["models"][0]["sampling"] == {"temperature": 0.6, "top_p": 0.9}


def test_a_bundle_without_defaults_has_no_keys_for_them() -> None:
    raw = json.loads(render_index(described()))

    assert "defaults" not in raw
    assert "sampling" not in raw["models"][0]


def test_a_bundle_with_defaults_for_a_role_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"defaults\.fast: there is no such role"):
        parse_index(render_index(described(UNSTATED, RoleDefaults("fast", thinking=True))), "bundle.json")


# --- the model's own files ------------------------------------------------------------------------------------------


def test_a_gguf_file_states_what_llama_cpps_converter_wrote(tmp_path: Path) -> None:
    path = written_gguf(tmp_path / "m.gguf", temp=0.6, top_p=0.95, top_k=20, min_p=0.01)

    assert sampling_in(path) == (GGUF_METADATA, Sampling(0.6, 0.95, 20, 0.01))
    assert sampling_in(written_gguf(tmp_path / "plain.gguf")) == (GGUF_METADATA, Sampling())


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        ({"temperature": 0.7, "top_k": 50, "eos_token_id": [1, 2]}, Sampling(temperature=0.7, top_k=50)),
        ({"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}, OFF),
        ({"top_p": 1.5, "top_k": -1, "min_p": -0.1}, Sampling(top_p=1.0, top_k=0, min_p=0.0)),
        ({"temperature": None, "do_sample": True}, Sampling()),
        ({"temperature": 0.7, "do_sample": False}, Sampling(temperature=0.0)),
    ],
)
def test_a_folder_states_what_its_generation_config_says(
    tmp_path: Path, content: dict[str, Any], stated: Sampling
) -> None:
    assert sampling_in(folder(tmp_path, json.dumps(content))) == (GENERATION_CONFIG, stated)


def test_a_folder_without_a_generation_config_and_a_missing_file_state_nothing(tmp_path: Path) -> None:
    assert sampling_in(tmp_path)[1] == sampling_in(tmp_path / "m.gguf")[1] == Sampling()


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"temperature": 5}', "temperature is 5"),
        ('{"temperature": "0.7"}', "temperature is '0.7', not a number"),
        ('{"temperature": NaN}', "temperature is nan, not a number"),
        ('{"temperature": true}', "temperature is True, not a number"),
        ('{"top_p": 0}', "top_p is 0.0, which leaves no token"),
        ('{"top_k": 1.5}', "top_k is 1.5, not a whole number"),
        ('{"top_k": 1e400}', "top_k is inf"),
        ('{"min_p": []}', "min_p is a list of 0"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_model_is_served_without_it(tmp_path: Path, content: str, key: str) -> None:
    said: list[str] = []

    made = with_defaults(placed(folder(tmp_path, content)), described(), said.append)

    with pytest.raises(LocalError, match=GENERATION_CONFIG):
        sampling_in(tmp_path)
    assert row(made, "brain").sampling == FALLBACK
    [line] = said
    assert line.startswith(f"default sampling of m: not taken from its own file: {tmp_path / GENERATION_CONFIG}: ")
    assert key in line
    assert "\n" not in line


# --- which source wins ----------------------------------------------------------------------------------------------


def test_each_setting_comes_from_the_first_source_that_states_it(tmp_path: Path) -> None:
    path = written_gguf(tmp_path / "m.gguf", temp=0.1, top_p=0.2, top_k=3)
    made = described(Sampling(temperature=0.6, top_p=0.9), RoleDefaults("tool", sampling=Sampling(temperature=0.3)))

    placement = with_defaults(placed(path), made, pytest.fail)

    tool, brain = row(placement, "tool"), row(placement, "brain")
    assert tool.sampling == Sampling(temperature=0.3, top_p=0.9, top_k=3, min_p=0.05)
    assert dict(tool.sources) == {"temperature": SET, "top_p": MODEL, "top_k": GGUF_METADATA, "min_p": LLAMA_CPP}
    assert brain.sampling == Sampling(temperature=0.6, top_p=0.9, top_k=3, min_p=0.05)
    assert row(placement, "m").sampling == brain.sampling, "a model's id has no defaults of a role"


def test_where_nothing_is_stated_they_are_llama_cpps(tmp_path: Path) -> None:
    placement = with_defaults(placed(tmp_path), described(), pytest.fail)

    assert row(placement, "brain").sampling == Sampling(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)
    assert set(dict(row(placement, "brain").sources).values()) == {LLAMA_CPP}


def test_a_worker_that_answers_for_another_knows_the_defaults_of_its_roles(tmp_path: Path) -> None:
    tool = RoleDefaults("tool", thinking=False, sampling=Sampling(top_k=7))

    placement = with_defaults(placed(tmp_path, roles=("brain",)), described(UNSTATED, tool), pytest.fail)

    assert row(placement, "tool").thinking is False
    assert row(placement, "tool").sampling.top_k == 7


def test_a_fallback_has_the_settings_of_its_own_file(tmp_path: Path) -> None:
    first, second = (written_gguf(tmp_path / f"{k}.gguf", top_k=k) for k in (5, 6))

    made = with_defaults(replace(placed(first), fallbacks=(placed(second),)), described(), pytest.fail)

    assert (row(made, "brain").sampling.top_k, row(made.fallbacks[0], "brain").sampling.top_k) == (5, 6)


def test_an_adapter_has_the_settings_of_its_base_unless_it_states_its_own(tmp_path: Path) -> None:
    made = described(Sampling(temperature=0.6, top_k=9))
    adapter = replace(made.models[0], id="a", adapts="m", sampling=Sampling(temperature=0.2))
    launch = replace(placed(tmp_path).launch, model="a")

    placement = with_defaults(Placement(("tool",), launch), replace(made, models=(*made.models, adapter)), pytest.fail)

    assert row(placement, "tool").sampling == replace(FALLBACK, temperature=0.2, top_k=9)


@pytest.mark.parametrize(
    ("roles", "layers", "min_p"),
    [(("graph",), ALL_LAYERS, 0.0), (("graph", "tool"), ALL_LAYERS, 0.1), (("graph",), NO_LAYERS, 0.1)],
)
def test_vllm_has_no_min_p_where_it_guesses_from_the_prompt(
    tmp_path: Path, roles: tuple[str, ...], layers: GpuLayers, min_p: float
) -> None:
    """vLLM would refuse every request with one."""
    made = described(UNSTATED, RoleDefaults("graph", sampling=Sampling(min_p=0.1)))

    given = placed(tmp_path, roles=roles, stack="vllm")

    placement = with_defaults(replace(given, launch=replace(given.launch, gpu_layers=layers)), made, pytest.fail)

    assert row(placement, "graph").sampling.min_p == min_p


def test_a_model_that_generates_no_text_has_none(tmp_path: Path) -> None:
    assert with_defaults(placed(tmp_path, roles=("embed",)), described(), pytest.fail).launch.defaults == ()


# --- what a request gets --------------------------------------------------------------------------------------------


def test_a_request_that_leaves_sampling_out_gets_the_defaults_of_its_role() -> None:
    rows = (RoleDefaults("brain", sampling=Sampling(temperature=0.3, top_k=7)), RoleDefaults("", sampling=OFF))

    role = parse_chat(CHAT, rows).request.params
    model = parse_chat(CHAT | {"model": "m"}, rows).request.params
    plain = parse_completion({"model": "brain", "prompt": "x"}, rows).requests[0].params

    assert role == plain == SamplingParams(temperature=0.3, top_p=0.95, top_k=7, min_p=0.05)
    assert model == SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
    assert parse_chat(CHAT).request.params == SamplingParams(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05)


def test_what_a_request_states_wins_and_null_states_nothing() -> None:
    rows = (RoleDefaults("brain", sampling=Sampling(temperature=0.3, top_k=7)),)
    stated = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}

    assert parse_chat(CHAT | stated, rows).request.params == SamplingParams(temperature=0.0)
    assert parse_chat(CHAT | dict.fromkeys(stated), rows).request.params.top_k == 7


def test_a_constraint_does_not_change_the_defaults() -> None:
    rows = (RoleDefaults("brain", sampling=Sampling(top_k=7)),)

    assert parse_chat(CHAT | {"regex": "a+"}, rows).request.params == parse_chat(CHAT, rows).request.params


def test_a_default_is_no_feature_that_the_request_asks_for() -> None:
    """The header x-tourkit-emulated names what a request asks for, and every request would have it."""
    assert parse_chat(CHAT).features == ()
    assert parse_chat(CHAT | {"min_p": 0.05, "top_k": None, "seed": 1}).features == ("seed", "min_p")


def test_the_list_of_models_says_the_defaults_and_their_sources(tmp_path: Path) -> None:
    made = described(UNSTATED, RoleDefaults("tool", sampling=Sampling(temperature=0.3)))
    placement = with_defaults(placed(tmp_path), made, pytest.fail)
    worker: Any = SimpleNamespace(answering=placement, placement=placement, state=State.READY)

    entry = status.model("tool", worker, 0)

    assert entry["sampling"] == {"temperature": 0.3, "top_p": 0.95, "top_k": 40, "min_p": 0.05}
    assert entry["sampling_from"] == {"temperature": SET} | dict.fromkeys(("top_p", "top_k", "min_p"), LLAMA_CPP)
    assert status.model("m", worker, 0)["sampling"]["temperature"] == 0.8


def test_the_list_says_nothing_of_a_model_that_generates_no_text(tmp_path: Path) -> None:
    placement = placed(tmp_path, roles=("embed",))
    worker: Any = SimpleNamespace(answering=placement, placement=placement, state=State.READY)

    assert "sampling" not in status.model("embed", worker, 0)

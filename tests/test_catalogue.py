"""The shipped data: the catalogue, the built-in sets and their locks, and the tool that writes these locks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import catalogue_page
from tourkit import data
from tourkit.cli import main
from tourkit.errors import ManifestError, UsageError
from tourkit.manifest import catalogue, languages, lock, manifest, models
from tourkit.manifest.catalogue import Wish
from tourkit.manifest.lock import LockedVariant, LockEntry, UnresolvedFile, UnresolvedVariant

SETS = ("tour-20gb", "cpu-16gb")
NEW_SETS = ("gpu-8gb", "gpu-40gb", "chinese", "code", "multilingual", "cpu-16gb-2026", "tour-20gb-2026")
SETS_2026 = ("cpu-16gb-2026", "tour-20gb-2026")
ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "locks_from_facts.py"
CATALOGUE = manifest.catalogue()
LOCKED = [name for name in manifest.builtin_sets() if lock.path_of(data.MANIFESTS / f"{name}.toml").is_file()]


# The models that participants may get, and their families in the catalogue.
FAMILIES = {
    "Llama 2": "llama-2",
    "Llama 3": "llama-3",
    "Llama 3.1": "llama-3.1",
    "Code Llama": "code-llama",
    "Mistral 7B": "mistral",
    "Mixtral 8x7B": "mixtral",
    "Qwen": "qwen",
    "Qwen3": "qwen3",
    "Qwen3, mixtures of experts": "qwen3-moe",
    "Qwen3.5, 3.6 and 3.8": "qwen3.5",
    "Qwen3.6, mixtures of experts": "qwen3.5-moe",
    "Gemma 1": "gemma",
    "Gemma 2": "gemma-2",
    "Gemma 3": "gemma-3",
    "Gemma 4": "gemma-4",
    "CodeGemma": "codegemma",
    "gpt-oss": "gpt-oss",
    "Ministral 3": "ministral-3",
    "Granite 4.0 H": "granite-4",
    "Granite 4.2": "granite-4.2",
    "LFM2.5": "lfm2.5",
    "LFM2.5, mixtures of experts": "lfm2.5-moe",
    "Nemotron 3 Nano": "nemotron-3-nano",
    "NuExtract": "nuextract",
    "Phi-2": "phi-2",
    "Phi-3": "phi-3",
    "Phi-4 mini": "phi-4-mini",
    "Yi": "yi",
    "Falcon": "falcon",
    "InternLM2": "internlm2",
    "MPT": "mpt",
    "BLOOM": "bloom",
    "GPT-NeoX": "gpt-neox",
    "OPT": "opt",
    "StableLM": "stablelm",
    "Vicuna": "vicuna",
    "Alpaca": "alpaca",
    "Koala": "koala",
    "OpenLLaMA": "openllama",
    "RedPajama": "redpajama",
    "OLMo": "olmo",
    "Llama Pro": "llama-pro",
    "Japanese Llama (ELYZA)": "elyza",
    "BioMistral": "biomistral",
    "OpenMath-Mistral": "openmath",
    "OpenAssistant Falcon": "openassistant-falcon",
    "GPT4All Falcon": "gpt4all-falcon",
    "SmolLM2": "smollm2",
    "SmolLM3": "smollm3",
    "all-MiniLM-L6-v2": "all-minilm",
    "bge-m3": "bge-m3",
    "multilingual-e5-small": "multilingual-e5",
    "Qwen3 Embedding": "qwen3-embedding",
    "EmbeddingGemma": "embeddinggemma",
    "Qwen3 Reranker": "qwen3-reranker",
    "bge-reranker-v2-m3": "bge-reranker-v2-m3",
}
EMBEDDERS = {
    "all-minilm-l6-v2",
    "bge-m3",
    "embeddinggemma-300m",
    "multilingual-e5-small",
    "qwen3-embedding-0.6b",
    "qwen3-embedding-4b",
}
RERANKERS = {"bge-reranker-v2-m3", "qwen3-reranker-0.6b"}
NO_SHAPE = {  # no source has all six numbers
    "bge-reranker-v2-m3",
    "embeddinggemma-300m",
    "granite-4.0-h-tiny",
    "granite-4.2-3b",
    "granite-4.2-8b",
    "lfm2.5-1.2b-instruct",
    "ministral-3-14b-instruct-2512",
    "qwen3-embedding-4b",
}


def locked(name: str, model: str, quant: str) -> LockEntry:
    pinned = lock.read(data.MANIFESTS / f"{name}.lock.json")
    (found,) = [v for v in pinned.variants if v.id == models.VariantId(model, quant)]
    return found


def test_the_two_default_sets_are_there_with_locks():
    assert set(SETS) <= set(LOCKED)


@pytest.mark.parametrize("name", manifest.builtin_sets())
def test_every_built_in_set_loads_under_its_own_name(name):
    assert manifest.load(name).name == name


@pytest.mark.parametrize("name", LOCKED)
def test_every_shipped_lock_agrees_with_its_manifest_and_is_rendered_canonically(name):
    wanted = manifest.load(name)
    path = lock.path_of(wanted.path)

    pinned = lock.read(path)

    lock.check_current(wanted, pinned)
    assert lock.render(pinned) == path.read_bytes()


def test_the_catalogue_holds_the_models_of_the_default_sets():
    named = {id_ for name in SETS for id_ in manifest.load(name).models}

    assert named <= CATALOGUE.keys()


def test_every_file_of_the_catalogue_is_a_model():
    assert CATALOGUE.keys() == {path.stem for path in data.MODELS.glob("*.toml")}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_that_may_be_handed_out_is_there(family):
    assert [model.id for model in CATALOGUE.values() if model.family == family] != []


def test_no_model_is_of_a_family_outside_the_list():
    """If one family had two spellings, a search for one would miss the other."""
    assert {model.family for model in CATALOGUE.values()} == set(FAMILIES.values())


def test_phi_3_has_its_graph_fine_tune():
    assert CATALOGUE["phi-3-mini-4k-instruct-graph"].roles == ("graph",)


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_a_catalogue_entry_says_what_a_person_needs_to_choose(model):
    assert model.summary
    assert "\n" not in model.summary
    assert model.family
    assert model.architecture
    assert (model.arch is None) is (model.id in NO_SHAPE)
    assert model.roles


def test_embedders_do_nothing_but_embed_and_nothing_else_embeds():
    assert {model.id for model in CATALOGUE.values() if "embed" in model.roles} == EMBEDDERS
    assert {CATALOGUE[id_].roles for id_ in EMBEDDERS} == {("embed",)}


def test_rerankers_do_nothing_but_rerank_and_nothing_else_reranks():
    assert {model.id for model in CATALOGUE.values() if "rerank" in model.roles} == RERANKERS
    assert {CATALOGUE[id_].roles for id_ in RERANKERS} == {("rerank",)}


@pytest.mark.parametrize("role", ["embed", "rerank"])
def test_embedding_and_reranking_need_no_torch(role):
    stacks = [catalogue.stacks(model) for model in CATALOGUE.values() if role in model.roles]

    assert sum("llama_cpp" in each for each in stacks) >= 2


def test_base_models_are_marked():
    assert {model.id for model in CATALOGUE.values() if model.base} == {
        "gpt-neox-20b",
        "open-llama-7b-v2",
        "opt-6.7b",
        "phi-2",
    }


@pytest.mark.parametrize("path", sorted(data.MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_catalogue_file_names_its_sources(path):
    _, found, sources = path.read_text(encoding="utf-8").partition("# Sources. ")

    assert found
    assert re.search(r"[\w.-]+/[\w.-]+|facts", sources.partition("schema =")[0])


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_no_variant_takes_pickles(model):
    taken = [pattern for variant in model.variants for pattern in variant.files]

    assert [pattern for pattern in taken if re.search(r"\.(bin|pt|pth|ckpt|pkl)$", pattern) or pattern == "*"] == []


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_a_model_without_gguf_says_so_in_its_file(model):
    text = (data.MODELS / f"{model.id}.toml").read_text(encoding="utf-8")

    assert any(variant.format == "gguf" for variant in model.variants) or "no gguf" in text.lower()


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_gguf_variants_name_one_file_exactly(model):
    """These repositories have files whose names differ only in a suffix: a pattern would take too many."""
    for variant in model.variants:
        if variant.format == "gguf":
            assert len(variant.files) == 1
            assert not re.search(r"[*?\[]", variant.files[0])


def test_each_role_of_the_tour_has_a_resolved_variant_to_fetch():
    """People without a token can prefetch the tour without `tourkit lock` first."""
    wanted = manifest.load("tour-20gb")
    resolved = {variant.model for variant in lock.read(lock.path_of(wanted.path)).resolved}

    assert [role for role, ids in wanted.roles.items() if not resolved & set(ids)] == []


def test_the_16_gb_set_is_wholly_resolved_and_leaves_room_for_the_caches():
    pinned = lock.read(data.MANIFESTS / "cpu-16gb.lock.json")

    assert pinned.resolved == pinned.variants
    assert sum(file.size for variant in pinned.resolved for file in variant.files) < 12 * 10**9


@pytest.mark.parametrize("name", NEW_SETS)
def test_each_role_of_a_set_has_a_resolved_variant_to_fetch(name):
    wanted = manifest.load(name)
    resolved = {variant.model for variant in lock.read(lock.path_of(wanted.path)).resolved}

    assert set(wanted.roles) >= {"brain", "fast", "tool", "graph"}
    assert [role for role, ids in wanted.roles.items() if not resolved & set(ids)] == []


@pytest.mark.parametrize("name", SETS_2026)
def test_a_set_of_2026_takes_ungated_models_whose_publishers_name_russian(name):
    wanted = manifest.load(name)

    assert set(wanted.roles) == set(models.ROLES)
    assert languages.russian_roles(wanted) == tuple(wanted.roles)
    assert [model.id for model in wanted.models.values() if model.gated is not False] == []
    assert [model.id for model in wanted.models.values() if not languages.speaks(model, "ru")] == []


@pytest.mark.parametrize("name", SETS_2026)
def test_no_role_of_a_set_of_2026_thinks_unless_a_request_asks_for_it(name):
    """The packers of Qwen's GGUF files differ in the default, so the set states it."""
    assert {row.role: row.thinking for row in manifest.load(name).defaults} == dict.fromkeys(models.CHAT_ROLES, False)


def test_the_multilingual_set_takes_only_models_whose_publishers_name_russian():
    wanted = manifest.load("multilingual")

    assert [model.id for model in wanted.models.values() if not languages.speaks(model, "ru")] == []


@pytest.mark.parametrize("name", SETS_2026)
def test_a_dry_run_of_a_set_of_2026_says_the_size_and_the_languages_and_needs_no_lock(name, tmp_path, capsys):
    ended = main(["prefetch", name, "--to", str(tmp_path / "out"), "--dry-run"])

    told = capsys.readouterr().out
    assert ended == 0
    assert re.search(r"^\d+\.\d GiB in \d files, \d+\.\d GiB to fetch$", told, re.MULTILINE)
    assert re.search(r"^languages: en, zh, ru, .* and \d+ more; Russian: every role$", told, re.MULTILINE)


@pytest.mark.parametrize("name", NEW_SETS)
def test_models_of_a_set_are_hinted_for_the_roles_they_fill(name):
    wanted = manifest.load(name)

    assert [
        (role, id_) for role, ids in wanted.roles.items() for id_ in ids if role not in wanted.models[id_].roles
    ] == []


@pytest.mark.parametrize("name", ["gpu-8gb", "gpu-40gb", *SETS_2026])
def test_these_sets_are_wholly_resolved(name):
    pinned = lock.read(data.MANIFESTS / f"{name}.lock.json")

    assert pinned.resolved == pinned.variants


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("gpu-8gb", 8),
        ("gpu-40gb", 40),
        ("chinese", 20),
        ("code", 20),
        ("multilingual", 20),
        ("cpu-16gb-2026", 16),
        ("tour-20gb-2026", 20),
    ],
)
def test_the_first_model_of_each_role_fits_the_memory_the_set_is_for(name, fits):
    wanted = manifest.load(name)
    firsts = {ids[0] for ids in wanted.roles.values()}

    needs = {id_: smallest_memory(wanted.models[id_]) for id_ in firsts}

    assert sum(needs.values()) <= fits * 2**30, needs


def smallest_memory(model: models.Model) -> int:
    small = catalogue.smallest(model)
    assert small is not None
    return catalogue.memory(model, small.size)


@pytest.mark.parametrize("name", ["chinese", "code", "multilingual"])
def test_prefetch_of_a_set_that_is_not_wholly_pinned_says_to_lock_it(name, tmp_path, capsys):
    ended = main(["prefetch", name, "--to", str(tmp_path / "out"), "--dry-run"])

    assert ended == 2
    assert "run `tourkit lock" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prefetch_of_a_set_without_a_lock_says_to_make_one(tmp_path, capsys):
    text = (data.MANIFESTS / "gpu-8gb.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace('name = "gpu-8gb"', 'name = "mine"'), encoding="utf-8")

    ended = main(["prefetch", str(tmp_path / "mine.toml"), "--to", str(tmp_path / "out"), "--dry-run"])

    assert ended == 2
    assert "run `tourkit lock" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "quant", "reason"),
    [
        ("gemma-2-9b-it", "BF16", "hashes of an earlier upload"),
        ("gemma-2-9b-it", "Q8_0", "hash not proved at this commit"),
        ("mistral-7b-instruct-v0.3", "bnb-4bit", "list of files not known"),
        ("llama-3.1-8b-instruct", "AWQ-INT4", "hash read on a duplicate"),
        ("phi-3-mini-4k-instruct-graph", "BF16", "no commit known"),
        ("phi-3-mini-4k-instruct", "BF16", "list of files not known"),
    ],
)
def test_what_is_not_proved_stays_unresolved(model, quant, reason):
    assert isinstance(locked("tour-20gb", model, quant), UnresolvedVariant), reason


# tourkit models


def found(**wish: object) -> set[str]:
    return {model.id for model in catalogue.search(CATALOGUE.values(), Wish(**wish)).models}


def test_a_wish_for_nothing_gives_everything():
    assert found() == CATALOGUE.keys()


def test_a_licence_is_found_by_a_part_of_its_id_in_any_case():
    assert {CATALOGUE[id_].license for id_ in found(license="LLAMA")} == {"llama2", "llama3", "llama3.1"}
    assert {CATALOGUE[id_].license for id_ in found(license="mit")} == {"mit"}


def test_every_licence_of_the_catalogue_is_in_the_table_with_its_reason():
    assert {model.license for model in CATALOGUE.values()} <= catalogue.LICENSES.keys()
    assert all(said.reason for said in catalogue.LICENSES.values())
    assert {said.use for said in catalogue.LICENSES.values()} == {"yes", "conditional", "no", "unknown"}


@pytest.mark.parametrize(
    ("license_", "use"),
    [
        ("apache-2.0", "yes"),
        ("mit", "yes"),
        ("llama3.1", "conditional"),
        ("gemma", "conditional"),
        ("other (non-commercial)", "no"),
        ("unknown", "unknown"),
        ("Apache-2.0 with something else", "unknown"),
        ("wtfpl", "unknown"),
    ],
)
def test_only_licences_of_the_table_are_allowed(license_, use):
    assert catalogue.terms(license_).use == use


def test_commercial_keeps_what_is_allowed_or_conditional_and_nothing_else():
    wanted = found(commercial=True)

    assert {catalogue.terms(CATALOGUE[id_].license).use for id_ in wanted} == {"yes", "conditional"}
    assert {"opt-6.7b", "koala-13b", "alpaca-7b-reproduced"} <= CATALOGUE.keys() - wanted


def test_role_keeps_the_models_with_that_hint():
    assert found(role="embed") == EMBEDDERS
    assert found(role="rerank") == RERANKERS
    assert found(role="graph") == {id_ for id_, model in CATALOGUE.items() if "graph" in model.roles}


def test_language_keeps_models_whose_publisher_names_it_and_lists_those_that_may_speak_it():
    japanese = catalogue.search(CATALOGUE.values(), Wish(language="JA"))

    ids = {model.id for model in japanese.models}
    assert {"elyza-japanese-llama-2-7b-instruct", "qwen2.5-7b-instruct", "qwen3.5-4b"} <= ids
    assert "mixtral-8x7b-instruct-v0.1" not in ids  # it lists five languages, and this one is not among them
    unstated = {id_ for id_, m in CATALOGUE.items() if not m.languages or "multilingual" in m.languages} - ids
    assert "bge-m3" in unstated  # its publisher names Russian, and claims a hundred more without naming them
    assert set(japanese.unstated["language"]) == unstated


def test_code_is_a_language_that_many_languages_do_not_include():
    assert found(language="code") == {id_ for id_, model in CATALOGUE.items() if "code" in model.languages}


def test_memory_keeps_models_whose_smallest_variant_fits_and_names_those_without_a_size():
    eight = catalogue.search(CATALOGUE.values(), Wish(memory=8 * 2**30))

    assert all(smallest_memory(model) <= 8 * 2**30 for model in eight.models)
    assert {"gpt-neox-20b", "mixtral-8x7b-instruct-v0.1", "yi-34b-chat"} <= CATALOGUE.keys() - {
        model.id for model in eight.models
    }
    assert set(eight.unstated["size"]) == {id_ for id_, m in CATALOGUE.items() if catalogue.smallest(m) is None}


def test_more_memory_never_loses_a_model():
    assert found(memory=2**30) < found(memory=4 * 2**30) < found(memory=40 * 2**30)


def test_stack_keeps_models_with_a_format_it_loads_and_memory_counts_those_variants_only():
    assert found(stack="onnx") == {"phi-3-mini-4k-instruct"}
    assert "llama-3.1-8b-instruct" in found(memory=4 * 2**30, stack="llama_cpp")
    assert "llama-3.1-8b-instruct" not in found(memory=4 * 2**30, stack="vllm")


def test_wishes_add_up():
    both = found(role="brain", commercial=True, language="zh", memory=8 * 2**30, stack="llama_cpp")

    assert both == (
        found(role="brain") & found(commercial=True) & found(language="zh") & found(memory=8 * 2**30, stack="llama_cpp")
    )
    assert "qwen2.5-7b-instruct" in both


@pytest.mark.parametrize("wish", [Wish(role="chef"), Wish(stack="tensorflow")])
def test_a_role_or_a_stack_that_there_is_not_is_refused_with_those_there_are(wish):
    with pytest.raises(UsageError, match=r"brain|llama_cpp"):
        catalogue.search([], wish)


SHAPE = f"""
schema = 1
name = "one"
[roles]
tool = ["m"]
[models.m]
repo = "me/m"
license = "mit"
context = 100000
arch = {{ n_layers = 10, n_heads = 8, n_kv_heads = 2, head_dim = 64, hidden_size = 512, vocab_size = 1000 }}
[[models.m.variants]]
format = "gguf"
quant = "Q4"
repo = "me/m-GGUF"
revision = "{"0" * 40}"
files = ["m.gguf"]
size = 1000000
"""


def shape(tmp_path: Path, text: str) -> models.Manifest:
    (tmp_path / "one.toml").write_text(text, encoding="utf-8")
    return manifest.load(tmp_path / "one.toml")


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        ("vocab_size = 1000", "vocab_size = 1000, attention_layers = 3", 3 * 4096),
        ("", "", 10 * 4096),
        ("context = 100000", "context = 1000", 10 * 1000),
        ("vocab_size = 1000", "vocab_size = 1000, sliding_window = 512", 10 * 512),
        ("vocab_size = 1000", "vocab_size = 1000, sliding_window = 512, sliding_layers = 5", 5 * 4096 + 5 * 512),
        ("vocab_size = 1000", "vocab_size = 1000, sliding_window = 8192", 10 * 4096),
        ("[models.m]", '[models.m]\nroles = ["embed"]', 0),
    ],
    ids=[
        "a hybrid model",
        "4096 tokens",
        "a short context",
        "windows",
        "windows in half of the layers",
        "a wide window",
        "embedder",
    ],
)
def test_memory_is_the_weights_and_a_16_bit_cache(tmp_path, before, after, cells):
    model = shape(tmp_path, SHAPE.replace(before, after, 1) if before else SHAPE).models["m"]

    assert catalogue.memory(model, model.variants[0].size) == 1_000_000 + cells * 2 * 2 * 64 * 2


def test_memory_counts_the_states_of_a_hybrid_model_in_32_bits(tmp_path):
    hybrid = SHAPE.replace("vocab_size = 1000", "vocab_size = 1000, attention_layers = 3, state_values = 70")
    model = shape(tmp_path, hybrid).models["m"]

    assert catalogue.memory(model, model.variants[0].size) == 1_000_000 + 3 * 4096 * 2 * 2 * 64 * 2 + 70 * 4


def test_what_people_choose_by_does_not_make_a_lock_stale(tmp_path):
    plain = shape(tmp_path, SHAPE).digest
    told = SHAPE.replace("size = 1000000", "size = 2000000").replace(
        "context =", 'roles = ["tool"]\nlanguages = ["en"]\narchitecture = "llama"\nsummary = "s"\ncontext ='
    )

    assert shape(tmp_path, told).digest == plain


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("context", 'roles = ["chef"]\ncontext', "roles"),
        ("context", 'languages = ["En glish"]\ncontext', "languages"),
        ("size = 1000000", "size = 0", "size"),
        ("vocab_size = 1000", "vocab_size = 1000, sliding_window = 0", "sliding_window"),
    ],
    ids=["role", "language", "size", "window"],
)
def test_wrong_hints_are_refused(tmp_path, before, after, key):
    with pytest.raises(ManifestError, match=key):
        shape(tmp_path, SHAPE.replace(before, after))


def test_the_command_prints_a_table_with_the_reason_of_each_licence(capsys):
    ended = main(["models", "--commercial", "--role", "graph"])

    lines = capsys.readouterr().out.splitlines()
    assert ended == 0
    assert lines[0].split()[:3] == ["model", "licence", "commercial"]
    assert {line.split()[0] for line in lines if line and line[0] != " "} >= {"qwen2.5-7b-instruct", "apache-2.0:"}
    assert "apache-2.0: commercial use: yes: permissive: keep the licence text and the notices" in lines
    assert not any("phi-3-mini-4k-instruct-graph" in line for line in lines)  # its licence is not known


def test_the_command_says_that_a_custom_licence_is_conditional(capsys):
    main(["models", "--license", "gemma"])

    assert "gemma: commercial use: conditional: Gemma Terms of Use" in capsys.readouterr().out


def test_the_command_names_what_it_left_out_for_want_of_facts(capsys):
    main(["models", "--language", "ru", "--memory", "8GiB", "--json"])

    told = capsys.readouterr()
    assert "left out, no language is stated: " in told.err
    assert "biomistral-7b" not in told.err  # its languages are stated, and this one is not among them
    assert "qwen2.5-7b-instruct" in {row["id"] for row in json.loads(told.out)}


def test_the_command_for_scripts_gives_everything_a_filter_goes_by(capsys):
    main(["models", "--stack", "llama_cpp", "--role", "embed", "--json"])

    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == EMBEDDERS - {"multilingual-e5-small"}
    wanted = {"license", "commercial", "commercial_reason", "languages", "roles", "stacks", "memory", "variants"}
    assert wanted <= rows["bge-m3"].keys()
    assert rows["bge-m3"]["commercial"] == "yes"


def test_nothing_found_ends_with_exit_code_1_for_people_and_an_empty_list_for_scripts(capsys):
    people = main(["models", "--role", "embed", "--stack", "onnx"])
    told = capsys.readouterr()
    scripts = main(["models", "--role", "embed", "--stack", "onnx", "--json"])

    assert (people, scripts) == (1, 0)
    assert "use fewer filters" in told.err
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--role", "chef"], "brain"), (["--memory", "lots"], "20GiB"), (["--stack", "x"], "llama_cpp")],
)
def test_a_wish_that_cannot_be_read_is_a_wrong_use(arguments, says, capsys):
    assert main(["models", *arguments]) == 2
    assert says in capsys.readouterr().err


# docs/catalogue.md


def test_the_page_of_the_catalogue_is_what_the_files_say():
    """If this fails, run `make docs`."""
    assert (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8") == catalogue_page.render()


# docs/manifest.md

PAGE = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")


def keys(schema: object) -> set[str]:
    """Yield every key that a schema allows in a file."""
    if isinstance(schema, list):
        return {key for item in schema for key in keys(item)}
    if not isinstance(schema, dict):
        return set()
    own = schema["properties"].keys() if isinstance(schema.get("properties"), dict) else set()
    return {*own, *(key for item in schema.values() for key in keys(item))}


@pytest.mark.parametrize("name", ["manifest", "model", "lock"])
def test_the_page_explains_every_key(name):
    schema = json.loads((Path(manifest.__file__).parent / "schemas" / f"{name}.schema.json").read_bytes())

    assert [key for key in sorted(keys(schema)) if not re.search(rf"`([\w.\[\]]*\.)?{key}[`.]", PAGE)] == []


def test_the_pages_example_is_a_manifest(tmp_path):
    example, *_ = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "example.toml").write_text(example, encoding="utf-8")

    assert list(manifest.load(tmp_path / "example.toml").models) == [
        "llama-3.1-8b-instruct",
        "gemma-2-9b-it",
        "my-model",
        "phi-3-mini-4k-instruct",
    ]


# tools/locks_from_facts.py

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA = "b" * 64
SET = f"""
schema = 1
name = "mini"
[roles]
tool = ["m"]
[models.m]
repo = "me/m"
license = "mit"
context = 8
[[models.m.variants]]
format = "gguf"
quant = "Q4"
repo = "me/m-GGUF"
revision = "{COMMIT}"
files = ["m-q4.gguf"]
[[models.m.variants]]
format = "gguf"
quant = "Q8"
repo = "me/m-GGUF"
revision = "{COMMIT}"
files = ["m-q8.gguf"]
[[models.m.variants]]
format = "safetensors"
quant = "BF16"
repo = "me/m"
revision = "{COMMIT}"
files = ["model.safetensors", "*.json"]
[[models.m.variants]]
format = "safetensors"
quant = "FP8"
repo = "me/m-FP8"
revision = "main"
files = ["*.safetensors"]
"""


def fact(path: str, size: int | None, sha256: str | None, **more: str) -> dict:
    return {"path": path, "size": size, "sha256": sha256, **more}


def row(repo: str, revision: str | None, *files: dict, **more: object) -> dict:
    return {"repo_id": repo, "revision": revision, "files": list(files), **more}


@pytest.fixture
def locks_from_facts(tmp_path):
    """Run the tool on facts about the mini set, and return the lock that it wrote, by quant."""

    def run(*rows: dict) -> dict[str, LockEntry]:
        (tmp_path / "facts.json").write_text(json.dumps(rows), encoding="utf-8")
        (tmp_path / "mini.toml").write_text(SET, encoding="utf-8")
        command = [sys.executable, str(TOOL), str(tmp_path / "facts.json"), str(tmp_path / "mini.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {v.quant: v for v in lock.read(tmp_path / "mini.lock.json").variants}

    return run


@pytest.mark.starts
def test_proved_files_at_the_manifests_commit_are_locked(locks_from_facts):
    gguf = row("me/m-GGUF", COMMIT, fact("m-q4.gguf", 4, SHA), fact("other.gguf", 9, SHA))

    made = locks_from_facts(gguf)

    source = models.Source("me/m-GGUF", COMMIT, "m-q4.gguf")
    assert isinstance(made["Q4"], LockedVariant)
    assert made["Q4"].commit == COMMIT
    assert made["Q4"].files == (models.PinnedFile("models/m/Q4/m-q4.gguf", 4, SHA, source),)


@pytest.mark.starts
def test_a_hash_read_elsewhere_is_left_open_but_its_size_is_kept(locks_from_facts):
    gguf = row(
        "me/m-GGUF",
        COMMIT,
        fact("m-q4.gguf", 4, SHA, sha256_source="a duplicate"),
        fact("m-q8.gguf", 8, SHA),
        field_sources={"files[1].sha256": "a duplicate"},
    )

    made = locks_from_facts(gguf)

    assert isinstance(made["Q4"], UnresolvedVariant)
    assert made["Q4"].files == (UnresolvedFile("m-q4.gguf", 4, None),)
    assert made["Q8"].files == (UnresolvedFile("m-q8.gguf", 8, None),)


@pytest.mark.starts
def test_facts_of_another_commit_prove_nothing(locks_from_facts):
    made = locks_from_facts(row("me/m-GGUF", "f" * 40, fact("m-q4.gguf", 4, SHA)))

    assert (made["Q4"].commit, made["Q4"].files, made["Q4"].complete) == (None, (), False)


@pytest.mark.starts
def test_a_variant_with_a_pattern_is_never_complete(locks_from_facts):
    made = locks_from_facts(row("me/m", COMMIT, fact("model.safetensors", 4, SHA), fact("config.json", 2, SHA)))

    assert len(made["BF16"].files) == 2
    assert not made["BF16"].complete
    assert isinstance(made["BF16"], UnresolvedVariant)


@pytest.mark.starts
def test_a_branch_is_not_pinned_without_the_hub(locks_from_facts):
    made = locks_from_facts(row("me/m-FP8", None, fact("model.safetensors", 4, SHA)))

    assert made["FP8"].commit is None
    assert made["FP8"].files == ()


@pytest.mark.starts
def test_a_bad_manifest_ends_the_tool_with_its_message(tmp_path):
    (tmp_path / "facts.json").write_text("[]", encoding="utf-8")
    command = [sys.executable, str(TOOL), str(tmp_path / "facts.json"), str(tmp_path / "absent.toml")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "no such manifest" in done.stderr
    assert "Traceback" not in done.stderr

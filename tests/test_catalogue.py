"""What tourkit ships: the catalogue, the built-in sets and their locks; and the tool that writes those locks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tourkit import data, lock, manifest

SETS = ("tour-20gb", "cpu-16gb")
TOOL = Path(__file__).resolve().parent.parent / "tools" / "locks_from_facts.py"
CATALOGUE = manifest.catalogue()
LOCKED = [name for name in manifest.builtin_sets() if lock.path_of(data.MANIFESTS / f"{name}.toml").is_file()]


def locked(name: str, model: str, quant: str) -> lock.LockedVariant:
    pinned = lock.read(data.MANIFESTS / f"{name}.lock.json")
    (found,) = [v for v in pinned.variants if (v.model, v.quant) == (model, quant)]
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


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_a_catalogue_entry_says_what_a_person_needs_to_choose(model):
    assert model.summary
    assert model.family
    assert model.arch is not None
    assert model.params is not None
    assert model.gated is not None
    assert {variant.format for variant in model.variants} >= {"gguf"}


@pytest.mark.parametrize("path", sorted(data.MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_catalogue_file_names_its_sources(path):
    assert "# Sources." in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_gguf_variants_name_one_file_exactly(model):
    """These repositories hold files whose names only differ in a suffix: a pattern would take too much."""
    for variant in model.variants:
        if variant.format == "gguf":
            assert len(variant.files) == 1
            assert not re.search(r"[*?\[]", variant.files[0])


def test_each_role_of_the_tour_has_a_resolved_variant_to_fetch():
    """Whoever has no token and no time can prefetch the tour without locking first."""
    wanted = manifest.load("tour-20gb")
    resolved = {v.model for v in lock.read(lock.path_of(wanted.path)).variants if v.resolved}

    assert [role for role, ids in wanted.roles.items() if not resolved & set(ids)] == []


def test_the_16_gb_set_is_wholly_resolved_and_leaves_room_for_the_caches():
    pinned = lock.read(data.MANIFESTS / "cpu-16gb.lock.json")

    assert all(variant.resolved for variant in pinned.variants)
    assert sum(file.size for variant in pinned.variants for file in variant.files) < 12 * 10**9


@pytest.mark.parametrize(
    ("model", "quant", "reason"),
    [
        ("gemma-2-9b-it", "BF16", "hashes of an earlier upload"),
        ("gemma-2-9b-it", "Q8_0", "hash not proved at this commit"),
        ("mistral-7b-instruct-v0.3", "Q5_K_M", "hash read on a duplicate"),
        ("llama-3.1-8b-instruct", "AWQ-INT4", "hash read on a duplicate"),
        ("phi-3-mini-4k-instruct-graph", "BF16", "no commit known"),
        ("phi-3-mini-4k-instruct", "BF16", "list of files not known"),
    ],
)
def test_what_is_not_proved_stays_unresolved(model, quant, reason):
    assert not locked("tour-20gb", model, quant).resolved, reason


# docs/manifest.md

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "manifest.md").read_text(encoding="utf-8")


def keys(schema: object) -> set[str]:
    """Every key that a schema lets a file have."""
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
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
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
    """Run the tool on facts about the mini set and give the lock it wrote, by quant."""

    def run(*rows: dict) -> dict[str, lock.LockedVariant]:
        (tmp_path / "facts.json").write_text(json.dumps(rows), encoding="utf-8")
        (tmp_path / "mini.toml").write_text(SET, encoding="utf-8")
        command = [sys.executable, str(TOOL), str(tmp_path / "facts.json"), str(tmp_path / "mini.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return {v.quant: v for v in lock.read(tmp_path / "mini.lock.json").variants}

    return run


def test_proved_files_at_the_manifests_commit_are_locked(locks_from_facts):
    gguf = row("me/m-GGUF", COMMIT, fact("m-q4.gguf", 4, SHA), fact("other.gguf", 9, SHA))

    made = locks_from_facts(gguf)

    assert made["Q4"].resolved
    assert made["Q4"].commit == COMMIT
    assert made["Q4"].files == (lock.LockedFile("m-q4.gguf", 4, SHA),)


def test_a_hash_read_elsewhere_is_left_open_but_its_size_is_kept(locks_from_facts):
    gguf = row(
        "me/m-GGUF",
        COMMIT,
        fact("m-q4.gguf", 4, SHA, sha256_source="a duplicate"),
        fact("m-q8.gguf", 8, SHA),
        field_sources={"files[1].sha256": "a duplicate"},
    )

    made = locks_from_facts(gguf)

    assert made["Q4"].files == (lock.LockedFile("m-q4.gguf", 4, None),)
    assert made["Q8"].files == (lock.LockedFile("m-q8.gguf", 8, None),)
    assert not made["Q4"].resolved


def test_facts_of_another_commit_prove_nothing(locks_from_facts):
    made = locks_from_facts(row("me/m-GGUF", "f" * 40, fact("m-q4.gguf", 4, SHA)))

    assert (made["Q4"].commit, made["Q4"].files, made["Q4"].complete) == (None, (), False)


def test_a_variant_with_a_pattern_is_never_complete(locks_from_facts):
    made = locks_from_facts(row("me/m", COMMIT, fact("model.safetensors", 4, SHA), fact("config.json", 2, SHA)))

    assert len(made["BF16"].files) == 2
    assert not made["BF16"].complete
    assert not made["BF16"].resolved


def test_a_branch_is_not_pinned_without_the_hub(locks_from_facts):
    made = locks_from_facts(row("me/m-FP8", None, fact("model.safetensors", 4, SHA)))

    assert made["FP8"].commit is None
    assert made["FP8"].files == ()


def test_a_bad_manifest_ends_the_tool_with_its_message(tmp_path):
    (tmp_path / "facts.json").write_text("[]", encoding="utf-8")
    command = [sys.executable, str(TOOL), str(tmp_path / "facts.json"), str(tmp_path / "absent.toml")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "no such manifest" in done.stderr
    assert "Traceback" not in done.stderr

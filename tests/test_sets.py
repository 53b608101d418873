"""`tourkit sets` says what a set offers and needs; every figure is computed from manifest, lock and planner."""

import json
from dataclasses import replace

import pytest

from tourkit.cli import main
from tourkit.hardware.machine import Hardware, InstalledStack
from tourkit.manifest import lock as locks
from tourkit.manifest import manifest as manifests
from tourkit.manifest.languages import text
from tourkit.manifest.lock import UnresolvedVariant
from tourkit.manifest.models import ROLES
from tourkit.planning import planner, sources
from tourkit.planning.sets import SIZES, SetFacts, facts_of
from tourkit.stacks import STACKS
from tourkit.units import GIB

SETS = manifests.builtin_sets()


def facts(name: str) -> SetFacts:
    manifest = manifests.load(name)
    return facts_of(manifest, locks.read(locks.path_of(manifest.path)))


@pytest.mark.parametrize("name", ["cpu-16gb", "cpu-16gb-2026", "gpu-40gb", "gpu-8gb", "tiny", "tour-20gb-2026"])
def test_the_size_of_a_pinned_set_is_what_prefetch_would_fetch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for on in facts(name).stacks:
        assert main(["prefetch", name, "--to", "nowhere", "--stack", on.stack, "--dry-run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["total_bytes"] == on.size
        assert (on.exact, on.unknown) == (True, ())


def test_a_size_that_the_lock_does_not_have_is_the_stated_one_or_unknown() -> None:
    [on] = facts("chinese").stacks
    manifest = manifests.load("chinese")
    lock = locks.read(locks.path_of(manifest.path))
    unresolved = {v.id for v in lock.variants if isinstance(v, UnresolvedVariant)}

    assert not on.exact
    assert set(on.unknown) == {str(id_) for id_ in unresolved if manifest.variants[id_].size is None}


def test_a_stack_is_listed_if_a_variant_of_the_set_is_for_it() -> None:
    assert [on.stack for on in facts("tour-20gb").stacks] == list(STACKS)
    assert [on.stack for on in facts("gpu-8gb").stacks] == ["llama_cpp"]


@pytest.mark.parametrize("name", SETS)
def test_the_plan_fills_every_role_on_the_machine_that_is_named_and_not_on_the_next_smaller(name: str) -> None:
    manifest = manifests.load(name)
    index = sources.index_of(manifest, locks.read(locks.path_of(manifest.path)))
    shapes = sources.shapes_of_manifest(manifest)
    on = facts(name).stacks[0]
    roles = tuple(role for role in manifest.roles if role not in on.unfilled)
    need = on.ram
    assert need is not None
    assert need.in_turn is not None

    def unfilled(ram: int) -> bool:
        hardware = Hardware(8, ram, stacks=(InstalledStack(on.stack),))
        try:
            planner.plan(index, hardware, roles=roles, shapes=shapes)
        except planner.NotSo:
            return True
        return False

    assert not unfilled(need.in_turn)
    smaller = [size for size in SIZES if size < need.in_turn]
    assert not smaller or unfilled(smaller[-1])
    assert need.at_once is None or need.at_once >= need.in_turn


def test_a_gpu_holds_all_layers_of_what_it_needs_and_a_stack_without_gpu_needs_none() -> None:
    llama, *_, onnx = facts("tour-20gb").stacks
    manifest = manifests.load("tour-20gb")
    smallest = min(
        variant.size or 0
        for id_ in manifest.roles["brain"]
        for variant in manifest.models[id_].variants
        if variant.format == "gguf"
    )

    assert llama.vram is not None
    assert llama.vram.in_turn is not None
    assert llama.vram.in_turn > smallest
    assert onnx.vram is None


def test_every_stack_that_uses_gpus_has_a_need_of_gpu_memory() -> None:
    needs = {on.stack: on.vram for on in facts("tiny").stacks if STACKS[on.stack].uses_gpu}

    assert {"llama_cpp", "vllm"} <= needs.keys()
    assert all(need is not None and need.at_once is not None for need in needs.values())


def test_roles_that_no_pinned_variant_fills_are_named_and_left_out() -> None:
    manifest = manifests.load("chinese")
    lock = locks.read(locks.path_of(manifest.path))
    pinned = tuple(variant for variant in lock.variants if variant.model != "bge-m3")

    [on] = facts_of(manifest, replace(lock, variants=pinned)).stacks

    assert on.unfilled == ("embed",)
    assert on.ram is not None


def test_without_a_lock_stated_sizes_are_counted_and_no_machine_is_named() -> None:
    [on] = facts_of(manifests.load("gpu-8gb"), None).stacks

    assert on.size > 10 * GIB
    assert not on.exact
    assert (on.ram, on.vram) == (None, None)


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("chinese", {"zh", "en"}, {"code"}),
        ("code", {"code", "en"}, set()),
        ("cpu-16gb", {"en"}, {"de", "ru"}),
        ("cpu-16gb-2026", {"en", "ru", "zh", "kk"}, set()),
        ("multilingual", {"en", "ru"}, set()),
    ],
)
def test_languages_are_those_for_which_brain_and_fast_have_a_model(name: str, has: set, has_not: set) -> None:
    languages = set(facts(name).languages)

    assert has <= languages
    assert not has_not & languages


@pytest.mark.parametrize(("name", "ram"), [("cpu-16gb-2026", 16 * GIB), ("tour-20gb-2026", 32 * GIB)])
def test_a_set_of_2026_fits_its_machine_with_all_models_loaded_at_once(name: str, ram: int) -> None:
    [on] = facts(name).stacks

    assert on.exact
    assert on.unfilled == ()
    assert on.ram is not None
    assert on.ram.at_once is not None
    assert on.ram.at_once <= ram
    assert on.vram is not None
    assert on.vram.at_once is not None
    assert on.vram.at_once <= 20 * GIB


@pytest.mark.parametrize(
    ("name", "roles"),
    [("cpu-16gb", ()), ("code", ("brain", "tool", "graph")), ("cpu-16gb-2026", ROLES), ("tour-20gb-2026", ROLES)],
)
def test_russian_is_listed_for_each_role_whose_first_model_has_it(name: str, roles: tuple[str, ...]) -> None:
    assert facts(name).russian == roles


@pytest.mark.parametrize(
    ("languages", "told"),
    [
        ((), "not stated"),
        (("en", "ru"), "en, ru"),
        (("multilingual",), "many, none named"),
        (("ru", "multilingual"), "ru and more"),
        (tuple("abcdefghijklmn"), "a, b, c, d, e, f, g, h, i, j, k, l and 2 more"),
    ],
)
def test_people_read_a_short_list_of_languages(languages: tuple[str, ...], told: str) -> None:
    assert text(languages) == told


def test_the_command_lists_every_set_for_people_and_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sets"]) == 0
    people = capsys.readouterr().out
    assert main(["sets", "--json"]) == 0
    scripts = json.loads(capsys.readouterr().out)

    assert [each["name"] for each in scripts] == SETS
    for each in scripts:
        assert f"\n{each['name']} " in people
        assert f"    {each['summary']}\n" in people
    tiny = next(each for each in scripts if each["name"] == "tiny")
    assert tiny["stacks"][0]["ram"] == {"in_turn": 2 * GIB, "at_once": 2 * GIB}

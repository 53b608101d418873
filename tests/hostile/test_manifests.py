"""Manifests, locks and indexes as a stranger may write them: read in time linear to their size, or one line."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource

from hostile.files import MANIFEST, mutations, read, refusal
from hostile.processes import with_peak
from tourkit.bundle.index import BundleModel, BundleVariant, Index, parse_index, render_index, variant_files
from tourkit.errors import ManifestError
from tourkit.manifest import lock, manifest
from tourkit.manifest.acceptance import check_of
from tourkit.manifest.models import PinnedFile, Source, VariantId
from tourkit.manifest.validation import schema_problems

MIB = 1 << 20
SCHEMAS = Path(manifest.__file__).parent / "schemas"
SHA256, COMMIT = "5" * 64, "6" * 40


@pytest.mark.parametrize("kind", ["manifest", "lock", "index"])
def test_500_changed_files_give_an_answer_or_one_line(kind: str, tmp_path: Path) -> None:
    said = [refusal(kind, content, tmp_path) for content in mutations(kind, 20, 500)]

    assert sum(map(bool, said)) > 100
    assert all("\n" not in each and len(each) < 10_000 for each in said)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    """Notepad writes one."""
    (tmp_path / "set.toml").write_text(MANIFEST, encoding="utf-8-sig")
    made = lock.new("set", SHA256, ())
    (tmp_path / "set.lock.json").write_bytes(b"\xef\xbb\xbf" + lock.render(made))

    assert manifest.load(tmp_path / "set.toml").name == "set"
    assert lock.read(tmp_path / "set.lock.json") == made


def roles(*ids: str) -> str:
    return f'schema = 1\nname = "set"\n[roles]\ntool = {json.dumps(ids)}\n'


def model(**changes: str) -> str:
    """Return MANIFEST with another value for a key."""
    lines = [line for line in MANIFEST.splitlines() if line.partition(" = ")[0] not in changes]
    at = lines.index("[models.small]") + 1
    return "\n".join([*lines[:at], *(f"{key} = {value}" for key, value in changes.items()), *lines[at:]])


def asset(number: int) -> str:
    return f'[[assets]]\npath = "{number}/x"\nurl = "http://host/x"\nenv = "A_B"\n'


MANIFESTS = {  # by case: the file, and what the message says
    "2 billion layers": (
        model(arch="{n_layers=2000000000,n_heads=1,n_kv_heads=1,head_dim=1,hidden_size=1,vocab_size=1}"),
        "models.small.arch.n_layers: 2000000000 is refused",
    ),
    "a number of 5,000 digits": (model(context="9" * 5000), "too long or too deep"),
    "a number of 5,000 hex digits": (model(context="0x" + "f" * 5000), "more than 60 digits"),
    "parameters beyond a float": (model(params="1e308"), "models.small.params: 1e+308 is refused"),
    "not a number": (model(context="nan"), "models.small.context: nan is refused"),
    "900 brackets": (model(context="[" * 900 + "]" * 900), "too deep"),
    "20,000 brackets": (model(context="[" * 20_000 + "]" * 20_000), "too deep"),
    "a key of 100 parts": (f"{'a.' * 100}a = 1\n{MANIFEST}", "nested more than 64 levels deep"),
    "a key of 500,000 parts": (f"{'a.' * 500_000}a = 1\n{MANIFEST}", "set.toml:1: too many dotted keys"),
    "50,000 unknown keys": (roles("m") + "".join(f"k{number} = 1\n" for number in range(50_000)), "make it smaller"),
    "50,000 unknown models": (roles(*map(str, range(50_000))), "unknown model '0'"),
    "a model named twice among 40,000": (roles(*map(str, range(40_000)), "7"), "'7' is named twice"),
    "a list of tables as a role": (
        roles().replace("[]", f"[{','.join(f'{{a={number}}}' for number in range(40_000))}]"),
        "make it smaller",
    ),
    "5,000 assets for one variable": (MANIFEST + "".join(map(asset, range(5000))), "has another value in assets["),
    "an id of a million letters": (roles("a" * 1_000_000), "unknown model"),
    "5 MB of comments": ("#" * 5_000_000, "more than 4194304 bytes"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_hostile_manifest_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, says = MANIFESTS[case]

    said = refusal("manifest", content.encode(), tmp_path)

    assert said.startswith(f"{tmp_path / 'set.toml'}:")
    assert says in said
    assert "\n" not in said


def test_at_most_a_hundred_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        read("manifest", roles(*map(str, range(1000))).encode(), tmp_path)

    assert len(error.value.details) == 100


def large_index(files: int, variants: int = 1) -> Index:
    """Return an index of `files` files, as many for each of its variants."""
    names = [f"m{number}" for number in range(variants)]
    paths = [f"models/{names[number % variants]}/Q/{number:06}.gguf" for number in range(files)]
    return Index(
        name="large",
        manifest_sha256="",
        lock_sha256="",
        roles={"tool": (names[0],)},
        models=tuple(BundleModel(name, "o/r", "mit", 10, None, None) for name in names),
        variants=tuple(BundleVariant(name, "Q", "gguf", "o/r", "main", COMMIT) for name in names),
        files=tuple(PinnedFile(path, 1, SHA256, Source("o/r", COMMIT, path)) for path in paths),
    )


def test_an_index_of_many_files_is_read_without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonschema takes a quarter of a minute for 100,000 files."""
    index = large_index(5000)
    monkeypatch.setattr(jsonschema, "Draft202012Validator", None)

    assert parse_index(render_index(index), "bundle.json") == index


def test_one_wrong_file_among_many_is_named_by_its_place() -> None:
    files = json.loads(render_index(large_index(5000)))
    files["files"][1234]["size"] = -1

    assert schema_problems("bundle", files) == ["files[1234].size: -1 is refused: size in bytes"]


def test_files_are_those_of_the_variant_alone() -> None:
    """The folder of `a` is the beginning of the folders of `a-b`, `a.b` and `a0`."""
    variants = tuple(BundleVariant(name, "Q", "gguf", "o/r", "main", COMMIT) for name in ("a", "a-b", "a.b", "a0"))
    files = tuple(PinnedFile(f"{each.id.folder}/x.gguf", 1, SHA256, None) for each in reversed(variants))
    index = replace(large_index(1), variants=variants, files=files)

    assert [[file.path for file in variant_files(index, each)] for each in variants] == [
        [f"models/{name}/Q/x.gguf"] for name in ("a", "a-b", "a.b", "a0")
    ]
    assert variants[0].id == VariantId("a", "Q")


@pytest.mark.parametrize("kind", ["lock", "index"])
def test_a_large_file_of_lists_takes_little_more_memory_than_it_has(kind: str, tmp_path: Path) -> None:
    content = b"[" + b"[]," * 4 * MIB + b"[]]"
    said, peak = with_peak(lambda: refusal(kind, content, tmp_path))

    assert "values, which no" in said
    assert peak < len(content) + 200 * MIB


@pytest.mark.parametrize("kind", ["manifest", "lock", "index"])
def test_the_quick_check_accepts_nothing_that_jsonschema_refuses(kind: str) -> None:
    schemas = {path.name: json.loads(path.read_bytes()) for path in SCHEMAS.glob("*.json")}
    resources = ((file, Resource.from_contents(schema)) for file, schema in schemas.items())
    registry: Registry[dict[str, object]] = Registry().with_resources(resources)
    file = f"{'bundle' if kind == 'index' else kind}.schema.json"
    accepts = check_of(schemas[file], file, schemas)
    judge = jsonschema.Draft202012Validator(schemas[file], registry=registry)
    accepted = 0
    for content in mutations(kind, 3, 300):
        with suppress(ValueError, RecursionError):
            raw = tomllib.loads(content.decode()) if kind == "manifest" else json.loads(content)
            if accepts(raw):
                accepted += 1
                assert judge.is_valid(raw)

    assert accepted

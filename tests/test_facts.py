"""Every number in `manifests/` is that of its source: the facts in tools/facts, which name where they were read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import locks_from_facts
from tourkit import data
from tourkit.defaults import stated
from tourkit.manifest import lock, manifest
from tourkit.manifest.languages import MANY, RUSSIAN
from tourkit.manifest.models import Model, Variant
from tourkit.planning import recurrent

FOLDER = Path(__file__).resolve().parent.parent / "tools" / "facts"
ROWS: dict[str, dict[str, Any]] = {row["repo_id"]: row for row in json.loads((FOLDER / "models.json").read_bytes())}
LANGUAGES: dict[str, dict[str, Any]] = json.loads((FOLDER / "languages.json").read_bytes())
CATALOGUE = manifest.catalogue()
WEIGHTS = (".gguf", ".safetensors")

# Files that say that the facts are their only source.
HELD = [
    id_ for id_ in CATALOGUE if "tools/facts/models.json in the repository" in (data.MODELS / f"{id_}.toml").read_text()
]


def row_of(model: Model) -> dict[str, Any] | None:
    """Return the facts about a model: the row of its own repository, else of the first variant that has one."""
    repos = (model.repo, *(variant.repo for variant in model.variants))
    return next((ROWS[repo] for repo in repos if repo in ROWS), None)


def languages_of(model: Model) -> dict[str, Any] | None:
    """Return the facts about a model's languages, looked up in the same way."""
    repos = (model.repo, *(variant.repo for variant in model.variants))
    return next((LANGUAGES[repo] for repo in repos if repo in LANGUAGES), None)


def size_in(row: dict[str, Any], variant: Variant) -> int | None:
    """Return the bytes of a variant's weight files; None if the facts do not have every size."""
    sizes = [file["size"] for file in row["files"] if variant.takes(file["path"]) and file["path"].endswith(WEIGHTS)]
    return sum(sizes) if sizes and None not in sizes else None


@pytest.mark.parametrize("repo", ROWS)
def test_every_row_of_the_facts_names_where_it_was_read(repo: str) -> None:
    assert ROWS[repo]["sources"]


@pytest.mark.parametrize("repo", LANGUAGES)
def test_every_row_of_languages_names_where_it_was_read(repo: str) -> None:
    assert LANGUAGES[repo]["source"]


@pytest.mark.parametrize("id_", [id_ for id_, model in CATALOGUE.items() if row_of(model)])
def test_no_value_of_a_model_differs_from_the_facts(id_: str) -> None:
    model, row = CATALOGUE[id_], row_of(CATALOGUE[id_])
    assert row is not None
    stated = {"gated": model.gated, "context_window": model.context, "params": model.params}

    assert [key for key, value in stated.items() if row[key] is not None and value not in (row[key], None)] == []
    assert row["license"] in (None, model.license) or row["license"].startswith("other")  # the catalogue says which
    arch = {} if model.arch is None else {name: getattr(model.arch, name) for name in model.arch.__slots__}
    known = row["arch"] or {}
    assert {k: v for k, v in arch.items() if v is not None and known.get(k) not in (v, None)} == {}


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_no_size_of_a_variant_differs_from_the_facts_at_its_commit(model: Model) -> None:
    found = {
        variant.quant: (variant.size, size_in(row, variant))
        for variant in model.variants
        if (row := ROWS.get(variant.repo)) and variant.revision == row["revision"]
    }

    assert {quant: sizes for quant, sizes in found.items() if sizes[1] is not None and sizes[0] != sizes[1]} == {}


@pytest.mark.parametrize("id_", HELD)
def test_a_file_with_the_facts_as_its_source_has_no_number_that_they_do_not_have(id_: str) -> None:
    model = CATALOGUE[id_]
    row = row_of(model)
    assert row is not None
    assert (model.license, model.context, model.params, model.gated) == (
        row["license"] or "unknown",
        row["context_window"],
        row["params"],
        next((ROWS[v.repo]["gated"] for v in model.variants if row["gated"] is not None), None),
    )
    assert stated(model.sampling) == row.get("sampling", {})
    for variant in model.variants:
        own = ROWS[variant.repo]
        size = size_in(own, variant) or own.get("total_weight_bytes")
        assert (variant.revision, variant.size) == (own["revision"] or "main", size), variant.quant
    if model.arch is not None:
        numbers = {name: getattr(model.arch, name) for name in model.arch.__slots__ if name != "state_values"}
        assert {
            name: value for name, value in numbers.items() if value is not None and value != row["arch"][name]
        } == {}
        assert model.arch.state_values == states(row["arch"])


# How config.json names the heads of a state, the sizes of a head and of a state, the groups, and the kernel.
_STATE_KEYS = (
    (
        "linear_num_value_heads",
        "linear_value_head_dim",
        "linear_key_head_dim",
        "linear_num_key_heads",
        "linear_conv_kernel_dim",
    ),
    ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"),
)


def states(arch: dict[str, Any]) -> int | None:
    """Return the numbers that a hybrid model keeps for one sequence, as llama.cpp counts them; None without states."""
    name = "x"
    header: dict[str, Any] = {"general.architecture": name, f"{name}.embedding_length": arch["hidden_size"]}
    if "conv_L_cache" in arch:
        header[f"{name}.shortconv.l_cache"] = arch["conv_L_cache"]
    elif family := next((keys for keys in _STATE_KEYS if keys[0] in arch), None):
        heads, head, state, groups, kernel = (arch[key] for key in family)
        header |= {
            f"{name}.ssm.inner_size": heads * head,
            f"{name}.ssm.state_size": state,
            f"{name}.ssm.group_count": groups,
            f"{name}.ssm.conv_kernel": kernel,
        }
    else:
        return None
    layers = arch["state_layers"]
    return recurrent.of_gguf(header, [0] * layers).total


# languages


@pytest.mark.parametrize("id_", [id_ for id_, model in CATALOGUE.items() if languages_of(model)])
def test_the_languages_of_a_model_are_those_that_its_publisher_names(id_: str) -> None:
    """A publisher that says nothing leaves the key out. "Many" without a list is "multilingual" and nothing more."""
    row = languages_of(CATALOGUE[id_])
    assert row is not None
    stated = set(CATALOGUE[id_].languages) - {"code"}

    if row["languages"] is None:
        assert not stated
    elif isinstance(row["languages"], list):
        assert stated == set(row["languages"])
    else:
        assert stated == {*row["named"], MANY}
    assert (RUSSIAN in stated) is bool(row["russian"])


# locks


def test_every_set_from_a_hub_is_locked_from_the_facts() -> None:
    """The other two are pinned by wheels of the package index, and by the repository itself."""
    assert {*locks_from_facts.SETS, "smol", "tiny"} == set(manifest.builtin_sets())


@pytest.mark.parametrize("name", locks_from_facts.SETS)
def test_a_shipped_lock_is_what_the_facts_prove(name: str) -> None:
    """If this fails: python tools/locks_from_facts.py tools/facts/models.json."""
    wanted = manifest.load(name)

    assert lock.render(locks_from_facts.lock_of(wanted, ROWS)) == lock.path_of(wanted.path).read_bytes()

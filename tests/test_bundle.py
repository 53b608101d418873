"""The index of a bundle: written in one form, read strictly."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from small_bundle import COMMIT, FILES, MODELS, ROLES, VARIANTS, make_bundle, write_files

from tourkit.bundle.build import build_index
from tourkit.bundle.index import (
    BundleVariant,
    Index,
    read_index,
    render_index,
    variant_files,
    write_index,
)
from tourkit.errors import NotSo, TourkitError, UsageError
from tourkit.manifest.models import PinnedFile, Source, VariantId

EMPTY = Index("x", "", "", {}, (), (), ())
HASH = hashlib.sha256(b"").hexdigest()


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the index as an attacker would, with a matching digest."""
    raw = orjson.loads((root / "bundle.json").read_bytes())
    change(raw)
    del raw["digest"]
    option = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    raw["digest"] = hashlib.sha256(orjson.dumps(raw, option=option)).hexdigest()
    (root / "bundle.json").write_bytes(orjson.dumps(raw, option=option))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    index = make_bundle(tmp_path)
    again = read_index(tmp_path)

    assert again == read_index(tmp_path)
    assert set(again.files) == set(index.files)
    assert set(again.variants) == set(VARIANTS)
    assert set(again.models) == set(MODELS)
    assert again.roles == ROLES
    assert {file.path for file in again.files} == set(FILES)
    assert [file.path for file in again.files] == sorted(FILES)


def test_the_same_index_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    index = make_bundle(tmp_path)
    turned = dataclasses.replace(
        index,
        files=index.files[::-1],
        models=index.models[::-1],
        variants=index.variants[::-1],
        roles=dict(reversed(index.roles.items())),
    )
    first = (tmp_path / "bundle.json").read_bytes(), (tmp_path / "SHA256SUMS").read_bytes()
    write_index(tmp_path, turned)

    assert ((tmp_path / "bundle.json").read_bytes(), (tmp_path / "SHA256SUMS").read_bytes()) == first


def test_roles_keep_their_order_of_preference(tmp_path: Path) -> None:
    write_files(tmp_path)
    index = build_index(tmp_path, "x", {"tool": ["old-2", "old"]}, MODELS, VARIANTS)
    write_index(tmp_path, index)

    assert read_index(tmp_path).roles == {"tool": ("old-2", "old")}


def test_the_index_is_readable_json_that_ends_in_one_newline(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    text = (tmp_path / "bundle.json").read_text(encoding="utf-8")

    assert text.endswith("}\n")
    assert json.loads(text)["format"] == 1
    assert not re.search(r"20\d\d-|time", text), "no time stamps: the same content gives the same bytes"


def test_files_know_where_they_came_from(tmp_path: Path) -> None:
    index = make_bundle(tmp_path)
    files = {file.path: file for file in index.files}

    assert files["models/tiny/F16/onnx/a config.json"].source == Source("org/tiny-GGUF", COMMIT, "onnx/a config.json")
    assert files["START_HERE.md"].source is None
    assert [file.path for file in variant_files(index, VARIANTS[0])] == [
        "models/tiny/Q8_0/README.md",
        "models/tiny/Q8_0/tiny-Q8_0.gguf",
    ]
    assert VariantId("tiny", "F16").folder == "models/tiny/F16"


def test_a_source_may_have_another_path_than_the_file(tmp_path: Path) -> None:
    index = make_bundle(tmp_path)
    path = "models/tiny/Q8_0/README.md"
    elsewhere = Source("org/tiny-GGUF", COMMIT, "docs/README.md")
    files = (dataclasses.replace(file, source=elsewhere) if file.path == path else file for file in index.files)
    write_index(tmp_path, dataclasses.replace(index, files=tuple(files)))

    assert next(file.source for file in read_index(tmp_path).files if file.path == path) == elsewhere


@pytest.mark.starts
def test_sha256sum_agrees(tmp_path: Path) -> None:
    """Coreutils can check the bundle on machines without tourkit."""
    make_bundle(tmp_path)

    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    good = check()
    assert good.returncode == 0, good.stderr
    assert len(good.stdout.splitlines()) == len(FILES) + 1
    assert "bundle.json: OK" in good.stdout
    (tmp_path / "START_HERE.md").write_bytes(b"# stars\n")
    assert check().returncode == 1


@pytest.mark.parametrize("name", ["bundle.json", "SHA256SUMS", "bundle.sig"])
def test_its_own_files_are_never_in_the_index(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path)
    (tmp_path / name).write_bytes(b"old")

    assert build_index(tmp_path, "x", {}, MODELS, VARIANTS).files == read_files(tmp_path)


def read_files(root: Path) -> tuple[PinnedFile[Source | None], ...]:
    write_index(root, build_index(root, "x", {}, MODELS, VARIANTS))
    return read_index(root).files


def test_a_link_cannot_be_made_part_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(UsageError, match="symbolic link"):
        build_index(tmp_path, "x", {}, [], [])


def test_a_name_that_cannot_travel_is_refused_when_indexing(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"a")

    with pytest.raises(UsageError, match="a:b"):
        build_index(tmp_path, "x", {}, [], [])


def test_a_name_that_is_not_utf_8_is_refused_when_indexing(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"a")

    with pytest.raises(UsageError):
        build_index(tmp_path, "x", {}, [], [])


# ---- no bundle, a damaged one, a newer one, a malicious one -------------------------------------------


def test_no_folder_and_no_bundle_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tourkit prefetch"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(NotSo, match="tourkit prefetch"):
        read_index(tmp_path)
    (tmp_path / "bundle.json").mkdir()
    with pytest.raises(NotSo, match=r"bundle\.json"):
        read_index(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"format": 1}\n', b"[" * 5000])
def test_what_is_no_index_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(data)

    with pytest.raises(NotSo, match="damaged"):
        read_index(tmp_path)


def test_any_flipped_bit_of_the_index_is_noticed(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    path = tmp_path / "bundle.json"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(NotSo, match="damaged"):
            read_index(tmp_path)


def test_other_white_space_is_damage_too(tmp_path: Path) -> None:
    """The file must be byte-equal to its canonical form, because SHA256SUMS contains its hash."""
    make_bundle(tmp_path)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")

    with pytest.raises(NotSo, match="damaged"):
        read_index(tmp_path)


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    rewrite(tmp_path, lambda raw: raw.update(format=2, novelty=True))

    with pytest.raises(UsageError, match="newer tourkit"):
        read_index(tmp_path)


def change_file(**new: object) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["files"][0].update(new)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "traversal": (change_file(path="../evil"), r"\.\./evil"),
    "deep traversal": (change_file(path="models/../../evil"), "evil"),
    "absolute": (change_file(path="/etc/passwd"), "/etc/passwd"),
    "backslash": (change_file(path="a\\b"), "Windows"),
    "newline": (change_file(path="a\nb"), "control"),
    "source traversal": (change_file(repo="a/b", commit=COMMIT, source="../x"), "leaves its folder"),
    "pickle": (change_file(path="model.pt"), "pickle"),
    "own name": (change_file(path="SHA256SUMS"), "SHA256SUMS"),
    "own name in another case": (change_file(path="Bundle.JSON"), "the same name"),
    "file and folder": (change_file(path="templates"), "templates"),
    "two cases": (change_file(path="Templates/one/ONE.py"), "the same name"),
    "twice": (lambda raw: raw["files"].insert(0, raw["files"][0]), "twice"),
    "half a source": (change_file(repo="a/b"), "go together"),
    "size": (change_file(size=-1), r"files\[0\]\.size"),
    "size as text": (change_file(size="1"), r"files\[0\]\.size"),
    "hash": (change_file(sha256="ABC"), r"files\[0\]\.sha256"),
    "hash with newline": (change_file(sha256=HASH + "\n"), r"files\[0\]\.sha256"),
    "unknown key": (change_file(mode="755"), "mode"),
    "missing key": (lambda raw: raw.pop("roles"), "roles"),
    "role without model": (lambda raw: raw["roles"].update(fast=["ghost"]), "ghost"),
    "variant without model": (lambda raw: raw["variants"][0].update(model="ghost"), "ghost"),
    "variant twice": (lambda raw: raw["variants"].append(raw["variants"][-1]), "twice"),
    "quant is a path": (lambda raw: raw["variants"][0].update(quant="../.."), "leaves its folder"),
    "quant has a slash": (lambda raw: raw["variants"][0].update(quant="a/b"), "a/b"),
    "order": (lambda raw: raw["files"].reverse(), "sorted"),
    "format 0": (lambda raw: raw.update(format=0), "format"),
    "format text": (lambda raw: raw.update(format="1"), "format"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_an_index_that_is_whole_but_wrong_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    """No index can name a path outside the bundle. The message has file and reason in one line."""
    make_bundle(tmp_path)
    rewrite(tmp_path, change)

    with pytest.raises(UsageError, match=said) as caught:
        read_index(tmp_path)
    assert "bundle.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    bad = dataclasses.replace(EMPTY, files=(PinnedFile("../x", 1, HASH, None),))

    with pytest.raises(UsageError):
        write_index(tmp_path, bad)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_bundle_is_a_bundle(tmp_path: Path) -> None:
    write_index(tmp_path, EMPTY)

    assert read_index(tmp_path) == EMPTY
    assert render_index(EMPTY) == (tmp_path / "bundle.json").read_bytes()


def test_a_repository_without_an_owner_can_be_named(tmp_path: Path) -> None:
    variant = BundleVariant("old", "BF16", "safetensors", "gpt2", "main", COMMIT)
    write_index(tmp_path, dataclasses.replace(EMPTY, models=MODELS, variants=(variant,)))

    assert read_index(tmp_path).variants == (variant,)


def test_every_refusal_has_an_exit_code_of_ours(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"junk")
    with pytest.raises(TourkitError) as caught:
        read_index(tmp_path)
    assert caught.value.exit_code == 1


@pytest.mark.starts
def test_importing_it_stays_light() -> None:
    heavy = {"huggingface_hub", "starlette", "uvicorn", "aiohttp", "jinja2", "llama_cpp", "numpy", "jsonschema"}
    code = f"import sys, tourkit.bundle.verify; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

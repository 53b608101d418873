"""Names and texts of strangers on the terminal: nothing in them controls it, and `--json` stays what it says."""

from __future__ import annotations

import ast
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_bundle import make_bundle

from tourkit.bundle.index import write_index
from tourkit.cli import main
from tourkit.progress import Progress
from tourkit.terminal import visible, visible_json

COMMANDS = Path(__file__).parents[2] / "tourkit" / "commands"
HOSTILE = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\rb\nc\td\x08": r"a\rb\nc\td\x08",
    "\x7f\x80\x9b31m": r"\x7f\x80\x9b31m",
    "\u202egpj.exe\u2066": r"\u202egpj.exe\u2066",
    "line\u2028end\u2029\u200f\ufeff": r"line\u2028end\u2029\u200f\ufeff",
    "\udcff": r"\udcff",
    "Маленькая модель, 日本語, ñ, 👩‍🚀 ≠ \\": "Маленькая модель, 日本語, ñ, 👩‍🚀 ≠ \\",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_control_characters_are_made_visible_and_other_letters_stay(text: str) -> None:
    assert visible(text) == HOSTILE[text]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_json_stays_valid_and_means_the_same(text: str) -> None:
    shown = visible_json(json.dumps({text: [text]}, ensure_ascii=False, indent=2))

    assert json.loads(shown) == {text: [text]}
    assert visible(shown.replace("\n", "")) == shown.replace("\n", "")


def test_a_line_of_megabytes_keeps_its_beginning_and_its_end() -> None:
    shown = visible(f"set.toml: {'x' * 1_000_000}: shorten it")

    assert len(shown) < 10_000
    assert shown.startswith("set.toml: xxx")
    assert shown.endswith("xxx: shorten it")


def is_plain(text: str) -> bool:
    return re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text) is None


def test_an_error_shows_a_hostile_name_in_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "\x1b[31mno\nsuch\u202eset.toml"]) == 2

    said = capsys.readouterr().err
    assert is_plain(said)
    assert said.count("\n") == 1
    assert r"\x1b[31mno such\u202eset.toml" in said


def test_files_in_a_bundle_with_hostile_names_are_shown_plainly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path)
    for name in (b"\x1b[2Jclear", b"two\nlines", b"not UTF-8 \xff"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")

    assert main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert is_plain(said.out + said.err)
    assert r"extra: \x1b[2Jclear" in said.out
    assert r"extra: two\nlines" in said.out
    assert main(["verify", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    assert is_plain(said.out)
    assert {"\x1b[2Jclear", "two\nlines"} <= {each["path"] for each in json.loads(said.out)["problems"]}


@pytest.mark.starts
def test_the_index_of_a_stranger_is_shown_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_bundle(tmp_path)
    title = "\x1b]0;owned\x07"
    models = tuple(replace(model, license=title, family=title) for model in index.models)
    write_index(tmp_path, replace(index, name=title, models=models))

    for arguments in (["plan", "--bundle", str(tmp_path)], ["verify", str(tmp_path)]):
        main(arguments)
        said = capsys.readouterr()
        assert said.out
        assert is_plain(said.out + said.err)


def test_a_note_beside_a_progress_bar_is_plain() -> None:
    out = io.StringIO()

    Progress("prefetch", out=out).note("hub: \x1b[2J: retry in 1 s")

    assert out.getvalue() == "hub: \\x1b[2J: retry in 1 s\n"


def test_commands_print_through_one_module() -> None:
    printing = {
        path.name
        for path in COMMANDS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "click.secho", "print")
    }

    assert printing == {"output.py"}

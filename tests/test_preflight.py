"""A run that would fail in every line is refused before the first one, with what to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai_stub import serve

from tourkit.cli import main
from tourkit.errors import UsageError
from tourkit.pipelines.lines import read_lines
from tourkit.pipelines.preflight import check_input, check_model

ROWS = [{"id": "a", "text": "one, two"}, {"id": "b", "text": "три"}]
LISTED = "[\n" + ",\n".join(f'{{"id": {number}, "text": "x"}}' for number in (1, 2, 3)) + "\n]\n"
CSV = 'id,text\na,"one, two"\nb,три\n'
OTHERS = {
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "docs.csv": CSV,
    "docs.txt": CSV,
    "semicolons.csv": "id;text\na;one, two\nb;три\n",
    "docs.tsv": "id\ttext\na\tone, two\nb\tтри\n",
    "with-mark.csv": "\ufeff" + CSV.replace("\n", "\r\n"),
}


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        check_input(path, read_lines(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.starts
@pytest.mark.parametrize("name", OTHERS)
def test_the_command_in_the_refusal_makes_json_lines_of_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(OTHERS[name], encoding="utf-8")

    command = re.search(r"`python -c \"(.*)\" < (.*) > (.*)`", refusal(path))

    assert command is not None
    assert (command[2], command[3]) == (str(path), f"{path.stem}.jsonl")
    with path.open("rb") as file:
        run = [sys.executable, "-X", "utf8", "-c", command[1]]
        done = subprocess.run(run, stdin=file, capture_output=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{key.removeprefix("\ufeff"): value for key, value in row.items()} for row in rows] == ROWS


def test_one_object_over_several_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=2))

    assert "one JSON object over several lines" in refusal(path)


def test_other_text_is_refused_with_the_problem_of_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear all\nsee you there\n")

    assert refusal(path).startswith(f"{path} line 1: not JSON")


@pytest.mark.parametrize("text", ["", "\n\n", '{"id": 1}\nnot JSON\n', 'id,text\n{"id": 1}\n', '[1]\n{"id": 1}\n'])
def test_a_file_with_a_document_passes_and_so_does_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(text)

    check_input(path, read_lines(path))


def test_a_model_that_is_not_served_is_refused_with_what_is() -> None:
    with pytest.raises(UsageError, match=r"'brian'.*serves brain, fast: did you mean 'brain'\?$"):
        check_model("brian", "tool", ["brain", "fast"], "http://x")
    with pytest.raises(UsageError, match=r"the template's model 'graph'.*serves brain: choose one of them"):
        check_model(None, "graph", ["brain"], "http://x")


def test_what_is_served_passes_and_so_does_a_templates_role_on_a_server_without_roles() -> None:
    check_model("brain", "tool", ["brain", "fast"], "http://x")
    check_model(None, "fast", ["brain", "fast"], "http://x")
    check_model(None, "fast", ["llama-3.1-8b"], "http://x")


@pytest.mark.starts
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("docs.csv", [], "CSV"),
        ("array.json", [], "JSON array"),
        ("listed.json", [], "JSON array"),
        ("docs.jsonl", ["--model", "brian"], "'brain'?"),
    ],
)
def test_run_refuses_before_the_first_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], says: str
) -> None:
    docs, out = tmp_path / name, tmp_path / "out.jsonl"
    docs.write_text(
        (OTHERS | {"listed.json": LISTED}).get(name) or "".join(f"{json.dumps(row)}\n" for row in ROWS),
        encoding="utf-8",
    )
    with serve(lambda body, index: "{}") as stub:
        ended = main(
            ["run", "json_extraction", "--input", str(docs), "--output", str(out), "--url", stub.url, *options]
        )

    printed = capsys.readouterr()
    assert ended == 2
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert stub.bodies == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]

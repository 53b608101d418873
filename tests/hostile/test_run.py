"""`run` and its journal against templates and files that do not behave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tourkit.client import Client
from tourkit.errors import LocalError, UsageError
from tourkit.pipelines.batch import run_batch
from tourkit.pipelines.journal import Journal, path_of
from tourkit.pipelines.lines import read_lines

NOBODY = Client("http://127.0.0.1:9")  # the templates here ask no server
# A search that takes longer than any test, in one call that lets no other thread run.
HOLDS = "import re\n\ndef run(document, client):\n    re.search('(a?){40}a{40}', 'a' * 40)\n    return {}\n"


def template(folder: Path, text: str) -> Path:
    path = folder / "hostile.py"
    path.write_text(text, encoding="utf-8")
    return path


def documents(folder: Path, count: int = 3) -> Path:
    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": i}) + "\n" for i in range(count)))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_exception_that_cannot_be_shown_is_one_failed_record(tmp_path: Path) -> None:
    text = (
        "class Odd(Exception):\n"
        "    def __str__(self):\n"
        "        raise ValueError('no text')\n"
        "def run(document, client):\n"
        "    raise Odd\n"
    )
    summary = run_batch(template(tmp_path, text), documents(tmp_path), tmp_path / "out.jsonl", client=NOBODY)

    assert summary.failed == 3
    assert records(tmp_path / "out.jsonl")[0]["type"] == "Odd"
    assert "cannot be shown (ValueError)" in records(tmp_path / "out.jsonl")[0]["error"]


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "raise SystemExit('over')\n"])
def test_a_template_that_leaves_at_its_import_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"hostile\.py does not load \(SystemExit"):
        run_batch(template(tmp_path, text), documents(tmp_path), tmp_path / "out.jsonl", client=NOBODY)


@pytest.mark.starts
def test_a_template_that_lets_no_other_thread_run_ends_at_the_deadline(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    summary = run_batch(template(tmp_path, HOLDS), documents(tmp_path), out, client=NOBODY, deadline_s=1.0)

    assert summary.late == 3
    assert [record["type"] for record in records(out)] == ["deadline"] * 3


@pytest.mark.starts
def test_a_template_that_hangs_at_its_import_ends_at_the_deadline(tmp_path: Path) -> None:
    text = "import re\nre.search('(a?){40}a{40}', 'a' * 40)\ndef run(document, client):\n    return {}\n"

    summary = run_batch(
        template(tmp_path, text), documents(tmp_path), tmp_path / "out.jsonl", client=NOBODY, deadline_s=1.0
    )

    assert summary.late == 3


@pytest.mark.starts
def test_a_template_that_ends_its_process_fails_its_documents_and_no_others(tmp_path: Path) -> None:
    text = (
        "import os, signal\n"
        "def run(document, client):\n"
        "    if document['id'] == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {'said': document['id']}\n"
    )
    out = tmp_path / "out.jsonl"

    summary = run_batch(template(tmp_path, text), documents(tmp_path), out, client=NOBODY, concurrency=1, deadline_s=60)

    assert (summary.ok, summary.failed) == (2, 1)
    [failed] = [record for record in records(out) if not record["ok"]]
    assert failed["id"] == 1
    assert "the process of the template ended with signal SIGKILL" in failed["error"]


@pytest.mark.starts
@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "def run(:\n"])
def test_a_template_that_does_not_load_is_one_line_with_a_deadline_too(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"hostile\.py does not load"):
        run_batch(template(tmp_path, text), documents(tmp_path), tmp_path / "out.jsonl", client=NOBODY, deadline_s=60)


@pytest.mark.starts
def test_what_a_template_prints_and_reads_does_not_disturb_its_answers(tmp_path: Path) -> None:
    text = "import sys\ndef run(document, client):\n    print('noise'); return {'read': sys.stdin.read()}\n"
    out = tmp_path / "out.jsonl"

    run_batch(template(tmp_path, text), documents(tmp_path), out, client=NOBODY, deadline_s=60)

    assert [record["read"] for record in records(out)] == ["", "", ""]


@pytest.mark.parametrize("place", range(1, 8))
def test_a_flipped_byte_in_the_journal_is_said_and_its_document_is_done_again(tmp_path: Path, place: int) -> None:
    docs, out = documents(tmp_path), tmp_path / "out.jsonl"
    lines = read_lines(docs)
    with Journal(path_of(out), lines, keep=False) as journal:
        for line in lines:
            journal.append(line, {"id": line.id, "ok": True, "said": "before"})
    data = bytearray(path_of(out).read_bytes())
    length = len(data) // 3
    data[length + place * length // 8] ^= 1
    path_of(out).write_bytes(data)
    said: list[str] = []
    text = "def run(document, client):\n    return {'said': 'again'}\n"

    run_batch(template(tmp_path, text), docs, out, client=NOBODY, resume=True, say=said.append)

    assert [record["said"] for record in records(out)] == ["before", "again", "before"]
    assert said == [f"{path_of(out)}: 1 line damaged: done again now"]


def test_a_record_that_is_damaged_during_the_run_does_not_reach_the_output(tmp_path: Path) -> None:
    lines = read_lines(documents(tmp_path))
    path = tmp_path / "out.jsonl.journal"
    with Journal(path, lines, keep=False) as journal:
        journal.append(lines[0], {"id": 0, "ok": True, "said": "right"})
        with path.open("r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"x")

        with pytest.raises(LocalError, match="the record of line 1 is damaged: run again with --resume"):
            journal.record(1)


@pytest.mark.starts
@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody remove an open file")
def test_the_folders_of_a_killed_process_are_removed_by_the_next_one(tmp_path: Path) -> None:
    code = "from tourkit import scratch\nwith scratch.folder('x'):\n    print('made', flush=True)\n    input()\n"
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        return process

    with start() as killed, start() as alive:
        assert len(list(tmp_path.iterdir())) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with start() as third:
            assert len(list(tmp_path.iterdir())) == 2  # of the two that live
            third.communicate(b"\n")
        alive.communicate(b"\n")

    assert list(tmp_path.iterdir()) == []

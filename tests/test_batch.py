"""The batch runner, with real template files, a real server on loopback and a process that is really killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from openai_stub import Refusal, serve
from template_names import NAMES

from tourkit.client import Client
from tourkit.errors import LocalError, UsageError
from tourkit.pipelines.batch import Summary, run_batch
from tourkit.pipelines.journal import path_of as journal_of
from tourkit.pipelines.templates import load_template

TEMPLATE = '''"""Ask for one word."""

ROLE = "graph"


def run(document, client):
    return {"id": document["id"], "ok": True, "said": client.chat(document["text"]).text}
'''


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return write(tmp_path / "asking.py", TEMPLATE)


NOBODY = "http://127.0.0.1:9"  # for runs that must not send a request


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_documents(path: Path, count: int) -> Path:
    rows = [{"id": f"doc-{i}", "text": f"text {i}"} for i in range(count)]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def echo(body: dict[str, Any], index: int) -> str:
    return str(body["messages"][-1]["content"])


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".part", ".journal"))


@pytest.mark.starts
def test_the_order_of_the_input_is_kept_though_lines_finish_in_another(tmp_path: Path, template: Path) -> None:
    last_is_done = threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        if echo(body, index) == "text 3":
            last_is_done.set()
        assert last_is_done.wait(timeout=30)
        return echo(body, index)

    docs, out = write_documents(tmp_path / "docs.jsonl", 4), tmp_path / "out.jsonl"
    seen: list[tuple[int, int]] = []
    with serve(answer) as stub, Client(stub.url) as client:
        summary = run_batch(
            template, docs, out, client=client, concurrency=4, on_progress=lambda *counts: seen.append(counts)
        )

    assert read(out) == [{"id": f"doc-{i}", "ok": True, "said": f"text {i}"} for i in range(4)]
    assert summary == Summary(total=4, ok=4, failed=0, late=0, resumed=0)
    assert seen == [(i, 4) for i in range(5)]
    assert leftovers(tmp_path) == []


@pytest.mark.starts
def test_the_template_names_the_role_unless_the_client_has_one(tmp_path: Path, template: Path) -> None:
    docs = write_documents(tmp_path / "docs.jsonl", 1)
    with serve(echo) as stub:
        run_batch(template, docs, tmp_path / "a.jsonl", client=Client(stub.url))
        run_batch(template, docs, tmp_path / "b.jsonl", client=Client(stub.url, model="brain"))

    assert [body["model"] for body in stub.bodies] == ["graph", "brain"]


@pytest.mark.starts
def test_failures_are_records_in_their_place(tmp_path: Path) -> None:
    """If a line or a template fails, only the record of this line is lost, and it says why."""
    template = write(
        tmp_path / "failing.py",
        """
def run(document, client):
    match document["text"]:
        case "raise": raise ValueError("first\\nsecond")
        case "exit": raise SystemExit("bye")
        case "set": return {"found": {1, 2}}
        case "nan": return {"found": float("nan")}
        case "list": return [1]
        case "own": return {"ok": False, "error": "I could not"}
        case "ask": return {"said": client.chat("x").text}
    return {"id": "another", "found": 1}
""",
    )
    docs = write(
        tmp_path / "docs.jsonl",
        "\n".join(
            [
                '{"id": "a", "text": "raise"}',
                '{"id": "b", "text": "exit"}',
                '{"id": "c", "text": "set"}',
                '{"id": "d", "text": "nan"}',
                '{"id": "e", "text": "list"}',
                '{"id": "f", "text": "own"}',
                '{"id": "g", "text": "ask"}',
                '{"id": "h"}',
                "{broken",
                "[1, 2]",
                '{"id": {}, "text": "fine"}',
                '{"text": "fine"}',
                "",
            ]
        ),
    )
    out = tmp_path / "out.jsonl"

    with serve(lambda body, index: Refusal(400, "no such role")) as stub:
        summary = run_batch(template, docs, out, client=Client(stub.url))

    records = read(out)
    assert [record["id"] for record in records] == ["a", "b", "c", "d", "e", "f", "g", "h", 9, 10, 11, 12]
    assert [(record.get("type"), record.get("error")) for record in records[:2]] == [
        ("ValueError", "first second"),
        ("SystemExit", "bye"),
    ]
    assert [record.get("type") for record in records[2:5]] == ["TypeError", "ValueError", "TypeError"]
    assert records[5] == {"id": "f", "ok": False, "error": "I could not"}
    assert records[6] == {"id": "g", "ok": False, "error": "no such role", "type": "ClientError"}
    assert records[7]["error"] == "no field 'text'"
    assert records[8]["type"] == records[9]["type"] == records[10]["type"] == "input"
    assert records[8]["error"].startswith(f"{docs} line 9: not JSON (")
    assert records[11] == {"id": 12, "ok": True, "found": 1}
    assert (summary.ok, summary.failed) == (1, 11)


@pytest.mark.starts
def test_a_dead_server_is_said_in_every_record(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"
    with socket.socket() as unused:  # bound but not listening, so that nobody else gets this port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        run_batch(template, docs, out, client=Client(url))

    assert {record["error"] for record in read(out)} == {
        f"no tourkit server at {url}: start `tourkit serve --bundle DIR --offline`"
    }


@pytest.mark.starts
def test_duplicate_ids_are_refused_before_anything_runs(tmp_path: Path, template: Path) -> None:
    docs = write(tmp_path / "docs.jsonl", '{"id": "a", "text": "x"}\n\n{"id": "a", "text": "y"}\n')
    with serve(echo) as stub, pytest.raises(UsageError, match="line 3: line 1 has the id 'a' too"):
        run_batch(template, docs, tmp_path / "out.jsonl", client=Client(stub.url))

    assert stub.bodies == []
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.starts
def test_text_of_any_script_comes_through(tmp_path: Path, template: Path) -> None:
    """The input is UTF-8 with a BOM and Windows line ends. U+2028 and half a surrogate pair must not split a line."""
    texts = ["Ёлка «синяя»", "日本語 🦊", "one\u2028two\x85three", "\ud83d"]
    rows = "\r\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    docs, out = write(tmp_path / "docs.jsonl", "\ufeff" + rows), tmp_path / "out.jsonl"

    with serve(echo) as stub:
        run_batch(template, docs, out, client=Client(stub.url))

    lines = out.read_text(encoding="utf-8").split("\n")
    # The stub cannot answer with half a pair, so this line is a failure, but it has a record.
    assert [json.loads(line).get("said") for line in lines[:-2]] == texts[:3]
    assert json.loads(lines[-2])["id"] == 3
    assert "«синяя»" in lines[0]


@pytest.mark.starts
def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, template: Path) -> None:
    docs, out = tmp_path / "docs.jsonl", tmp_path / "out.jsonl"
    docs.write_bytes(b'{"id": "a", "text": "x"}\n{"id": "b", "text": "\xcf\xf0"}\n')
    with serve(echo) as stub:
        run_batch(template, docs, out, client=Client(stub.url))

    records = read(out)
    assert records[0]["ok"] is True
    assert records[1]["error"] == f"{docs} line 2: not UTF-8 at byte 22: save the file as UTF-8"


def test_no_document_is_an_empty_result(tmp_path: Path, template: Path) -> None:
    docs, out = write(tmp_path / "docs.jsonl", "\n"), tmp_path / "out.jsonl"
    assert run_batch(template, docs, out, client=Client(NOBODY)).total == 0
    assert out.read_bytes() == b""


# --- earlier results ---


@pytest.mark.starts
def test_an_existing_output_is_not_touched(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 1), write(tmp_path / "out.jsonl", "mine\n")
    with serve(echo) as stub:
        with pytest.raises(UsageError, match=r"exists already: name another output, .*--force.*--resume"):
            run_batch(template, docs, out, client=Client(stub.url))
        assert out.read_text() == "mine\n"
        run_batch(template, docs, out, client=Client(stub.url), force=True)

    assert read(out)[0]["said"] == "text 0"


def test_the_input_is_never_the_output(tmp_path: Path, template: Path) -> None:
    docs = write_documents(tmp_path / "docs.jsonl", 1)
    with pytest.raises(UsageError, match="is the input"):
        run_batch(template, docs, docs, client=Client(NOBODY), force=True)


def test_an_unfinished_run_is_not_thrown_away_by_a_new_one(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 1), tmp_path / "out.jsonl"
    write(journal_of(out), "")
    with pytest.raises(UsageError, match="go on with --resume, or start again with --force"):
        run_batch(template, docs, out, client=Client(NOBODY))


@pytest.mark.starts
def test_resume_runs_failed_lines_again_and_no_others(tmp_path: Path, template: Path) -> None:
    broken = {"text 1", "text 3"}

    def answer(body: dict[str, Any], index: int) -> str | Refusal:
        return Refusal(500, "out of order") if echo(body, index) in broken else echo(body, index)

    docs, out = write_documents(tmp_path / "docs.jsonl", 5), tmp_path / "out.jsonl"
    with serve(answer) as stub:
        first = run_batch(template, docs, out, client=Client(stub.url))
        broken.clear()
        stub.bodies.clear()
        second = run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert (first.ok, first.failed) == (3, 2)
    assert "--resume runs the failed ones again" in str(first)
    assert second == Summary(total=5, ok=5, failed=0, late=0, resumed=3)
    assert str(second) == "5 lines: 5 ok (3 of them from an earlier run)"
    assert sorted(stub.texts()) == ["text 1", "text 3"]
    assert [record["said"] for record in read(out)] == [f"text {i}" for i in range(5)]
    assert leftovers(tmp_path) == []


@pytest.mark.starts
def test_resume_of_a_finished_run_does_nothing(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"
    with serve(echo) as stub:
        run_batch(template, docs, out, client=Client(stub.url))
        before = out.read_bytes()
        stub.bodies.clear()
        again = run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert again == Summary(total=3, ok=3, failed=0, late=0, resumed=3)
    assert stub.bodies == []
    assert out.read_bytes() == before


def test_resume_does_not_take_another_files_results_for_its_own(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"
    write(out, '{"id": "something else"}\n')
    with pytest.raises(UsageError, match="other documents"):
        run_batch(template, docs, out, client=Client(NOBODY), resume=True)


@pytest.mark.starts
def test_a_changed_line_is_computed_again_on_resume(tmp_path: Path, template: Path) -> None:
    """The journal compares the content of a line, not only its number."""
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"
    with serve(lambda body, index: Refusal(500) if "2" in echo(body, index) else echo(body, index)) as stub:
        run_batch(template, docs, out, client=Client(stub.url))
        stub.bodies.clear()
        stub.answer = echo
        docs.write_text(docs.read_text().replace("text 0", "text zero"))
        run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert sorted(stub.texts()) == ["text 2", "text zero"]
    assert [record["said"] for record in read(out)] == ["text zero", "text 1", "text 2"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-7], id="torn last line"),
        pytest.param(lambda data: data + b'{"line": 1, "sha', id="torn line after the last"),
        pytest.param(lambda data: data[:3] + b"\x00" + data[4:], id="damaged first line"),
        pytest.param(lambda data: b"[]\nnull\n{}\n\xff\n" + data, id="foreign lines"),
        pytest.param(lambda data: b"", id="empty"),
    ],
)
@pytest.mark.starts
def test_a_damaged_journal_costs_its_damaged_lines_alone(tmp_path: Path, template: Path, damage: Any) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 4), tmp_path / "out.jsonl"
    with serve(lambda body, index: Refusal(500) if "3" in echo(body, index) else echo(body, index)) as stub:
        run_batch(template, docs, out, client=Client(stub.url), concurrency=1)
        journal = journal_of(out)
        whole = journal.read_bytes().splitlines(keepends=True)[:3]
        journal.write_bytes(damage(b"".join(whole)))
        kept = sum(line in journal.read_bytes() for line in whole)
        stub.bodies.clear()
        stub.answer = echo
        summary = run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert summary.resumed == kept
    assert len(stub.bodies) == 4 - kept
    assert [record["said"] for record in read(out)] == [f"text {i}" for i in range(4)]


@pytest.mark.starts
def test_a_killed_run_goes_on_and_recomputes_no_finished_line(tmp_path: Path, template: Path) -> None:
    """kill -9 while half of the documents wait for the server: the other half is safe on disk."""
    arrived, let_go = threading.Semaphore(0), threading.Event()
    docs, out = write_documents(tmp_path / "docs.jsonl", 12), tmp_path / "out.jsonl"

    def answer(body: dict[str, Any], index: int) -> str:
        text = echo(body, index)
        if int(text.split()[1]) >= 6:
            arrived.release()
            let_go.wait(timeout=60)
        return text

    code = (
        "import sys; from pathlib import Path; from tourkit.client import Client\n"
        "from tourkit.pipelines.batch import run_batch\n"
        "template, docs, out, url = sys.argv[1:]\n"
        "def say(done, total): print(done, flush=True)\n"
        "run_batch(template, Path(docs), Path(out), client=Client(url), concurrency=2, on_progress=say)\n"
    )
    with serve(answer) as stub:
        command = [sys.executable, "-c", code, str(template), str(docs), str(out), stub.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:  # if the process fails, the loop ends with it
                if int(line) == 6:
                    break
            for _ in range(2):  # both threads wait, so no request arrives after the count
                assert arrived.acquire(timeout=30)
            os.kill(child.pid, signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        assert not out.exists()
        let_go.set()
        stub.bodies.clear()

        summary = run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert summary == Summary(total=12, ok=12, failed=0, late=0, resumed=6)
    assert sorted(stub.texts()) == sorted(f"text {i}" for i in range(6, 12))
    assert [record["said"] for record in read(out)] == [f"text {i}" for i in range(12)]
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to one child")
@pytest.mark.starts
def test_ctrl_c_leaves_the_journal(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 4), tmp_path / "out.jsonl"
    waiting, let_go = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        if echo(body, index) == "text 3":
            waiting.set()
            let_go.wait(timeout=60)
        return echo(body, index)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            assert waiting.wait(timeout=30)
            raise KeyboardInterrupt

    with serve(answer) as stub:
        with pytest.raises(KeyboardInterrupt):
            run_batch(template, docs, out, client=Client(stub.url), on_progress=interrupt)
        let_go.set()
        assert not out.exists()
        stub.bodies.clear()
        run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert stub.texts() == ["text 3"]
    assert len(read(out)) == 4


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told background jobs to ignore it
from tourkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to one child")
@pytest.mark.starts
@pytest.mark.parametrize(
    ("options", "again"),
    [([], "run the same command with --resume"), (["--resume"], "run the same command again, it resumes")],
)
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, template: Path, options: list[str], again: str) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 2), tmp_path / "out.jsonl"
    waiting, let_go = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        waiting.set()
        let_go.wait(timeout=60)
        return echo(body, index)

    with serve(answer) as stub:
        command = [sys.executable, "-c", INTERRUPTED, "run", str(template), "--input", str(docs), "--output", str(out)]
        command += ["--url", stub.url, *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
            assert waiting.wait(timeout=60)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate()
        let_go.set()

    assert child.returncode == 130
    assert errors.splitlines()[-1].startswith(f"tourkit: interrupted: {again}")


# --- the summary ---


@pytest.mark.starts
def test_the_summary_shows_the_commonest_error_with_its_count(tmp_path: Path, template: Path) -> None:
    def answer(body: dict[str, Any], index: int) -> str | Refusal:
        number = int(echo(body, index).split()[1])
        return Refusal(400, f"prompt of {number} tokens is too long") if number else Refusal(400, "another")

    docs = write_documents(tmp_path / "docs.jsonl", 4)
    with serve(answer) as stub, Client(stub.url) as client:
        summary = run_batch(template, docs, tmp_path / "out.jsonl", client=client, concurrency=1)

    assert (summary.failed, summary.times) == (4, 3)
    assert "most often (3 of 4): ClientError: prompt of 1 tokens is too long" in str(summary)
    assert "\n" not in str(summary)


def test_a_summary_without_failures_names_no_error() -> None:
    assert str(Summary(total=2, ok=2, failed=0, late=0, resumed=0)) == "2 lines: 2 ok"
    assert str(Summary(total=1, ok=1, failed=0, late=0, resumed=0)) == "1 line: 1 ok"


def test_the_summary_counts_the_values_that_are_not_in_the_texts(tmp_path: Path) -> None:
    """Any template may list such values under `ungrounded`. Lines that an earlier run did count too."""
    template = write(
        tmp_path / "doubting.py",
        "def run(document, client):\n    return {'ungrounded': ['/a', '/b'][: int(document['text'][-1])]}\n",
    )
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"

    summary = run_batch(template, docs, out, client=Client())
    again = run_batch(template, docs, out, client=Client(), resume=True)

    assert (summary.ungrounded, summary.loose) == (again.ungrounded, again.loose) == (3, 2)
    assert str(summary) == '3 lines: 3 ok; 3 values are not in the text (in 2 lines: "ungrounded" lists them)'


# --- the deadline ---


@pytest.mark.starts
def test_samples_from_before_the_deadline_vote_and_the_record_says_how_many(tmp_path: Path) -> None:
    let_go = threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        if index == 2 or body["messages"][-1]["content"] == "text 1":
            let_go.wait(timeout=60)
        return '{"reasoning": "…", "answer": "yes"}'

    docs, out = write_documents(tmp_path / "docs.jsonl", 2), tmp_path / "out.jsonl"
    with serve(answer) as stub:
        summary = run_batch("self_consistency", docs, out, client=Client(stub.url), concurrency=2, deadline_s=5.0)
        let_go.set()

    voted, late = read(out)
    assert (voted["answer"], voted["samples"], voted["voted"], voted["late"]) == ("yes", 2, 2, True)
    assert (late["ok"], late["type"]) == (False, "deadline")
    assert (summary.ok, summary.late) == (1, 1)


@pytest.mark.starts
def test_what_misses_the_deadline_is_recorded_and_can_be_resumed(tmp_path: Path, template: Path) -> None:
    """The run ends although two documents never get an answer. No finished record is lost."""
    let_go, reached = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], index: int) -> str:
        if echo(body, index) in ("text 2", "text 3"):
            reached.set()
            let_go.wait(timeout=60)
        return echo(body, index)

    docs, out = write_documents(tmp_path / "docs.jsonl", 6), tmp_path / "out.jsonl"
    with serve(answer) as stub:
        summary = run_batch(template, docs, out, client=Client(stub.url), concurrency=2, deadline_s=5.0)
        assert reached.is_set()
        late = [record["id"] for record in read(out) if record.get("type") == "deadline"]
        assert late == ["doc-2", "doc-3", "doc-4", "doc-5"]
        assert summary == Summary(total=6, ok=2, failed=4, late=4, resumed=0)
        assert "4 of them not finished by the deadline" in str(summary)
        let_go.set()
        stub.bodies.clear()
        summary = run_batch(template, docs, out, client=Client(stub.url), resume=True)

    assert summary.resumed == 2
    assert sorted(stub.texts()) == ["text 2", "text 3", "text 4", "text 5"]
    assert all(record["ok"] for record in read(out))


@pytest.mark.starts
def test_a_deadline_that_has_passed_still_gives_every_line(tmp_path: Path, template: Path) -> None:
    docs, out = write_documents(tmp_path / "docs.jsonl", 3), tmp_path / "out.jsonl"
    with serve(echo) as stub:
        summary = run_batch(template, docs, out, client=Client(stub.url), deadline_s=0)

    assert summary.late == 3
    assert [record["id"] for record in read(out)] == ["doc-0", "doc-1", "doc-2"]
    assert stub.bodies == []


@pytest.mark.starts
def test_a_template_that_never_returns_does_not_hold_the_process(tmp_path: Path) -> None:
    """Its thread is abandoned: the process ends by itself after the output is written."""
    template = write(
        tmp_path / "hanging.py", "import threading\ndef run(document, client):\n    threading.Event().wait()\n"
    )
    docs, out = write_documents(tmp_path / "docs.jsonl", 2), tmp_path / "out.jsonl"
    code = (
        "import sys; from pathlib import Path; from tourkit.client import Client\n"
        "from tourkit.pipelines.batch import run_batch\n"
        "run_batch(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), client=Client(), deadline_s=0.2)"
    )
    subprocess.run([sys.executable, "-c", code, template, docs, out], check=True, timeout=60)

    assert [record["type"] for record in read(out)] == ["deadline", "deadline"]


# --- wrong usage ---


def test_an_output_that_cannot_be_written_is_a_local_error(tmp_path: Path, template: Path) -> None:
    docs = write_documents(tmp_path / "docs.jsonl", 1)
    with pytest.raises(LocalError, match=re.escape(str(tmp_path / "no" / "out.jsonl"))):
        run_batch(template, docs, tmp_path / "no" / "out.jsonl", client=Client(NOBODY))


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path, template: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.jsonl"):
        run_batch(template, tmp_path / "absent.jsonl", tmp_path / "out.jsonl", client=Client(NOBODY))


def test_concurrency_starts_at_one(tmp_path: Path, template: Path) -> None:
    docs = write_documents(tmp_path / "docs.jsonl", 1)
    with pytest.raises(UsageError, match="at least 1"):
        run_batch(template, docs, tmp_path / "out.jsonl", client=Client(NOBODY), concurrency=0)


@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.starts
def test_no_more_requests_at_once_than_asked_for(tmp_path: Path, template: Path, concurrency: int) -> None:
    gate = threading.Lock()
    now = most = 0
    together = threading.Barrier(min(concurrency, 6))

    def answer(body: dict[str, Any], index: int) -> str:
        nonlocal now, most
        with gate:
            now += 1
            most = max(most, now)
        together.wait(timeout=30)
        with gate:
            now -= 1
        return "x"

    docs = write_documents(tmp_path / "docs.jsonl", 6)
    with serve(answer) as stub:
        run_batch(template, docs, tmp_path / "out.jsonl", client=Client(stub.url), concurrency=concurrency)

    assert most == min(concurrency, 6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "has no function run"),
        ("run = 3\n", "has no function run"),
        ("def run(:\n", r"does not load \(SyntaxError"),
        ("import a_module_that_is_not_there\n", r"does not load \(ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_no_template_is_wrong_usage(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_template(write(tmp_path / "wrong.py", source))


def test_a_template_is_found_by_name_by_folder_and_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    file = write(folder / "extract.py", TEMPLATE)
    write(folder / "_notes.py", "raise SystemError")

    assert load_template("json_extraction").role == "fast"
    assert load_template(folder).path == load_template(file).path == load_template(str(file)).path == file
    assert load_template(file).role == "graph"


def test_two_templates_of_one_file_name_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "same.py", f"def run(document, client):\n    return {{'from': {name!r}}}\n")
    first, second = load_template(tmp_path / "a"), load_template(tmp_path / "b")

    with Client(NOBODY) as client:
        assert (first.run({}, client), second.run({}, client)) == ({"from": "a"}, {"from": "b"})


def test_a_folder_with_several_files_needs_the_file_named(tmp_path: Path) -> None:
    write(tmp_path / "one.py", TEMPLATE)
    write(tmp_path / "two.py", TEMPLATE)
    with pytest.raises(UsageError, match="holds 2 Python files"):
        load_template(tmp_path)
    write(tmp_path / f"{tmp_path.name}.py", TEMPLATE)
    assert load_template(tmp_path).name == tmp_path.name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=", ".join(NAMES)):
        load_template("json_extraktion")

"""What the commands from the hub to the bundle print and end with, against a hub on loopback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_hub import COMMIT, Fault, FaultyHub, noise

from tourkit.cli import main
from tourkit.manifest import lock as locks

FILES = {"tiny-Q4_K_M.gguf": noise(300_000, 1), "config.json": b"{}\n"}
HEAD = """\
schema = 1
name = "mine"
[roles]
tool = ["good"]
fast = ["other"]
"""
MODEL = """\
[models.{id}]
repo = "{repo}"
license = "mit"
context = 4096
[[models.{id}.variants]]
format = "gguf"
quant = "Q4_K_M"
repo = "{repo}"
revision = "main"
files = ["*"]
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    with FaultyHub(FILES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def manifest(folder: Path, good: str, other: str) -> str:
    """A set of two models by their repositories; the path of its file."""
    path = folder / "mine.toml"
    path.write_text(HEAD + MODEL.format(id="good", repo=good) + MODEL.format(id="other", repo=other))
    return str(path)


# ---- lock --------------------------------------------------------------------------------------------


@pytest.mark.starts
def test_lock_writes_what_it_could_resolve_names_the_rest_and_ends_with_3(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, hub.repo, "acme/private")

    ended = main(["lock", path])

    printed = capsys.readouterr()
    written = locks.read(tmp_path / "mine.lock.json")
    assert ended == 3
    assert [(v.model, v.commit) for v in written.resolved] == [("good", COMMIT)]
    assert [v.model for v in written.variants] == ["good", "other"]
    assert "2 variants, 1 of them not resolved" in printed.out
    [line, *details] = printed.err[printed.err.index("tourkit: ") :].splitlines()
    assert "1 variant could not be resolved, the rest is written" in line
    assert len(details) == 1
    assert details[0].startswith("  other Q4_K_M: acme/private: no such repository")


@pytest.mark.starts
def test_lock_of_one_role_leaves_the_rest_of_the_lock_as_it_is(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, hub.repo, "acme/private")
    assert main(["lock", path, "--role", "tool"]) == 0
    before = (tmp_path / "mine.lock.json").read_bytes()
    capsys.readouterr()

    assert main(["lock", path, "--role", "tool", "--stack", "llama_cpp", "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["changes"] == []
    assert shown["unresolved"] == ["other Q4_K_M"]
    assert (tmp_path / "mine.lock.json").read_bytes() == before


@pytest.mark.starts
def test_a_lock_that_is_resolved_in_part_can_be_planned_and_fetched_in_part(hub: FaultyHub, tmp_path: Path) -> None:
    path = manifest(tmp_path, hub.repo, "acme/private")
    assert main(["lock", path]) == 3

    assert main(["prefetch", path, "--to", str(tmp_path / "bundle"), "--role", "tool"]) == 0
    assert main(["verify", str(tmp_path / "bundle")]) == 0
    assert main(["prefetch", path, "--to", str(tmp_path / "all")]) == 2
    machine = str(Path(__file__).parent / "machines" / "cpu-llama.json")  # so that nothing is measured
    assert main(["plan", path, "--role", "tool", "--machine", machine, "--vram", "0", "--stack", "llama_cpp"]) == 0


def test_lock_refuses_a_role_and_a_stack_that_there_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(tmp_path, "acme/a", "acme/b")

    assert main(["lock", path, "--role", "chef"]) == main(["lock", path, "--stack", "tensorflow"]) == 2

    said = capsys.readouterr().err
    assert "choose from fast, tool" in said
    assert "choose from llama_cpp" in said


# ---- prefetch and verify -----------------------------------------------------------------------------


@pytest.fixture
def fetched(hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The arguments of a prefetch that was done once, into the folder `bundle`."""
    path = manifest(tmp_path, hub.repo, hub.repo)
    arguments = ["prefetch", path, "--to", str(tmp_path / "bundle"), "--role", "tool"]
    assert main(["lock", path]) == main(arguments) == 0
    capsys.readouterr()
    return arguments


@pytest.mark.starts
def test_progress_ends_at_exactly_100_percent_after_a_damaged_file(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "bundle/models/good/Q4_K_M/tiny-Q4_K_M.gguf"
    weights.write_bytes(bytes(weights.stat().st_size))

    assert main(fetched) == 0

    percents = [int(found) for found in re.findall(r"^prefetch +(\d+) %", capsys.readouterr().err, flags=re.MULTILINE)]
    assert percents[-1] == max(percents) == 100


@pytest.mark.starts
def test_prefetch_carries_a_python_that_is_named(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks into the archive first; a dry run shows it; later runs without it leave it where it is."""
    archive = tmp_path / "cpython-3.12.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.addfile(tarfile.TarInfo("python/lib/python3.12/os.py"))
    (tmp_path / "other.tar.gz").write_bytes(b"no archive")
    capsys.readouterr()
    ended = [
        main([*fetched, "--python", str(tmp_path / "other.tar.gz")]),
        main([*fetched, "--python", str(archive), "--dry-run", "--json"]),
    ]
    shown = json.loads(capsys.readouterr().out)
    ended += [main([*fetched, "--python", str(archive)]), main(fetched), main(["verify", fetched[3]])]

    assert ended == [2, 0, 0, 0, 0]
    assert shown["python"] == [{"path": "python/cpython-3.12.tar.gz", "size": archive.stat().st_size}]
    assert (tmp_path / "bundle/python/cpython-3.12.tar.gz").read_bytes() == archive.read_bytes()


@pytest.mark.starts
def test_prefetch_and_verify_count_the_same_files_and_bytes(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fetched, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main(["verify", str(tmp_path / "bundle"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)

    there = [path.stat().st_size for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    assert whole["files"] == checked["checked_files"] == len(there)
    assert whole["bytes"] == checked["checked_bytes"] == sum(there)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told background jobs to ignore it
from tourkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one child")
@pytest.mark.starts
def test_ctrl_c_says_how_to_go_on(hub: FaultyHub, fetched: list[str], tmp_path: Path) -> None:
    (tmp_path / "bundle/models/good/Q4_K_M/tiny-Q4_K_M.gguf").unlink()
    hub.faults["tiny-Q4_K_M.gguf"] = Fault("stall", at=100_000)
    reached = threading.Event()
    sent = hub.sent_bytes
    hub.on_sent = lambda total: reached.set() if total > sent else None

    with subprocess.Popen([sys.executable, "-c", INTERRUPTED, *fetched], stderr=subprocess.PIPE, text=True) as child:
        assert reached.wait(60)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate()

    assert child.returncode == 130
    assert errors.splitlines()[-1] == "tourkit: interrupted: run the same command again, it resumes"


# ---- many problems -----------------------------------------------------------------------------------


def test_all_problems_of_a_manifest_follow_the_line_and_are_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('schema = 2\nname = "Bad Name"\nrolls = 1\n')

    ended = main(["prefetch", str(path), "--to", str(tmp_path / "out"), "--json"])

    printed = capsys.readouterr()
    [line, *details] = printed.err.splitlines()
    shown = json.loads(printed.out)
    assert ended == 2
    assert line.startswith(f"tourkit: {path}: ")
    assert line.endswith(f"(and {len(details) - 1} more)")
    assert shown == {"error": line.removeprefix("tourkit: "), "problems": [detail.strip() for detail in details]}
    assert all(detail.startswith("  ") for detail in details)
    assert {"schema", "name", "rolls", "roles"} <= {problem.split(":")[0] for problem in shown["problems"]}


@pytest.mark.starts
def test_every_file_that_could_not_be_fetched_is_listed(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, hub.repo, hub.repo)
    assert main(["lock", path]) == 0
    hub.refuse = (404, {})
    capsys.readouterr()

    ended = main(["prefetch", path, "--to", str(tmp_path / "out"), "--role", "tool", "--json"])

    printed = capsys.readouterr()
    assert ended == 3
    assert "(and 1 more)" in printed.err
    problems = json.loads(printed.out)["problems"]
    assert [name for problem in problems for name in FILES if name in problem] == ["config.json", "tiny-Q4_K_M.gguf"]


@pytest.mark.starts
def test_verify_gives_scripts_the_reason_of_every_problem(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, hub.repo, hub.repo)
    bundle = tmp_path / "bundle"
    assert main(["lock", path]) == main(["prefetch", path, "--to", str(bundle), "--role", "tool"]) == 0
    (bundle / "models/good/Q4_K_M/config.json").unlink()
    (bundle / "stray.txt").write_text("x")
    capsys.readouterr()

    ended = main(["verify", str(bundle), "--json"])

    printed = capsys.readouterr()
    assert ended == 1
    assert json.loads(printed.out)["problems"] == [
        {"path": "stray.txt", "kind": "extra", "detail": "not in the index"},
        {"path": "models/good/Q4_K_M/config.json", "kind": "missing", "detail": "not there"},
    ]

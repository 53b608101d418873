"""The command line as a contract: exit codes, one-line errors with a fix, JSON for scripts, a complete wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from serving import make_bundle
from template_names import NAMES

from tourkit.cli import main
from tourkit.commands.pipelines import _seconds
from tourkit.errors import UsageError
from tourkit.units import size_text

ROOT = Path(__file__).parent.parent


def tourkit(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tourkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, ""),
        (["--version"], 0, ""),
        ([], 2, "Usage: tourkit"),
        (["srve"], 2, "serve"),
        (["serve", "--prot", "1"], 2, "--port"),
        (["serve", "--port", "http"], 2, "--port"),
        (["lock", "no-such-set"], 2, "tour-20gb"),
        (["lock", "missing.toml"], 2, "missing.toml"),
        (["prefetch", "tour-20gb"], 2, "--to"),
        (["prefetch", "tour-20gb", "--to", "out"], 2, "run `tourkit lock"),
        (["prefetch", "cpu-16gb", "--to", "out", "--role", "chef"], 2, "chef"),
        (["prefetch", "cpu-16gb", "--to", "out", "--stack", "tensorflow"], 2, "tensorflow"),
        (["verify", "nowhere"], 2, "nowhere"),
        (["serve", "--bundle", "nowhere"], 2, "nowhere"),
        (["serve", "missing.gguf"], 2, "missing.gguf: no such file"),
        (["serve", "model.gguf", "--bundle", "nowhere"], 2, "give one of them"),
        (["plan", "--bundle", "nowhere"], 2, "nowhere"),
        (["plan", "cpu-16gb", "--role", "tol"], 2, "'tol': the manifest cpu-16gb has only brain"),
        (["mirror", "nowhere", "--host", "127.0.0.1", "--port", "0"], 2, "nowhere"),
        (["templates", "show", "poetry"], 2, "json_extraction"),
        (["run", "poetry", "--input", "a", "--output", "b"], 2, "json_extraction"),
        (["models", "--stack", "x"], 2, "llama_cpp"),
        (
            ["run", "json_extraction", "--input", "a", "--output", "b", "--url", "http://127.0.0.1:9"],
            4,
            "tourkit serve",
        ),
        (["run", "json_extraction", "--input", "a", "--output", "b", "--url", "ftp://x"], 4, "ftp"),
        (["run", "json_extraction", "--input", "a", "--output", "b", "--deadline", "soon"], 2, "90s"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)
@pytest.mark.starts
def test_exit_codes_and_messages(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    """An error is one line; only where there are several problems an indented list of all follows."""
    done = tourkit(*arguments, cwd=tmp_path)

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if code and arguments:
        assert done.stderr.startswith("tourkit: ")
        _, *details = done.stderr.splitlines()
        assert all(line.startswith("  ") for line in details), done.stderr
        assert len(details) != 1, "a list has several problems"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.starts
def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = tourkit("--debug", "verify", "nowhere", cwd=tmp_path)

    assert "Traceback" in done.stderr


@pytest.mark.starts
def test_a_port_that_is_taken_is_said_so(tiny_gguf: Path, tmp_path: Path) -> None:
    import socket

    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tourkit("serve", "--bundle", str(bundle), "--port", str(taken.getsockname()[1]))

    assert done.returncode == 4
    assert "--port" in done.stderr


@pytest.mark.starts
def test_the_bundle_is_found_in_the_environment_and_in_this_folder(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle", tiny_gguf)
    make_bundle(tmp_path / "elsewhere", tiny_gguf, quants=["Q8_0"])

    machine = str(Path(__file__).parent / "machines" / "cpu-llama.json")  # so that nothing is measured
    here = tourkit("plan", "--json", "--machine", machine, cwd=tmp_path)
    monkeypatch.setenv("TOURKIT_BUNDLE", str(tmp_path / "elsewhere"))
    there = tourkit("plan", "--json", "--machine", machine, cwd=tmp_path)

    assert json.loads(here.stdout)["placements"][0]["quant"] == "F16"
    assert json.loads(there.stdout)["placements"][0]["quant"] == "Q8_0"


@pytest.mark.starts
def test_verify_names_what_is_wrong_and_ends_with_1(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tiny_gguf)
    weights = bundle / "models/tiny-random/F16/tiny-random.gguf"
    raw = bytearray(weights.read_bytes())
    raw[1000] ^= 1
    weights.write_bytes(raw)
    (bundle / "stray.txt").write_text("x")

    done = tourkit("verify", str(bundle))
    as_json = tourkit("verify", str(bundle), "--json")
    quick = tourkit("verify", str(bundle), "--quick")

    assert done.returncode == as_json.returncode == quick.returncode == 1
    assert "damaged: models/tiny-random/F16/tiny-random.gguf" in done.stdout
    assert "extra: stray.txt" in done.stdout
    assert json.loads(as_json.stdout)["damaged"] == ["models/tiny-random/F16/tiny-random.gguf"]
    assert "damaged" not in quick.stdout


@pytest.mark.starts
def test_models_lists_the_catalogue_for_people_and_for_scripts() -> None:
    people, scripts = tourkit("models"), tourkit("models", "--json", "--stack", "onnx")

    assert "llama-3.1-8b-instruct" in people.stdout
    assert {model["id"] for model in json.loads(scripts.stdout)} == {"phi-3-mini-4k-instruct"}


@pytest.mark.starts
def test_a_dry_run_shows_totals_and_writes_nothing(tmp_path: Path) -> None:
    done = tourkit("prefetch", "cpu-16gb", "--to", str(tmp_path / "out"), "--dry-run", "--json")

    plan = json.loads(done.stdout)
    assert plan["to_fetch_bytes"] == plan["total_bytes"] == sum(file["size"] for file in plan["files"]) > 10**9
    assert not (tmp_path / "out").exists()


@pytest.mark.starts
def test_templates_are_listed_shown_and_copied(tmp_path: Path) -> None:
    listed = json.loads(tourkit("templates", "list", "--json").stdout)
    shown = tourkit("templates", "show", "json_extraction").stdout
    copied = tourkit("templates", "copy", "json_extraction", str(tmp_path / "mine"))
    again = tourkit("templates", "copy", "json_extraction", str(tmp_path / "mine"))

    assert [each["name"] for each in listed] == NAMES
    assert shown.startswith("#")
    assert copied.returncode == 0
    assert (tmp_path / "mine" / "json_extraction.py").is_file()
    assert again.returncode == 2
    assert "--force" in again.stderr


@pytest.mark.starts
def test_an_installed_wheel_is_complete_outside_a_checkout(tmp_path: Path) -> None:
    """It has manifests, templates, the bundle's skeleton and the demo's model, but no other weights and no caches."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")

    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import tourkit.cli; sys.exit(tourkit.cli.main())"
    )
    run = [sys.executable, "-I", "-c", code, "prefetch", "cpu-16gb", "--to", "x", "--dry-run"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "tourkit/_data/manifests/tour-20gb.lock.json" in names
    assert {f"tourkit/_data/templates/{name}/{name}.py" for name in NAMES} <= set(names)
    skeleton = ("START_HERE.md", "START_HERE.ru.md", "install.sh", "install.ps1", "install.py")
    assert {f"tourkit/_data/bundle/{name}" for name in skeleton} <= set(names)
    unwanted = ("__pycache__", ".gguf", ".safetensors", ".part")
    weights = [name for name in names if any(part in name for part in unwanted)]
    assert weights == ["tourkit/_data/weights/tiny/gguf/tiny-f16.gguf"]


def test_an_interrupt_ends_quietly_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tourkit.manifest.manifest.catalogue", interrupt)

    assert main(["models"]) == 130
    assert capsys.readouterr().err.strip() == "tourkit: interrupted"


def test_a_fault_of_our_own_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("tourkit.manifest.manifest.catalogue", break_)

    assert main(["models"]) == 4
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400), ("30", 30)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-5m", "0s", "5 minutes", ""])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        _seconds(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (2**42, "4096.0 GiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text

"""tools/gpu: the check on a machine with a GPU, as far as it goes without one, and what packs and reports it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from waiting import until

from tools.gpu import random_blocks, report, steps
from tools.gpu.findings import FAILED, MEMORY, OK, SKIPPED, SPEED, check, measured, of_json, skipped

ROOT = Path(__file__).parent.parent


def dry_run(
    out: Path, *options: str, environment: dict[str, str] | None = None
) -> tuple[int, str, list[dict[str, Any]]]:
    """Run the check without a GPU. Return its exit code, what it printed, and the steps of its JSON file."""
    command = [sys.executable, str(ROOT / "tools" / "gpu" / "check.py"), "--dry-run", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (path,) = out.glob("run-*.json")
    return done.returncode, done.stdout + done.stderr, json.loads(path.read_text())["steps"]


@pytest.mark.slow
@pytest.mark.starts
def test_a_dry_run_tries_every_step_up_to_the_gpu_and_says_what_it_skips(tmp_path: Path) -> None:
    code, printed, done = dry_run(tmp_path)

    assert code == 0, printed
    assert [step["name"] for step in done] == [step.name for step in steps.ALL]
    assert {step["state"] for step in done} <= {OK, SKIPPED}
    for what in ("three workers beside a ballast", "llama-server", "tourkit serve", "8b-q8_0, f16 KV cache, 4 x 4096"):
        assert f"skipped: {what} (a dry run starts nothing on a GPU)" in printed
    assert "ok: the described machine holds all three on its GPU" in printed
    assert "ok: the killed worker comes back" in printed


@pytest.mark.starts
def test_a_broken_step_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('broken on purpose')")

    code, printed, (step,) = dry_run(
        tmp_path / "runs", "--only", "import", environment=os.environ | {"PYTHONPATH": str(tmp_path)}
    )

    assert code == 1
    assert step["state"] == FAILED
    assert "broken on purpose" in printed


@pytest.mark.starts
def test_without_a_gpu_it_names_the_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu" / "check.py"), "--out", str(tmp_path)]

    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )

    assert done.returncode == 2
    assert "--dry-run" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_random_blocks_are_weights_of_about_the_usual_spread(tmp_path: Path, kind: str) -> None:
    size = random_blocks.write(random_blocks.TINY, kind, tmp_path / "model.gguf")

    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    spread = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).std() * int(tensor.shape[0]) ** 0.5
        for tensor in tensors
        if tensor.name.endswith(("ffn_down.weight", "attn_k.weight", "attn_output.weight", "output.weight"))
    }
    assert size == (tmp_path / "model.gguf").stat().st_size
    assert {tensor.tensor_type.name for tensor in tensors} == {"F32", kind} | ({"Q6_K"} if kind == "Q4_K" else set())
    assert len(spread) == 7
    assert all(0.9 < each < 1.1 for each in spread.values()), spread


# --- pack.sh --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository with pack.sh, the files that it leaves out, and archives, so that it downloads nothing."""
    root = tmp_path / "tree"
    for name in ("pack.sh", "packages.txt"):
        (root / "tools" / "gpu").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / "gpu" / name, root / "tools" / "gpu")
    (root / "build/gpu/site").mkdir(parents=True)
    shutil.copy(ROOT / "tools/gpu/packages.txt", root / "build/gpu/site")
    (root / "build/gpu/site.tar.xz").write_bytes(bytes(2 << 20))
    (root / "build/gpu/llama-plain.tar.xz").write_bytes(bytes(3 << 20))
    for name in ("onnx/model.onnx", "gguf/tiny-f16.gguf", "safetensors/model.safetensors"):
        (root / "weights/tiny" / name).parent.mkdir(parents=True)
        (root / "weights/tiny" / name).write_bytes(bytes(1 << 20))
    (root / ".gitignore").write_text("/build/\n")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def pack(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "tools/gpu/pack.sh", *command], cwd=tree, capture_output=True, text=True, check=False
    )


def is_whole(tree: Path) -> bool:
    asked = subprocess.run(["git", "ls-files", "--deleted"], cwd=tree, capture_output=True, text=True, check=True)
    return asked.stdout == "" and not (tree / "build/gpu/aside").exists()


@pytest.mark.starts
def test_pack_lists_what_travels_with_its_total_and_leaves_the_tree_as_it_was(tree: Path) -> None:
    done = pack(tree)

    assert done.returncode == 0, done.stderr
    assert "    3.0 MiB  build/gpu/llama-plain.tar.xz" in done.stdout
    assert "    6.0 MiB  in all, of 64 MiB" in done.stdout
    assert "carry these ignored paths: build/gpu/site.tar.xz build/gpu/llama-plain.tar.xz\n" in done.stdout
    assert is_whole(tree)


@pytest.mark.starts
def test_pack_refuses_more_than_64_mib_and_still_puts_everything_back(tree: Path) -> None:
    (tree / "build/gpu/llama-flash.tar.xz").write_bytes(bytes(62 << 20))

    done = pack(tree)

    assert done.returncode == 1
    assert "more than 64 MiB" in done.stderr
    assert is_whole(tree)


@pytest.mark.starts
def test_pack_moves_files_aside_while_its_command_runs_and_passes_on_how_that_ended(tree: Path) -> None:
    done = pack(tree, "sh", "-c", "ls weights/tiny; exit 7")

    assert done.returncode == 7
    assert done.stdout.endswith("\nsafetensors\n")
    assert is_whole(tree)


def interrupted(tree: Path, end: Callable[[subprocess.Popen[str]], None]) -> None:
    """Run pack.sh with a command that waits for its stdin, end it, and wait for it."""
    # Signals that this process ignores (under nohup, say) would be ignored by bash too.
    command = ["env", "--default-signal", "bash", "tools/gpu/pack.sh", "sleep", "600"]
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert any("carry these" in line for line in process.stdout)
        until(lambda: not (tree / "weights/tiny/onnx").exists())
        end(process)


@pytest.mark.starts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_pack_puts_everything_back_when_it_is_interrupted(tree: Path, number: signal.Signals) -> None:
    interrupted(tree, lambda process: process.send_signal(number))

    assert is_whole(tree)


@pytest.mark.starts
def test_what_a_killed_pack_left_aside_comes_back_at_the_next_call(tree: Path) -> None:
    interrupted(tree, lambda process: os.killpg(process.pid, signal.SIGKILL))
    was_whole = is_whole(tree)

    pack(tree)

    assert not was_whole
    assert is_whole(tree)


# --- the report -----------------------------------------------------------------------------------------------------


def run_of(*steps: dict[str, Any]) -> dict[str, Any]:
    gpu = {"name": "a described GPU", "total": 80 << 30}
    about = {"started": "2026-11-27 12:00", "processors": 16, "python": "3.12.3", "gpu": gpu, "llama": {}}
    return about | {"steps": list(steps)}


def step(name: str, *findings: Any, state: str = OK, why: str = "") -> dict[str, Any]:
    return {"name": name, "state": state, "why": why, "findings": [json.loads(each.to_json()) for each in findings]}


def test_the_report_shows_predicted_beside_measured_memory() -> None:
    page = report.render([run_of(step("m", measured("8b", MEMORY, predicted=11 << 30, measured=10 << 30)))])

    assert "| 8b | 11,264 | 10,240 | +1,024 MiB, +10.0 % |" in page


def test_the_report_shows_ratios_to_the_peers_with_as_many_sequences() -> None:
    peer = measured("llama-server", SPEED, sequences=4, **{"tokens/s": 200.0})
    other = measured("llama-server", SPEED, sequences=1, **{"tokens/s": 80.0})
    limit = measured("llama-batched-bench", SPEED, sequences=4, **{"tokens/s": 500.0, "decoding, tokens/s": 800.0})
    ours = measured("tourkit serve", SPEED, sequences=4, **{"tokens/s": 250.0})

    page = report.render([run_of(step("s", peer, other, limit, ours))])

    assert "| tourkit serve | 4 | 250.0 |  | 1.25 | 0.50 |" in page


def test_the_report_names_what_failed_and_what_was_skipped() -> None:
    broken = step("serving", check("three `roles` answer", False, "['fast']"), state=FAILED, why="a check failed")
    broken["stderr"] = ["Traceback", "OSError: no room"]
    late = step("packed-8b", state=SKIPPED, why="no time is left")

    page = report.render([run_of(broken, late, step("probe", skipped("torch", "not installed")))])

    assert (
        "## What failed\n\n- step serving: a check failed (OSError: no room)\n- three 'roles' answer: ['fast']\n"
        in page
    )
    assert "## What was skipped\n\n- step packed-8b: no time is left\n- torch: not installed\n" in page


def test_a_later_run_replaces_a_step_unless_it_skipped_it() -> None:
    first = run_of(step("a", check("first a", True)), step("b", check("first b", True)))
    second = run_of(step("a", check("second a", True)), step("b", state=SKIPPED, why="no time is left"))

    page = report.render([first, second])

    assert "second a" in page
    assert "first a" not in page
    assert "first b" in page


def test_a_finding_is_one_line_and_reads_back() -> None:
    finding = check("a\nb", False, "why", bytes=1 << 30)

    assert "\n" not in finding.to_json()
    assert of_json(finding.to_json()) == finding

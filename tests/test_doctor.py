"""`tourkit doctor` names what does not work on a machine, with the fix, and its exit code says whether anything fails.

Machines that are not here are described. A full drive, a taken port, a broken stack and a PATH without a compiler are
made.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import full_disk
import gguf
import pytest
import serving
import small_bundle

from tourkit.bundle.index import BundleAsset, read_index
from tourkit.bundle.verify import verify
from tourkit.checks import bundle as bundles
from tourkit.checks import guard_trial, loading, speed, system, wheels
from tourkit.checks.findings import Finding, Status, failure, of_message, ok, summary, warning
from tourkit.checks.machine import hardware_findings, stack_findings
from tourkit.checks.stack_trial import Trial
from tourkit.fetch.wheels.target import Target
from tourkit.hardware.disk import Reading, read_some
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.machine_file import read_machine
from tourkit.isolation.guard import GUARDS
from tourkit.launch import Launch
from tourkit.net import listen
from tourkit.planning.plan import Placement
from tourkit.units import GIB, MIB

ROOT = Path(__file__).parent.parent
LLAMA = InstalledStack("llama_cpp", "0.3.36")
VLLM = InstalledStack("vllm", "0.32.0", gpu="cuda 13.0", cpu=False)
HERE = Hardware(
    threads=8,
    ram=32 * GIB,
    stacks=(LLAMA,),
    glibc="2.35",
    cpu="x86-64-v3",
    system="linux",
    arch="x86_64",
    python="3.12",
)
SLICE = Gpu("MIG-1", "NVIDIA A100 MIG 2g.20gb", "cuda", 20 * GIB, 19 * GIB, (8, 0), mig=True)
VENUE = replace(HERE, gpus=(SLICE,), driver="13.0", compiler="gcc", python_headers=True)


def named(findings: Iterable[Finding], what: str) -> Finding:
    """Return the only finding on a thing."""
    [found] = [finding for finding in findings if finding.what == what]
    return found


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_last_line_counts_the_findings_and_names_what_failed() -> None:
    findings = [ok("memory", "much"), warning("drive", "slow", "copy"), failure("home", "full", "free some space")]

    assert summary(findings) == "doctor: 1 ok, 1 warning, 1 failure (home)"
    assert summary(findings[:1]) == "doctor: 1 ok, 0 warnings, 0 failures"


def test_a_message_of_tourkit_is_split_into_what_is_wrong_and_the_fix() -> None:
    assert of_message(Status.FAILURE, "bundle", "no folder x: give another") == failure(
        "bundle", "no folder x", "give another"
    )
    assert of_message(Status.FAILURE, "bundle", "it failed") == failure("bundle", "it failed", "")


# --- the machine -----------------------------------------------------------------------------------------------------


def test_a_gpu_is_shown_with_memory_capability_and_driver() -> None:
    gpu = named(hardware_findings(VENUE), "GPU")

    assert gpu.status is Status.OK
    for part in ("A100", "19.0 GiB of 20.0 GiB free", "compute capability 8.0", "MIG slice", "CUDA 13.0"):
        assert part in gpu.detail


def test_a_gpu_that_does_not_answer_is_a_warning_with_a_fix() -> None:
    problem = "libcuda.so.1: cuInit failed with code 999: no CUDA GPU is used; check it with `nvidia-smi`"
    found = named(hardware_findings(replace(HERE, problems=(problem,))), "GPU")

    assert found.status is Status.WARNING
    assert "cuInit failed with code 999" in found.detail
    assert "nvidia-smi" in found.fix


@pytest.mark.parametrize(
    ("machine", "status"),
    [
        (HERE, Status.OK),  # llama.cpp compiles nothing
        (replace(HERE, stacks=(VLLM,)), Status.OK),  # vLLM without a GPU neither
        (replace(VENUE, stacks=(VLLM,)), Status.OK),
        (replace(VENUE, stacks=(VLLM,), compiler=""), Status.WARNING),
        (replace(VENUE, stacks=(VLLM,), python_headers=False), Status.WARNING),
        (replace(VENUE, stacks=(LLAMA,), compiler=""), Status.OK),
    ],
)
def test_a_compiler_and_python_headers_are_asked_for_only_where_a_stack_compiles(
    machine: Hardware, status: Status
) -> None:
    found = named(hardware_findings(machine), "compiler")

    assert found.status is status
    assert ("python3-dev" in found.fix) is (status is Status.WARNING)


@pytest.mark.parametrize(("glibc", "status"), [("2.31", "ok"), ("2.28", "warning"), ("", "warning")])
def test_musl_and_an_old_glibc_are_warnings(glibc: str, status: str) -> None:
    found = named(hardware_findings(replace(HERE, glibc=glibc)), "system")

    assert found.status == status
    assert ("glibc 2.31" in found.fix) is (status == "warning")


# --- the stacks ------------------------------------------------------------------------------------------------------


def stack(machine: Hardware, trial: Trial | None = None) -> Finding:
    [found] = stack_findings(machine, {each.name: trial or Trial() for each in machine.stacks})
    return found


def test_a_stack_that_cannot_be_imported_is_a_failure_with_its_error() -> None:
    found = stack(HERE, Trial("cannot be imported (libcudart.so.12: cannot open shared object file): run install.sh"))

    assert (found.status, found.what) == (Status.FAILURE, "stack llama_cpp")
    assert "libcudart.so.12" in found.detail
    assert "install.sh" in found.fix


def test_a_stack_says_whether_it_uses_the_gpu() -> None:
    on_gpu = replace(LLAMA, gpu="cuda")
    found = {
        "no GPU": stack(HERE),
        "used": stack(replace(VENUE, stacks=(on_gpu,)), Trial(finds_gpu=True)),
        "built for the CPU": stack(VENUE, Trial(finds_gpu=False)),
        "finds none": stack(replace(VENUE, stacks=(on_gpu,)), Trial(finds_gpu=False)),
        "problem": stack(replace(VENUE, stacks=(replace(VLLM, problem="needs libcublas: install it"),))),
        "old driver": stack(replace(VENUE, stacks=(VLLM,), driver="12.4")),
    }

    assert found["no GPU"] == ok("stack llama_cpp", "0.3.36 on the CPU")
    assert found["used"] == ok("stack llama_cpp", "0.3.36 with cuda")
    wrong = ("built for the CPU", "finds none", "problem", "old driver")
    assert [found[name].status for name in wrong] == ["warning"] * 4
    assert "CUDA wheel" in found["built for the CPU"].fix
    assert "R580" in found["old driver"].fix
    assert "nvidia-smi" in found["finds none"].fix
    assert found["problem"] == warning("stack vllm", "needs libcublas", "install it")


def test_a_machine_without_a_stack_is_a_failure() -> None:
    assert stack(replace(HERE, stacks=())).status is Status.FAILURE


# --- the bundle ------------------------------------------------------------------------------------------------------


def targets(*names: str) -> tuple[Target, ...]:
    """Return the targets of the wheel lists with these names."""
    pool = "wheels/files/a-1-py3-none-any.whl"
    return tuple(wheels.targets_of([pool, *(f"wheels/{name}.txt" for name in names)]))


@pytest.mark.parametrize(
    ("machine", "name", "reason"),
    [
        (HERE, "cp312-manylinux_2_31_x86_64-cpu", ""),
        (HERE, "cp311-manylinux_2_31_x86_64-cpu", "this is Python 3.12"),
        (HERE, "cp312-manylinux_2_39_x86_64-cpu", "this is glibc 2.35"),
        (replace(HERE, glibc=""), "cp312-manylinux_2_31_x86_64-cpu", "this system has no glibc"),
        (HERE, "cp312-manylinux_2_31_aarch64-cpu", "this is linux x86_64"),
        (HERE, "cp312-macosx_14_0_arm64-cpu", "this is linux x86_64"),
        (replace(HERE, system="darwin", arch="arm64"), "cp312-macosx_14_0_arm64-cpu", ""),
        (replace(HERE, system="windows", arch="x86_64"), "cp312-win_amd64-cpu", ""),
        (replace(HERE, arch="arm64"), "cp312-manylinux_2_31_aarch64-cpu", ""),
        (HERE, "cp312-win_amd64-cpu", "this is linux x86_64"),
    ],
)
def test_wheels_fit_a_machine_or_the_reason_is_named(machine: Hardware, name: str, reason: str) -> None:
    [found] = targets(name)

    assert wheels.refusal(found, machine) == reason


def test_wheels_that_do_not_fit_are_a_failure_only_if_no_stack_is_installed_yet() -> None:
    bare = replace(HERE, stacks=())
    other = targets("cp311-manylinux_2_31_x86_64-cpu")
    [missing], [wrong], [not_needed] = (
        list(wheels.findings(*each)) for each in (((), bare), (other, bare), (other, HERE))
    )

    assert [missing.status, wrong.status, not_needed.status] == ["failure", "failure", "warning"]
    assert "cp311-manylinux_2_31_x86_64: this is Python 3.12" in wrong.detail
    assert "tourkit wheels cp312-manylinux_2_31_x86_64" in wrong.fix


def test_wheels_without_cuda_beside_a_gpu_are_a_warning() -> None:
    plain = list(wheels.findings(targets("cp312-manylinux_2_31_x86_64-cpu+onnx"), VENUE))
    both = targets("cp312-manylinux_2_31_x86_64-cpu", "cp312-manylinux_2_31_x86_64-cuda-llama")

    assert [finding.status for finding in plain] == ["ok", "warning"]
    assert "cuda-llama" in plain[1].fix
    assert [finding.status for finding in wheels.findings(both, VENUE)] == ["ok"]


def test_a_missing_file_of_the_bundle_is_named_and_an_extra_one_is_only_a_warning(tmp_path: Path) -> None:
    small_bundle.make_bundle(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    extra = bundles.files_finding(tmp_path)
    (tmp_path / "START_HERE.md").unlink()
    missing = bundles.files_of(tmp_path, verify(tmp_path, quick=True))

    assert (extra.status, missing.status) == (Status.WARNING, Status.FAILURE)
    assert "note.txt (extra)" in extra.detail
    assert "START_HERE.md (missing)" in missing.detail
    assert "note.txt" not in missing.detail
    assert "tourkit verify" in missing.fix


def test_a_folder_without_an_index_is_a_failure(tmp_path: Path) -> None:
    index, found = bundles.index_finding(tmp_path)

    assert index is None
    assert found.status is Status.FAILURE
    assert "tourkit prefetch" in found.fix


def test_a_bundle_that_fills_no_role_here_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    small_bundle.make_bundle(tmp_path)
    plan, found = bundles.plan_findings(tmp_path, read_index(tmp_path), replace(HERE, stacks=()))

    assert plan is None
    assert [finding.status for finding in found] == ["failure"]


def test_a_gpu_that_a_stack_does_not_use_has_one_line_and_not_a_second_one_among_the_notes_of_the_plan(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    bundle = serving.make_bundle(tmp_path, tiny_gguf)
    plan, found = bundles.plan_findings(bundle, read_index(bundle), VENUE)

    assert plan is not None
    assert any("does not use the GPU" in note for note in plan.notes)
    assert not any("does not use the GPU" in finding.detail for finding in found)


def test_what_a_stack_would_fetch_for_a_model_is_listed(tmp_path: Path) -> None:
    """The bundle has two models in safetensors without a tokenizer. One gets a tokenizer, and the type of gpt-oss."""
    folder = "models/old/BF16"
    harmony = {f"{folder}/config.json": b'{"model_type": "gpt_oss"}', f"{folder}/tokenizer.json": b"{}"}
    small_bundle.write_files(tmp_path, harmony)
    index = small_bundle.make_bundle(tmp_path)
    (tmp_path / "vocabularies").mkdir()
    (tmp_path / "vocabularies" / "o200k_base.tiktoken").write_bytes(b"")
    there = {"TIKTOKEN_ENCODINGS_BASE": str(tmp_path / "vocabularies")}

    missing, with_vocabulary = (list(bundles.would_fetch(tmp_path, index, each)) for each in ({}, there))

    assert [(each.owner, each.what) for each in missing] == [
        ("old BF16", "the vocabulary o200k_base.tiktoken"),
        ("old-2 BF16", "the tokenizer"),
    ]
    assert [each.owner for each in with_vocabulary] == ["old-2 BF16"]
    assert [each.status for each in bundles.fetch_findings(tmp_path, index, there)] == ["warning"]


def test_mistrals_own_tokenizer_file_is_none_for_the_stacks(tmp_path: Path) -> None:
    small_bundle.write_files(tmp_path, {"models/old/BF16/tekken.json": b"{}"})
    index = small_bundle.make_bundle(tmp_path)

    found = {each.owner: each.what for each in bundles.would_fetch(tmp_path, index, {})}

    assert found["old BF16"] == "the tokenizer (it has only tekken.json, which no stack here reads)"


def test_a_model_whose_architecture_the_installed_llama_cpp_does_not_know_is_a_failure(tmp_path: Path) -> None:
    weights = tmp_path / "new.gguf"
    writer = gguf.GGUFWriter(str(weights), "qwen9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    bundle = serving.make_bundle(tmp_path / "bundle", weights)

    [found] = bundles.architecture_findings(bundle, read_index(bundle))

    assert (found.what, found.status) == ("architecture", "failure")
    assert "tiny-random.gguf: the installed llama.cpp does not know the architecture 'qwen9'" in found.detail


def test_a_vocabulary_among_the_side_assets_is_not_fetched(tmp_path: Path) -> None:
    """It counts for the stack that needs it, and only while its file is there; a variable of the shell does not."""
    place = "assets/harmony/o200k_base.tiktoken"
    files = {"models/old/BF16/config.json": b'{"model_type": "gpt_oss"}', "models/old/BF16/tokenizer.json": b"{}"}
    small_bundle.write_files(tmp_path, files | {place: b"", "models/old-2/BF16/tokenizer.json": b"{}"})
    index = small_bundle.make_bundle(tmp_path)
    vocabulary = BundleAsset(place, "https://example.org/x", "TIKTOKEN_ENCODINGS_BASE", "folder", ("vllm",))
    elsewhere = {"TIKTOKEN_ENCODINGS_BASE": str(tmp_path)}

    def owners(asset: BundleAsset) -> list[str]:
        return [each.owner for each in bundles.would_fetch(tmp_path, replace(index, assets=(asset,)), elsewhere)]

    assert owners(vocabulary) == []
    assert owners(replace(vocabulary, stacks=("onnx",))) == ["old BF16"]
    (tmp_path / place).unlink()
    assert owners(vocabulary) == ["old BF16"]


def test_a_drive_that_needs_minutes_for_the_models_is_a_warning() -> None:
    slow = speed.finding(Reading(60 * MIB, 2.0, direct=True), 18 * GIB)
    fast = speed.finding(Reading(256 * MIB, 0.2, direct=True), 18 * GIB)

    assert (slow.status, fast.status) == (Status.WARNING, Status.OK)
    assert slow.detail == "31 MB/s; 18.0 GiB of models take about 10 min"
    assert "own disk" in slow.fix


def test_real_bytes_are_read_to_measure_a_drive(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(5 * MIB + 1))

    assert read_some(path).size == 5 * MIB + 1
    assert speed.measured(tmp_path / "absent", 1).status is Status.FAILURE


# --- loading ---------------------------------------------------------------------------------------------------------


def placement(path: Path, quant: str = "F16", roles: Sequence[str] = ("tool",), **more: Any) -> Placement:
    launch = Launch("tiny-random", "llama_cpp", str(path), slots=2, context=256, threads=1, quant=quant)
    return Placement(tuple(roles), launch, **more)


def test_every_link_of_every_chain_is_loaded_once_the_planned_ones_first(tmp_path: Path) -> None:
    shared, light = placement(tmp_path / "b"), placement(tmp_path / "c", "Q4_0")
    first = placement(tmp_path / "a", "Q8_0", roles=("brain",), fallbacks=(replace(shared, roles=("brain",)), light))

    links = loading.links((first, shared))

    assert [(link.placement.launch.quant, link.fallback_of) for link in links] == [
        ("Q8_0", ""),
        ("F16", ""),
        ("Q4_0", "tiny-random Q8_0 llama_cpp"),
    ]


def test_a_planned_variant_that_does_not_load_is_a_failure_and_a_fallback_a_warning(tmp_path: Path) -> None:
    broken = loading.Loaded("signal SIGKILL, maybe out of memory")
    found = [
        loading.finding(loading.Link(placement(tmp_path), of), outcome)
        for of, outcome in (("", broken), ("tiny Q8_0 llama_cpp", broken), ("", loading.Loaded("", 1.0, 0.5)))
    ]

    assert [finding.status for finding in found] == ["failure", "warning", "ok"]
    assert "fallback of tiny Q8_0 llama_cpp" in found[1].detail
    assert "--context 2048" in found[0].fix


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, {"choices": [{"message": {"content": '{"answer": "yes"}'}}]}, ""),
        (200, {"data": [{"embedding": [0.5]}]}, ""),
        (200, {"results": [{"relevance_score": 0.5}, {"relevance_score": 0.25}]}, ""),
        (200, {"results": [{"relevance_score": 0.5}]}, "loaded, but it ranked 1 of 2 texts"),
        (200, {"choices": [{"message": {"content": '{"answer": "maybe"}'}}]}, "breaks the schema"),
        (200, {"choices": [{"message": {"content": "yes"}}]}, "breaks the schema"),
        (503, {"error": {"message": "no memory"}}, "answers 503: no memory"),
    ],
)
def test_an_answer_has_to_follow_the_schema(status: int, body: Any, wrong: str) -> None:
    said = loading.wrong_with(status, json.dumps(body).encode())

    assert wrong in said
    assert bool(wrong) is bool(said)


@pytest.mark.starts
def test_a_planned_variant_that_cannot_be_loaded_is_named_and_its_fallback_still_tried(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    planned = placement(tmp_path / "none.gguf", "Q8_0", fallbacks=(placement(tiny_gguf),))

    failed, loaded = loading.findings((planned,))

    assert (failed.status, loaded.status) == (Status.FAILURE, Status.OK)
    assert "none.gguf" in failed.detail
    assert "answered in" in loaded.detail


# --- the system, for real --------------------------------------------------------------------------------------------


@pytest.mark.starts
def test_a_taken_port_is_named_and_the_port_of_the_fix_is_free() -> None:
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        found = system.port_finding(port)
    other = int(found.fix.rpartition(" ")[2].strip("`"))

    assert (found.status, found.what) == (Status.WARNING, f"port {port}")
    assert "Address already in use" in found.detail
    assert other != port
    assert system.port_finding(port).status is Status.OK
    with socket.socket() as free:
        free.bind(("127.0.0.1", other))


@pytest.mark.starts
def test_the_offline_guard_is_tried_in_a_process_of_its_own() -> None:
    answer = guard_trial.answer()

    parts = ("address_refused", "name_refused", "loopback")
    assert guard_trial.finding(answer).status is (Status.WARNING if answer["guard"] == "hook" else Status.OK)
    assert [guard_trial.finding(answer | {name: False}).status for name in parts] == ["failure"] * 3


def test_a_linux_that_allows_no_guard_of_the_kernel_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    answer = dict.fromkeys(("address_refused", "name_refused", "loopback"), True) | {"weaker": "no namespaces"}

    found = [guard_trial.finding(answer | {"guard": name}) for name in GUARDS]

    assert [each.status for each in found] == [Status.OK, Status.OK, Status.WARNING]
    assert found[2].detail.endswith("(no namespaces)")
    assert "native code" in found[2].detail


def doctor(*arguments: str, environment: dict[str, str], prefix: Sequence[str] = ()) -> tuple[int, dict[str, Any], str]:
    """Run `tourkit doctor --json`. Return its exit code, what it prints, and its stderr."""
    command = [*prefix, sys.executable, "-m", "tourkit", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.starts
def test_a_broken_stack_and_a_full_drive_without_exec_are_named_on_a_machine_without_a_compiler(tmp_path: Path) -> None:
    """One run has them all, because each run imports the stacks."""
    broken = tmp_path / "site" / "llama_cpp"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    (tmp_path / "no programs").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": str(tmp_path / "no programs"),
        "PYTHONPATH": f"{broken.parent}{os.pathsep}{ROOT}",
        "HOME": str(home),
    }

    code, report, errors = doctor(environment=environment, prefix=[sys.executable, full_disk.__file__, str(home)])
    no_drive = code == full_disk.NOT_ALLOWED
    if no_drive:
        code, report, errors = doctor(environment=environment)
    found = {each["what"]: each for each in report["checks"]}

    assert code == 1
    assert errors.startswith("tourkit: not ready, ")
    assert found["stack llama_cpp"]["status"] == "failure"
    assert "libcudart.so.12" in found["stack llama_cpp"]["detail"]
    assert "install.sh" in found["stack llama_cpp"]["fix"]
    assert found["compiler"]["status"] == "ok"
    assert found["compiler"]["detail"].startswith("none")
    if no_drive:
        pytest.skip(f"the rest holds; no drive can be mounted here: {errors}")
    assert found["home"]["status"] == "failure"
    assert "No space left on device" in found["home"]["detail"]
    assert "free some space" in found["home"]["fix"]
    assert found["exec in home"]["status"] == "warning"
    assert "install.sh /other/place" in found["exec in home"]["fix"]


@pytest.mark.starts
def test_a_good_bundle_is_loaded_and_the_report_is_a_machine_file(tiny_gguf: Path, tmp_path: Path) -> None:
    bundle = serving.make_bundle(tmp_path / "bundle", tiny_gguf)
    code, report, errors = doctor("--bundle", str(bundle), "--load", environment={})
    (tmp_path / "machine.json").write_text(json.dumps(report))
    found = {each["what"]: each["status"] for each in report["checks"]}

    assert (code, errors) == (0, "")
    assert read_machine(tmp_path / "machine.json").threads > 0
    assert found["load"] == found["bundle"] == found["bundle files"] == found["plan"] == "ok"
    assert "failure" not in found.values()

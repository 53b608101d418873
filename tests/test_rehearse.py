"""`tourkit rehearse` says go or no-go, and a no-go names the step: the missing file, or the call to the network.

The whole way to a go is in test_bundle_installs.py, which has a bundle with wheels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_bundle

from tourkit.bundle.build import build_index
from tourkit.bundle.index import Index, read_index, write_index
from tourkit.checks import answers, carried, installed, samples, steps, venue, wheels
from tourkit.checks import desk as desks
from tourkit.checks.answers import Answer
from tourkit.checks.findings import Finding, Status, failure, ok, warning
from tourkit.checks.steps import Result, Step
from tourkit.checks.venue import Venue
from tourkit.errors import EngineError, UsageError
from tourkit.hardware import memory_cap
from tourkit.hardware.cgroups import Files
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.isolation import trial
from tourkit.units import GIB, parse_size

ROOT = Path(__file__).parent.parent
PLANTED = str(Path(__file__).with_name("planted_calls.py"))
WHEEL = "wheels/files/openai-2.0-py3-none-any.whl"
TOKENIZER = "models/old/BF16/tokenizer.json"
VOCABULARY = "models/old/BF16/o200k_base.tiktoken"
CACHED = f"assets/tiktoken/{'fb37' * 10}"
CARRIED = {
    CACHED: b"IQ== 0\n",
    WHEEL: b"a wheel",
    "wheels/cp312-manylinux_2_31_x86_64-cpu.txt": b"openai==2.0 --hash=sha256:%b\n"
    % hashlib.sha256(b"a wheel").hexdigest().encode(),
    TOKENIZER: b"{}",
    VOCABULARY: b"IQ== 0\n",
    "install.sh": b"exit 0\n",
}
HERE = Hardware(
    threads=8, ram=32 * GIB, ram_free=30 * GIB, stacks=(InstalledStack("llama_cpp"),), system="linux", python="3.12"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    small_bundle.write_files(root, small_bundle.FILES | CARRIED)
    index_of(root)
    return root


def index_of(root: Path) -> Index:
    index = build_index(root, "small", small_bundle.ROLES, small_bundle.MODELS, small_bundle.VARIANTS)
    write_index(root, index)
    return index


def tourkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tourkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- what a bundle lacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "step"),
    [
        (WHEEL, "wheels"),
        (TOKENIZER, "tokenizers"),
        (VOCABULARY, "vocabularies"),
        (CACHED, "vocabularies"),
        ("models/old/BF16/model.safetensors", "weights"),
        ("templates/one/one.py", "template files"),
        ("START_HERE.md", "other files"),
    ],
)
def test_a_removed_file_fails_the_step_of_its_kind_and_no_other(bundle: Path, path: str, step: str) -> None:
    (bundle / path).unlink()

    found = list(carried.findings(bundle, read_index(bundle)))

    assert [(finding.what, f"{path} is missing") for finding in found if finding.status is Status.FAILURE] == [
        (step, next(finding.detail for finding in found if finding.what == step))
    ]


def test_a_flipped_byte_fails_its_step_and_an_extra_file_is_a_warning(bundle: Path) -> None:
    (bundle / TOKENIZER).write_bytes(b"{ ")
    (bundle / "wheels" / "files" / "brought.whl").write_bytes(b"x")

    found = {finding.what: finding for finding in carried.findings(bundle, read_index(bundle))}

    assert found["tokenizers"].status is Status.FAILURE
    assert found["tokenizers"].detail == f"{TOKENIZER} is damaged"
    assert found["wheels"].status is Status.WARNING
    assert "tourkit wheels --add" in found["wheels"].fix


def test_a_tokenizer_that_the_bundle_never_had_fails_if_a_planned_model_needs_it(bundle: Path) -> None:
    for path in (TOKENIZER, VOCABULARY):
        (bundle / path).unlink()
    index = index_of(bundle)

    needed = carried.fetched(bundle, index, {}, [("old BF16", "transformers"), ("tiny F16", "llama_cpp")])
    not_needed = carried.fetched(bundle, index, {}, [("tiny F16", "llama_cpp")])

    assert needed.finding.status is Status.FAILURE
    assert "would fetch the tokenizer for old BF16" in needed.finding.detail
    assert not_needed.finding.status is Status.OK


@pytest.mark.starts
@pytest.mark.parametrize("path", [WHEEL, TOKENIZER])
def test_the_command_names_the_step_of_a_removed_file_and_keeps_the_report_beside_the_bundle(
    bundle: Path, path: str
) -> None:
    """install.sh of this bundle installs nothing, so no step comes after it."""
    (bundle / path).unlink()
    step = carried.kind_of(path)

    done = tourkit("rehearse", "--bundle", str(bundle))

    report = json.loads((bundle.parent / "bundle-rehearsal.json").read_text())
    assert done.returncode == 1
    assert f"rehearse: no-go: the step {step} failed ({path} is missing)" in done.stderr
    assert report["verdict"] == "no-go"
    assert report["failed"][0] == step
    assert (installed.INSTALL in {each["what"] for each in report["steps"] if "not run" in each["detail"]}) is (
        step == "wheels"
    )


@pytest.mark.starts
def test_a_wheel_that_no_index_knows_fails_the_installation(bundle: Path) -> None:
    for name in ("install.sh", "install.py"):
        shutil.copy(ROOT / "bundle" / name, bundle / name)
    target = f"cp3{sys.version_info[1]}-{'manylinux_2_17' if sys.platform == 'linux' else 'macosx_11_0'}"
    lists = list((bundle / "wheels").glob("*.txt"))
    lists[0].rename(bundle / "wheels" / f"{target}_{os.uname().machine}-cpu.txt")
    (bundle / WHEEL).unlink()
    index_of(bundle)

    done = tourkit("rehearse", "--bundle", str(bundle), "--python", sys.executable, "--json")

    report = json.loads(done.stdout)
    assert report["failed"] == [installed.INSTALL]
    assert "SHA256SUMS has no line for" in report["steps"][-1]["detail"]


# --- calls to the network --------------------------------------------------------------------------------------------

_CALLS = {
    "calls_tcp": "socket.create_connection(('203.0.113.7', 443), timeout=0.05)",
    "calls_udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.7', 514))",
    "calls_dns": "socket.getaddrinfo('hub.example', 443)",
    "stays": "len(client.url)",
}
_TEMPLATE = '''"""A template that hides what it does."""
import contextlib
import socket

ROLE = "tool"


def run(document, client):
    with contextlib.suppress(Exception):
        {call}
    return {{"id": document["id"], "ok": True}}
'''


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of templates that work, and whose calls to the network cannot be seen in their records."""
    root = tmp_path_factory.mktemp("planted")
    for name, call in _CALLS.items():
        folder = root / "templates" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(_TEMPLATE.format(call=call))
        lines = [json.dumps({"id": str(number), "text": "x"}) for number in range(5)]
        (folder / "documents.jsonl").write_text("\n".join(lines))
    return root


def steps_of(planted: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, PLANTED, str(planted), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[:1]])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.starts
@pytest.mark.parametrize("kind", ["namespace", "guard"])
def test_a_template_that_hides_its_call_to_the_network_fails_its_step(planted: Path, kind: str) -> None:
    if kind == "namespace" and (refusal := trial.refusal()):
        pytest.skip(f"no namespaces here: {refusal}")

    found = steps_of(planted, kind)

    for name in ("calls_tcp", "calls_udp", "calls_dns"):
        step = found[f"template {name}"]
        assert step["status"] == "failure", step
        assert "tried to reach" in step["detail"]
        assert step["attempts"], step
    assert found["template stays"]["status"] == "ok", found["template stays"]
    assert "2 records from 2 documents of 5 samples" in found["template stays"]["detail"]
    if kind == "guard":
        assert "203.0.113.7:443, asked for by" in found["template calls_tcp"]["detail"]
        assert f"calls_tcp.py:{_TEMPLATE[: _TEMPLATE.index('{call}')].count(chr(10)) + 1}" in str(found)


def test_an_attempt_fails_a_step_that_went_well() -> None:
    step = steps.take("x", lambda: Result(ok("x", "fine")), lambda: {"UDP 192.0.2.53:53": 2})

    assert step.failed
    assert step.finding.detail == "tried to reach UDP 192.0.2.53:53"
    assert step.attempts == {"UDP 192.0.2.53:53": 2}


# --- the verdict -----------------------------------------------------------------------------------------------------


def step_of(finding: Finding) -> Step:
    return Step(finding, {}, 1.0, {})


def test_the_verdict_is_go_without_failures_and_names_the_first_failed_step_otherwise() -> None:
    good = [step_of(ok("plan", "all")), step_of(warning("drive", "slow", "copy"))]
    bad = [*good, step_of(failure("serve", "no memory", "")), steps.not_run("swap", "serve")]

    assert steps.verdict(good, 61.2) == "rehearse: go (1 step ok, 1 warning, 61 s)"
    assert steps.verdict(bad, 1) == "rehearse: no-go: the step serve failed (no memory)"
    assert steps.verdict([*bad, step_of(failure("x", "y", ""))], 1).endswith("; also failed: x")


def test_an_error_fails_the_step_in_which_it_happens() -> None:
    def raises() -> Result:
        raise EngineError("the worker ended: give it memory")

    step = steps.take("serve", raises, dict)

    assert step.finding == failure("serve", "the worker ended", "give it memory")


@pytest.mark.parametrize(
    ("answered", "status"), [([True, True], Status.OK), ([True, False], Status.WARNING), ([False], Status.FAILURE)]
)
def test_a_template_fails_only_if_no_document_gets_a_record(answered: list[bool], status: Status) -> None:
    records = [{"id": "1", "ok": good, "error": "no votes"} for good in answered]

    found = samples.judged("template one", records, 30).finding

    assert found.status is status
    assert "of 30 samples" in found.detail
    assert ("no votes" in found.detail) is (status is not Status.OK)


def test_the_first_role_of_each_model_that_takes_turns_waits_for_a_swap() -> None:
    workers = {
        "a": {"roles": ["brain", "fast"], "takes_turns": True},
        "b": {"roles": ["tool"], "takes_turns": True},
        "c": {"roles": ["graph"], "takes_turns": False},
    }

    assert answers.in_turn({"workers": workers}) == {"brain": True, "fast": False, "tool": True, "graph": False}


def test_swaps_are_timed_if_models_take_turns() -> None:
    assert answers.swap({}).finding.detail == "none: all models stay loaded"
    assert answers.swap({"brain": 4.0, "fast": 2.5}).figures == {"swap_s": 4.0}


@pytest.mark.parametrize(("tokens", "rate"), [(101, 50.0), (2, None)])
def test_the_speed_is_that_after_the_first_token_and_needs_enough_tokens(tokens: int, rate: float | None) -> None:
    assert Answer(1.0, 3.0, tokens).rate == rate


# --- the venue -------------------------------------------------------------------------------------------------------


def test_the_machine_file_says_what_the_options_leave_open() -> None:
    slice_ = Gpu("0", "A100 slice", "cuda", 20 * GIB, 19 * GIB)
    machine = replace(HERE, gpus=(slice_,), python="3.11")

    found = venue.venue(None, 16 * GIB, None, "", machine)

    assert found == Venue(20 * GIB, 16 * GIB, 8, "python3.11", machine)
    assert venue.venue(None, None, None, "", HERE).vram == 0
    assert venue.venue(None, None, None, "/opt/python", None) == Venue(python="/opt/python")
    with pytest.raises(UsageError, match="give a version"):
        venue.venue(None, None, None, "12", None)


def test_the_plan_is_for_the_venue_and_the_server_gets_no_more_than_it_has() -> None:
    there = replace(HERE, ram=16 * GIB, threads=4, stacks=(), cpu="x86-64-v2")
    found = venue.venue(None, None, None, "", there)

    assert venue.planned_machine(found, HERE) == replace(there, stacks=HERE.stacks)
    assert venue.served_machine(found, HERE) == replace(HERE, ram=16 * GIB, ram_free=16 * GIB, threads=4)
    assert venue.served_machine(Venue(ram=64 * GIB), HERE) == HERE


def test_what_the_venue_has_more_of_is_planned_for_and_said_to_be_missing() -> None:
    with_gpu = replace(HERE, gpus=(Gpu("0", "A100 slice", "cuda", 20 * GIB, 19 * GIB),))

    [gpu] = venue.shortages(Venue(vram=20 * GIB), HERE)
    [memory] = venue.shortages(Venue(ram=64 * GIB), HERE)

    assert (gpu.status, memory.status) == (Status.WARNING, Status.WARNING)
    assert "the plan is for a GPU of 20.0 GiB; the server runs with what is here: none" in gpu.detail
    assert "the plan is for 64.0 GiB; the server runs with what is here: 32.0 GiB" in memory.detail
    assert not list(venue.shortages(Venue(vram=20 * GIB, ram=32 * GIB), with_gpu))
    assert not list(venue.shortages(Venue(vram=0), HERE))
    assert not list(venue.shortages(Venue(), HERE))


@pytest.mark.parametrize("size", [0, 20 * GIB, 5 * GIB // 2])
def test_a_size_of_the_venue_is_written_as_the_other_commands_read_it(size: int) -> None:
    assert parse_size(venue.size_option(size)) == size


def test_wheels_for_another_python_than_the_venue_has_are_a_failure() -> None:
    carried_targets = tuple(wheels.targets_of(CARRIED))
    there = replace(HERE, glibc="2.35", arch="x86_64", python="3.12")

    assert installed.targets(carried_targets, there).finding.status is Status.OK
    refused = installed.targets(carried_targets, replace(there, python="3.13")).finding
    assert refused.status is Status.FAILURE
    assert "this is Python 3.13" in refused.detail
    assert "tourkit wheels cp313-manylinux_2_31_x86_64" in refused.fix


# --- this desk -------------------------------------------------------------------------------------------------------


def cgroup(root: Path, *, version: int) -> Files:
    """A cgroup that this process is in, as this user may write it."""
    own = root / ("memory/box" if version == 1 else "slice/terminal")
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    if version == 1:
        (own / "memory.limit_in_bytes").write_text("9223372036854771712")
    (root / "membership").write_text("4:memory:/box\n" if version == 1 else "0::/slice/terminal\n")
    return Files(root, membership=root / "membership")


@pytest.mark.parametrize(
    ("version", "folder", "name"),
    [(1, "memory/box", "memory.limit_in_bytes"), (2, "slice", "memory.max")],
)
def test_the_memory_cap_is_a_cgroup_of_its_own_for_the_time_of_the_rehearsal(
    tmp_path: Path, version: int, folder: str, name: str
) -> None:
    """Version 2 allows no cgroup below one with processes, so the new one stands beside it."""
    files = cgroup(tmp_path, version=version)
    made = tmp_path / folder / f"tourkit-{os.getpid()}"

    with memory_cap.capped(4 * GIB, files) as cap:
        assert not cap.refusal
        assert (made / name).read_text() == str(4 * GIB)
        assert (made / "cgroup.procs").read_text() == str(os.getpid())

    own = tmp_path / files.membership.read_text().strip().rpartition(":/")[2]
    back = own if version == 2 else tmp_path / "memory" / "box"
    assert (back / "cgroup.procs").read_text() == str(os.getpid())


def test_without_a_cgroup_that_can_be_made_only_the_planner_is_told(tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/elsewhere\n")

    with memory_cap.capped(4 * GIB, Files(tmp_path, membership=tmp_path / "membership")) as cap:
        assert cap.refusal


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_processors_are_limited_for_the_time_of_the_rehearsal() -> None:
    before = os.sched_getaffinity(0)
    with desks._processors(1) as found:
        assert len(os.sched_getaffinity(0)) == 1
        assert found.status is Status.OK
    assert os.sched_getaffinity(0) == before
    with desks._processors(len(before) + 1) as found:
        assert found.status is Status.WARNING
        assert os.sched_getaffinity(0) == before


def test_nothing_of_this_user_gets_into_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "PYTHONPATH", "VIRTUAL_ENV", "PIP_INDEX_URL", "HTTPS_PROXY", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "mine")

    made = desks._environment(tmp_path)

    assert "mine" not in made.values()
    assert (made["HOME"], made["PIP_NO_INDEX"]) == (str(tmp_path / "home"), "1")

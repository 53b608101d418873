"""The promise of the bundle: on a machine with only Python, its own first page leads to answers.

The bundle has the tiny model and real wheels for this machine, so this test asks the package index once. What follows
runs where there is no network, no compiler and an empty home, under the kernel's trace.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackagePath, PathDistribution, distribution
from pathlib import Path
from typing import Any

import page_runner
import pytest
from mirroring import tiny_hub
from netless import NOT_ALLOWED
from template_names import NAMES, TAUGHT

from tourkit.net import is_loopback

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "bundle" / "START_HERE.md"
NETLESS = str(Path(__file__).with_name("netless.py"))
# What any Linux has, and what the page uses: no compiler, no pip.
TOOLS = "bash basename cat curl cut dirname grep gzip head mkdir rm sed sh sha256sum shasum sleep sort tar tr".split()
COMPILERS = re.compile(r"/(?:cc|c\+\+|cpp|gcc|g\+\+|clang|clang\+\+|cc1|cc1plus|ld|make|ninja|cmake|nvcc)(?:-[\d.]+)?$")

pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs a network namespace of Linux"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no system calls to look at"),
]


def tourkit(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tourkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub that has the tiny model."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with tiny_hub(folder) as url:
        yield url


class WithoutDoubles(PathDistribution):
    """An installed llama-cpp-python without the libraries and headers that some builds put beside the package again."""

    @property
    def files(self) -> list[PackagePath]:
        return [file for file in super().files or [] if file.parts[0] not in ("lib", "include")]


@pytest.fixture
def bundle(hub: str, tmp_path: Path) -> Path:
    """A bundle of the tiny model with wheels for this machine. It was moved: nothing in it may know its path.

    llama.cpp's wheel is the one that is installed here, packed again.
    """
    pytest.importorskip("uv", reason="the extra `supply` is not installed: no wheels can be chosen")
    from tourkit.fetch.wheels.own_wheel import pack

    work = tmp_path / "made"
    work.mkdir()
    (work / "tiny.toml").write_bytes((ROOT / "manifests" / "tiny.toml").read_bytes())
    (work / "tiny.lock.json").write_bytes((ROOT / "manifests" / "tiny.lock.json").read_bytes())
    installed = distribution("llama-cpp-python")
    about = installed.locate_file(f"llama_cpp_python-{installed.version}.dist-info")
    llama = pack(WithoutDoubles(Path(str(about))), work)
    fetched = tourkit("prefetch", "tiny.toml", "--to", "bundle", "--stack", "llama_cpp", cwd=work, HF_ENDPOINT=hub)
    collected = tourkit("wheels", "here", "--bundle", "bundle", "--wheel", str(llama), cwd=work)
    if collected.returncode == 3:
        pytest.skip(f"the package index cannot be asked: {collected.stderr.strip()}")
    assert (fetched.returncode, collected.returncode) == (0, 0), fetched.stderr + collected.stderr
    return (work / "bundle").rename(tmp_path / "usb drive")


@dataclass(frozen=True, slots=True)
class Followed:
    """What came of following the page: what was printed, the home folder, and the kernel's trace."""

    printed: str
    home: Path
    trace: str


def script(bundle: Path) -> str:
    """The sh blocks of the page in its order. The server runs in the background, and at last every taught template."""
    blocks = [
        body for language, body in page_runner.BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "sh"
    ]
    serve = "tourkit serve --bundle "
    lines = ["set -e"]
    for line in "".join(blocks).splitlines():
        if line == "BUNDLE=/media/usb/bundle":
            lines.append(f"BUNDLE='{bundle}'")
        elif line.startswith(serve):
            lines += [f"{line} > serve.log 2>&1 &", "until grep -q ^ready: serve.log; do kill -0 $!; sleep 0.1; done"]
        else:
            lines.append(line)
    assert any(serve in line for line in lines)
    for name in TAUGHT:
        lines += [f"head -n 1 '{ROOT}/weights/tiny/documents/{name}/documents.jsonl' > {name}.jsonl"]
        lines += [f"tourkit run {name} --input {name}.jsonl --output {name}.out.jsonl"]
    return "\n".join([*lines, "kill $!", "wait", ""])


def follow(bundle: Path, folder: Path) -> Followed:
    """Follow the page on a machine whose home is `folder`/home and whose programs are Python and TOOLS."""
    home, programs = folder / "home", folder / "bin"
    home.mkdir()
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not installed"))
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    for step in page_runner.steps(PAGE.read_text(encoding="utf-8")):
        if isinstance(step, page_runner.File):
            (home / step.name).write_text(step.text, encoding="utf-8")
    (folder / "follow.sh").write_text(script(bundle))
    trace = ["--seccomp-bpf", "-e", "trace=execve,connect,sendto,sendmsg", "-o", str(folder / "trace")]
    command = [shutil.which("strace") or "", "-f", "-qq", *trace, sys.executable, NETLESS, "bash", "../follow.sh"]
    environment = {"PATH": str(programs), "HOME": str(home), "PIP_NO_INDEX": "1", "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == NOT_ALLOWED:
        pytest.skip(f"this system allows no network namespaces: {done.stderr.strip()}")
    log = home / "serve.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    return Followed(done.stdout, home, (folder / "trace").read_text(errors="replace"))


def answers(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that the text begins with. The server ends its answers without a new line."""
    while text.startswith("{"):
        answer, end = json.JSONDecoder().raw_decode(text)
        yield answer
        text = text[end:].lstrip()


def check_answers(followed: Followed, bundle: Path) -> None:
    """Every command of the page did what the page says, and every taught template gave a right record."""
    lines = followed.printed.splitlines()
    printed = list(answers(followed.printed[followed.printed.index('{"object"') :]))
    assert f'  tourkit serve --bundle "{bundle}" --offline' in lines
    assert any(re.fullmatch(rf"{re.escape(str(bundle))}: \d+ files right, .* read", line) for line in lines)
    assert {"brain", "fast", "tool", "graph"} <= {each["id"] for each in printed[0]["data"]}
    assert isinstance(printed[1]["choices"][0]["message"]["content"], str)
    assert list(printed[2]) == ["colours"]
    assert len((followed.home / "out.jsonl").read_text().splitlines()) == 3
    for name in TAUGHT:
        records = [json.loads(line) for line in (followed.home / f"{name}.out.jsonl").read_text().splitlines()]
        assert [record["ok"] for record in records] == [True], records


def check_trace(trace: str) -> None:
    """No process asked for an address outside the machine, and no compiler was called."""
    addresses = re.findall(r'sin6?_addr=inet_[a-z]+\([^"]*"([^"]+)"', trace)
    addresses += re.findall(r'inet_addr\("([^"]+)"', trace)
    started = re.findall(r'execve\("([^"]+)"', trace)
    assert addresses, "the requests to the server are in the trace"
    assert [address for address in addresses if not is_loopback(address)] == []
    assert any(path.endswith("/python3") for path in started)
    assert [path for path in started if COMPILERS.search(path)] == []


def check_rehearsal(bundle: Path) -> None:
    """`tourkit rehearse` says go, every role is measured, and no step reached for a network."""
    done = tourkit("rehearse", "--bundle", str(bundle), "--python", sys.executable, "--json", cwd=bundle.parent)
    report = json.loads(done.stdout)
    steps = {step["what"]: step for step in report["steps"]}
    assert (report["verdict"], done.returncode) == ("go", 0), report
    for role in ("brain", "fast", "tool", "graph"):
        assert {"first_token_s", "tokens_per_s"} <= steps[f"role {role}"]["figures"].keys()
    assert steps["serve"]["figures"]["cold_start_s"] > 0
    assert {f"template {name}" for name in NAMES} <= steps.keys()
    assert not any(step["attempts"] for step in report["steps"])
    assert json.loads(bundle.with_name(f"{bundle.name}-rehearsal.json").read_text(encoding="utf-8")) == report


def test_the_first_page_of_a_bundle_leads_to_answers_without_a_packet_and_without_a_compiler(
    bundle: Path, tmp_path: Path
) -> None:
    """One test, since each step needs the one before it. The bundle stays as it was."""
    followed = follow(bundle, tmp_path)

    check_answers(followed, bundle)
    check_trace(followed.trace)
    check_rehearsal(bundle)
    assert tourkit("verify", str(bundle), cwd=tmp_path).returncode == 0

"""The portable wheel of llama.cpp: it runs on emulated older processors, needs glibc 2.31, and holds no AMX.

`make test-portable` builds it, which takes ten minutes, and sets TOURKIT_PORTABLE_WHEELS. Without it these tests are
skipped. The processors are emulated by qemu-x86_64 of Debian's package qemu-user. `-cpu Nehalem` has no AVX, and
`-cpu Haswell` has AVX2 and no AVX-512.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tourkit.data import TINY_GGUF
from tourkit.fetch.wheels.architectures import unknown_architectures
from tourkit.fetch.wheels.llama import VARIANTS, built_wheel
from tourkit.fetch.wheels.looking import look_into, refusal, remarks
from tourkit.fetch.wheels.target import here, parse_target

ROOT = Path(__file__).resolve().parents[1]
WHEELS = os.environ.get("TOURKIT_PORTABLE_WHEELS")
QEMU = shutil.which("qemu-x86_64")

pytestmark = [
    pytest.mark.starts,
    pytest.mark.slow,
    pytest.mark.skipif(not WHEELS, reason="no portable wheel: `make test-portable` builds it and runs these tests"),
]

# Decodes eight tokens greedily, and prints them and the CPU libraries that are loaded.
DECODE = """
import json, sys
from pathlib import Path
from tourkit.backends.llama_cpp.runner import LlamaRunner

runner = LlamaRunner(Path(sys.argv[1]), slots=1, context=64, threads=1)
token, tokens = 5, []
for pos in range(8):
    row = runner.add(token, pos, 0, logits=True)
    assert runner.decode()
    token = int(runner.logits(row).argmax())
    tokens.append(token)
maps = Path("/proc/self/maps").read_text().split()
libraries = sorted({Path(each).name for each in maps if "libggml-cpu" in each})
print(json.dumps([tokens, libraries]))
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = built_wheel(here(("cpu",)), Path(WHEELS or ""))
    assert found is not None, f"{WHEELS} has no portable wheel of this version and recipe: run `make portable-wheel`"
    return found


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def decode(unpacked: Path, cwd: Path, *emulator: str) -> str:
    """Decode the tiny model with the unpacked wheel in one process. Return what it prints."""
    environment = os.environ | {"PYTHONPATH": f"{unpacked}:{ROOT}"}
    command = [*emulator, sys.executable, "-c", DECODE, str(TINY_GGUF)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64: install Debian's package qemu-user")
@pytest.mark.parametrize(("processor", "variant"), [("Nehalem", "sse42"), ("Haswell", "haswell")])
def test_it_decodes_on_an_older_processor_with_the_library_for_it(
    unpacked: Path, tmp_path: Path, processor: str, variant: str
) -> None:
    assert QEMU is not None
    printed = decode(unpacked, tmp_path, QEMU, "-cpu", processor)

    assert f'["libggml-cpu-{variant}.so"]' in printed
    assert printed.count(",") == 8  # eight tokens and one library


def test_here_it_decodes_and_takes_no_library_from_the_current_directory(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "libggml-cpu-zen4.so").write_bytes(b"not a library")
    (tmp_path / "libggml-cpu.so").write_bytes(b"not a library")

    assert "libggml-cpu-" in decode(unpacked, tmp_path)


def test_it_runs_on_every_linux_from_glibc_2_31_on_and_on_processors_without_avx(wheel: Path) -> None:
    target = parse_target("cp311-manylinux_2_31_x86_64")
    if "manylinux_2_31" not in wheel.name:
        pytest.skip(f"{wheel.name} was built without ziglang")

    assert refusal(wheel, target, {"pni", "ssse3"}) is None
    assert remarks(wheel) == []


def test_it_holds_a_library_for_each_kind_of_processor_and_none_with_amx(wheel: Path) -> None:
    libraries = look_into(wheel).cpu_libraries

    assert libraries.keys() == {f"libggml-cpu-{variant}.so" for variant in VARIANTS}
    assert "avx512f" in libraries["libggml-cpu-zen4.so"]
    assert not any("amx" in flag for flags in libraries.values() for flag in flags)
    with zipfile.ZipFile(wheel) as archive:
        code = [archive.read(name) for name in archive.namelist() if "/libggml-cpu-" in name]
    assert not any(b"ggml_backend_amx_buffer_type" in each for each in code)


def test_it_holds_each_library_once_and_nothing_beside_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        recorded = {line.rpartition(",")[0].rpartition(",")[0] for line in record(archive, names)}

    assert {name.partition("/")[0] for name in names} == {"llama_cpp", names[-1].partition("/")[0]}
    assert {Path(name).name for name in names if ".so" in name} == {
        "libllama.so",
        "libggml.so",
        "libggml-base.so",
        *(f"libggml-cpu-{variant}.so" for variant in VARIANTS),
    }
    assert recorded == {name for name in names if not name.endswith("/")}


def record(archive: zipfile.ZipFile, names: list[str]) -> list[str]:
    (name,) = (each for each in names if each.endswith(".dist-info/RECORD"))
    return archive.read(name).decode().splitlines()


def test_its_llama_cpp_knows_the_architecture_of_the_tiny_model(wheel: Path) -> None:
    assert unknown_architectures(wheel, [TINY_GGUF]) == []

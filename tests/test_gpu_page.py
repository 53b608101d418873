"""The commands of docs/gpu-wheels.md that collect wheels, against a package index on loopback with small wheels."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import page_runner
import pytest
import small_bundle
from wheel_index import WheelIndex, make_wheel, only_index

from tourkit.bundle.build import build_index
from tourkit.bundle.index import write_index
from tourkit.bundle.verify import verify
from tourkit.cli import main

pytestmark = pytest.mark.starts

PAGE = Path(__file__).parent.parent / "docs" / "gpu-wheels.md"
LLAMA = make_wheel("llama-cpp-python", "0.3.36", tag="py3-none-linux_x86_64")
CUDA_12 = [make_wheel("nvidia-cublas-cu12", "12.4.5.8"), make_wheel("nvidia-cuda-runtime-cu12", "12.4.127")]
CUDA_13 = [
    make_wheel("nvidia-cublas", "13.0.2.14", tag="py3-none-manylinux_2_27_x86_64"),
    make_wheel("nvidia-cuda-runtime", "13.0.96", tag="py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64"),
]
TOURKIT = make_wheel("tourkit", "9.0", requires=["llama-cpp-python; extra == 'llama'"], extras=["llama"])
CUDA_LIST = "wheels/cp312-manylinux_2_35_x86_64-cuda-llama.txt"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WheelIndex]:
    """A package index that pip's variables name, and no other setting of the developer's."""
    wheels = dict([*CUDA_12, make_wheel("openai", "3.1"), make_wheel("pip", "30.0")])
    with only_index(wheels, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle without weights: nothing asks llama.cpp whether it knows a model."""
    root = tmp_path / "bundle"
    small_bundle.write_files(root, {"START_HERE.md": b"# start\n"})
    write_index(root, build_index(root, "small", {}, (), ()))
    return root


def commands() -> list[str]:
    """The lines of the page that call `tourkit wheels`, in its order."""
    blocks = [
        body for language, body in page_runner.BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "sh"
    ]
    lines = re.sub(r"\\\n", " ", "".join(blocks)).splitlines()
    return [line for line in lines if line.startswith("tourkit wheels ")]


def test_every_command_gives_the_list_that_the_page_promises(
    index: WheelIndex, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that the page names are in the current folder. tourkit's own wheel is given too, to build none."""
    for name, content in (LLAMA, TOURKIT, *CUDA_13):
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    lists = []
    with WheelIndex(dict([LLAMA])) as upstream:
        for line in commands():
            words = shlex.split(line.replace("/media/usb/bundle", str(bundle)).replace("$URL", upstream.simple))[1:]
            given = [] if "cuda-llama" in line else ["--wheel", LLAMA[0]]  # the set cpu would build it
            assert main([*words, "--wheel", TOURKIT[0], *given]) == 0, line
            lists.append((bundle / CUDA_LIST).read_text())

    from_index, from_file, _, of_13 = lists
    assert from_index == from_file
    assert "nvidia-cuda-runtime-cu12==12.4.127 " in from_file
    assert "nvidia-cublas==13.0.2.14 " in of_13
    assert "nvidia-cuda-runtime==13.0.96 " in of_13
    assert (bundle / "wheels/cp312-manylinux_2_31_x86_64-cpu.txt").is_file()
    assert verify(bundle).ok

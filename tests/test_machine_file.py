"""A machine can be written as JSON and read on another one; a wrong file is refused with its key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tourkit.errors import UsageError
from tourkit.hardware.machine import Bandwidth, Gpu, Hardware, InstalledStack, Kernel
from tourkit.hardware.machine_file import machine_json, read_machine

GIB = 2**30
SLICE = Gpu("MIG-1", "NVIDIA A100-SXM4-80GB MIG 2g.20gb", "cuda", 20 * GIB, 19 * GIB, (8, 0), mig=True, bandwidth=5)
VENUE = Hardware(
    threads=16,
    ram=64 * GIB,
    gpus=(SLICE,),
    stacks=(InstalledStack("llama_cpp", "0.3.36", "cuda 12.4"), InstalledStack("onnx", problem="cannot be imported")),
    problems=("libamdhip64.so: hipInit failed with code 100",),
    driver="12.4",
    compiler="cc",
    python_headers=True,
    glibc="2.35",
    cpu="x86-64-v3",
    system="linux",
    arch="x86_64",
    python="3.12",
    bandwidth=(Bandwidth(8 << 20, 40_000_000_000), Bandwidth(512 << 20, 20_000_000_000)),
    kernels=(Kernel("Q4_K", 20_000_000_000, 90_000_000_000),),
    disk=1_000_000_000,
)


def written(folder: Path, raw: object) -> Path:
    (folder / "venue.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return folder / "venue.json"


@pytest.mark.parametrize("hardware", [VENUE, Hardware(threads=1, ram=GIB)], ids=["all", "least"])
def test_what_is_written_is_read_back(tmp_path: Path, hardware: Hardware) -> None:
    raw = machine_json(hardware)

    assert read_machine(written(tmp_path, raw)) == hardware
    assert read_machine(written(tmp_path, {"machine": raw, "placements": []})) == hardware


def test_what_a_hand_leaves_out_has_its_usual_value(tmp_path: Path) -> None:
    assert read_machine(written(tmp_path, {"threads": 4, "ram": GIB})) == Hardware(threads=4, ram=GIB)


GPU = {"id": "0", "name": "T", "runtime": "cuda", "total": 1, "free": 1}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("{", "not JSON"),
        ([], "the file: not an object"),
        ({"ram": 1}, "threads: missing"),
        ({"threads": 1, "ram": 1, "vram": 3}, "vram: unknown key: use threads, ram"),
        ({"threads": "4", "ram": 1}, "threads: '4': give a whole number"),
        ({"threads": True, "ram": 1}, "threads: True: give a whole number"),
        ({"threads": 1, "ram": -1}, "ram: -1: give a whole number of at least 0"),
        ({"threads": 1, "ram": 1, "ram_free": "x"}, "ram_free: 'x': give a whole number"),
        ({"threads": 1, "ram": 1, "gpus": {}}, "gpus: {}: give a list"),
        ({"threads": 1, "ram": 1, "gpus": [GPU | {"capability": [8]}]}, r"gpus\[0\].capability: \[8\]: give two"),
        ({"threads": 1, "ram": 1, "gpus": [GPU, GPU | {"total": "20GiB"}]}, r"gpus\[1\].total: '20GiB'"),
        ({"threads": 1, "ram": 1, "stacks": [{"version": "1"}]}, r"stacks\[0\].name: missing"),
        (
            {"threads": 1, "ram": 1, "stacks": [{"name": "llama.cpp"}]},
            r"stacks\[0\].name: 'llama.cpp': unknown stack: use llama_cpp, vllm",
        ),
        ({"threads": 1, "ram": 1, "gpus": [GPU | {"runtime": "CUDA"}]}, r"gpus\[0\].runtime: 'CUDA': unknown runtime"),
        ({"threads": 1, "ram": 1, "bandwidth": 3}, "bandwidth: 3: give a list"),
        ({"threads": 1, "ram": 1, "bandwidth": [{"size": 1}]}, r"bandwidth\[0\].rate: missing"),
        ({"threads": 1, "ram": 1, "kernels": [{"type": "Q4_K", "one": 1, "many": "x"}]}, r"kernels\[0\].many: 'x'"),
        ({"threads": 1, "ram": 1, "disk": "fast"}, "disk: 'fast': give a whole number"),
        ({"threads": 1, "ram": 1, "problems": [3]}, r"problems\[0\]: 3: give a text"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(tmp_path: Path, raw: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as refused:
        read_machine(written(tmp_path, raw))

    assert "venue.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.json: cannot be read \(.*\): make it with"):
        read_machine(tmp_path / "none.json")

"""The rates of this machine are measured: memory here, llama.cpp's kernels in a process of their own, and a disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tourkit.hardware import bandwidth, rates
from tourkit.hardware.gpu_bandwidth import bandwidth as gpu_bandwidth
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.rates import with_rates
from tourkit.stacks import STACKS
from tourkit.units import GIB, MIB

HERE = Hardware(1, 4 * GIB, stacks=tuple(map(InstalledStack, STACKS)))
PRINTS = "import json; print(json.dumps({'kernels': [{'type': 'Q4_K', 'one': 2, 'many': 9}]}))"


@pytest.fixture(autouse=True)
def small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_SIZES", (1 * MIB, 2 * MIB))
    monkeypatch.setattr(bandwidth, "_SECONDS", 0.0)


def test_each_size_of_a_block_has_its_bandwidth() -> None:
    found = bandwidth.measured(2, 4 * GIB)

    assert [each.size for each in found] == [1 * MIB, 2 * MIB]
    assert all(each.rate > 0 for each in found)


def test_little_free_memory_is_measured_with_small_blocks_only() -> None:
    assert [each.size for each in bandwidth.measured(1, 8 * MIB)] == [1 * MIB]
    assert [each.size for each in bandwidth.measured(1, 1)] == [1 * MIB]


def test_a_block_that_threads_do_not_divide_is_measured() -> None:
    assert len(bandwidth.measured(3, 4 * GIB)) == 2


@pytest.mark.starts
def test_kernels_are_what_the_process_says_and_the_disk_is_that_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(MIB))

    found = with_rates(HERE, tmp_path / "weights", llama_speed=(sys.executable, "-c", PRINTS))

    assert [(each.type, each.one, each.many) for each in found.kernels] == [("Q4_K", 2, 9)]
    assert found.bandwidth
    assert found.disk is not None
    assert found.disk > 0
    assert not found.problems


@pytest.mark.starts
def test_kernels_that_cannot_be_timed_are_a_problem_with_the_fix_and_no_error() -> None:
    found = with_rates(HERE, None, llama_speed=(sys.executable, "-c", "raise SystemExit('no kernel')"))

    assert found.kernels == ()
    assert found.problems == (
        "speed: llama.cpp's kernels cannot be timed (the probe failed: no kernel): run `tourkit doctor`",
    )


def test_without_llama_cpp_no_kernel_is_timed_and_without_weights_no_disk() -> None:
    found = with_rates(Hardware(1, GIB, stacks=(InstalledStack("onnx"),)), None, llama_speed=("absent",))

    assert (found.kernels, found.disk, found.problems) == ((), None, ())


def test_a_file_that_cannot_be_read_leaves_the_disk_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert rates.with_rates(Hardware(1, GIB), tmp_path / "absent").disk is None
    assert rates.with_rates(Hardware(1, GIB), tmp_path / "empty").disk is None


@pytest.mark.starts
def test_the_kernels_of_the_installed_llama_cpp_are_timed_and_a_prompt_is_faster_than_single_tokens() -> None:
    pytest.importorskip("llama_cpp")

    found = {each.type: each for each in with_rates(HERE, None).kernels}

    assert {"F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "MXFP4"} <= found.keys()
    assert all(each.one > 0 and each.many > 0 for each in found.values())
    assert found["Q4_K"].many > found["Q4_K"].one


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA A100-SXM4-80GB MIG 2g.20gb", 509),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 1019),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 194),
        ("requested GPU", None),
    ],
)
def test_a_gpu_has_the_bandwidth_that_its_maker_states_and_a_slice_its_part(name: str, expected: int | None) -> None:
    found = gpu_bandwidth(Gpu("0", name, "cuda", 20 * GIB, 20 * GIB, mig="MIG" in name))

    assert (None if found is None else found // 10**9) == expected


def test_a_bandwidth_in_the_machine_file_counts_before_the_makers() -> None:
    assert gpu_bandwidth(Gpu("0", "NVIDIA A100-SXM4-80GB", "cuda", GIB, GIB, bandwidth=7)) == 7


def test_a_slice_whose_name_does_not_state_its_memory_has_no_known_bandwidth() -> None:
    assert gpu_bandwidth(Gpu("0", "NVIDIA A100-SXM4-80GB", "cuda", GIB, GIB, mig=True)) is None

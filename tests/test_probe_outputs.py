"""What the probe of GPUs and stacks answers on machines that do not exist here: outputs made by hand, really parsed.

The keys and texts are those of gpu_probe.py. tests/test_hardware.py runs that with libraries in place of the driver's.
"""

from __future__ import annotations

from typing import Any

from tourkit.commands.planning import machine
from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.probe import gpus_of, with_gpu

GIB = 2**30

A100 = {
    "id": "GPU-5c1e2e9e-0a2b-4c3d-8e4f-000000000000",
    "name": "NVIDIA A100-SXM4-80GB",
    "runtime": "cuda",
    "total": 84974239744,
    "free": 84500000000,
    "capability": [8, 0],
    "mig": False,
}
SLICE = A100 | {
    "id": "MIG-9f0c3b1a-1111-5222-8333-444455556666",
    "name": "NVIDIA A100-SXM4-80GB MIG 2g.20gb",
    "total": 20937965568,  # 19.5 GiB
    "free": 20500000000,
    "mig": True,
}
SECOND_SLICE = SLICE | {"id": "MIG-9f0c3b1a-7777-5888-8999-aaaabbbbcccc"}


def output(*devices: dict[str, Any], driver: str = "", problems: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"driver": driver, "devices": list(devices), "problems": list(problems)}


def test_no_gpu() -> None:
    assert gpus_of(output()) == ("", (), ())


def test_one_mig_slice_in_a_container() -> None:
    driver, gpus, problems = gpus_of(output(SLICE, driver="12.4"))

    assert (driver, problems) == ("12.4", ())
    assert gpus == (Gpu(SLICE["id"], SLICE["name"], "cuda", 20937965568, 20500000000, (8, 0), mig=True),)


def test_two_slices_on_bare_metal_are_two_gpus_with_names_of_their_own() -> None:
    """Drivers list one slice to a process, the first, and NVIDIA says that a later driver may list several."""
    _, gpus, _ = gpus_of(output(SLICE, SECOND_SLICE, driver="13.0"))

    assert [(gpu.id[:4], gpu.mig, gpu.total) for gpu in gpus] == [("MIG-", True, 20937965568)] * 2
    assert gpus[0].id != gpus[1].id


def test_a_gpu_that_does_not_answer_is_reported_and_hides_no_other() -> None:
    silent = "CUDA device 0: cuDevicePrimaryCtxRetain failed with code 214 (CUDA_ERROR_ECC_UNCORRECTABLE): …"

    driver, gpus, problems = gpus_of(output(A100, driver="12.8", problems=(silent,)))

    assert (driver, [gpu.name for gpu in gpus], problems) == ("12.8", ["NVIDIA A100-SXM4-80GB"], (silent,))


def test_a_driver_that_is_too_old_for_a_stack_is_known_beside_what_the_stack_wants() -> None:
    driver, _, _ = gpus_of(output(SLICE, driver="12.2"))
    stack = with_gpu(InstalledStack("vllm", "0.32.0"), {"gpu": "cuda 13.0", "problem": ""})

    assert (driver, stack.gpu, stack.runtime, stack.problem) == ("12.2", "cuda 13.0", "cuda", "")


def test_a_driver_that_refuses_is_known_by_its_version_too() -> None:
    refusal = "libcuda.so.1: cuInit failed with code 803 (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH): …"

    assert gpus_of(output(driver="12.4", problems=(refusal,))) == ("12.4", (), (refusal,))


def test_rocm() -> None:
    card = {"id": "0", "name": "AMD Radeon RX 7900 XTX", "runtime": "rocm", "total": 24 * GIB, "free": 23 * GIB}

    assert gpus_of(output(card)) == ("", (Gpu("0", card["name"], "rocm", 24 * GIB, 23 * GIB),), ())


def test_metal() -> None:
    chip = {"id": "0", "name": "Apple M3 Max", "runtime": "metal", "total": 36 * GIB, "free": 36 * GIB}

    assert gpus_of(output(chip)) == ("", (Gpu("0", "Apple M3 Max", "metal", 36 * GIB, 36 * GIB),), ())


def test_a_probe_that_fails_is_a_problem_of_all_gpus_or_of_the_stack_that_it_asked() -> None:
    _, gpus, problems = gpus_of({"failed": "the probe gave no answer in 90 s"})
    stack = with_gpu(InstalledStack("llama_cpp", "0.3.36"), {"failed": "the probe failed: ended by SIGILL"})

    assert (gpus, len(problems)) == ((), 1)
    assert "the probe gave no answer in 90 s" in problems[0]
    assert (stack.gpu, stack.version) == ("", "0.3.36")
    assert "ended by SIGILL" in stack.problem
    assert "\n" not in stack.problem


def test_what_a_stack_is_built_for_stays_known_beside_its_problem() -> None:
    answer = {"gpu": "cuda 12", "problem": "libcudart.so.12 cannot be loaded: pip install nvidia-cuda-runtime-cu12"}

    stack = with_gpu(InstalledStack("llama_cpp", "0.3.36"), answer)

    assert (stack.gpu, stack.problem) == (answer["gpu"], answer["problem"])


def test_the_line_about_the_machine_has_the_drivers_version_if_there_is_one() -> None:
    driver, gpus, _ = gpus_of(output(SLICE, driver="12.4"))
    venue = Hardware(16, 64 * GIB, gpus=gpus, driver=driver)

    assert "NVIDIA A100-SXM4-80GB MIG 2g.20gb (cuda), 19.1 GiB of 19.5 GiB free; driver for CUDA 12.4" in machine(venue)
    assert "driver" not in machine(Hardware(16, 64 * GIB))

"""What a machine offers: by the cgroup files of both versions, by the GPUs' libraries, by the installed packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tourkit.hardware.machine import Gpu, Hardware, InstalledStack
from tourkit.hardware.probe import imagined, probe

pytestmark = pytest.mark.starts

GIB = 2**30
ROOT = Path(__file__).parent.parent


def machine(
    folder: Path, files: dict[str, str], *, membership: str = "0::/\n", total_kib: int = 32 * 2**20, free_kib: int = 0
) -> Hardware:
    """Probe copies of the files below the cgroup mount, of /proc/self/cgroup and of /proc/meminfo."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    available = f"MemAvailable: {free_kib} kB\n" if free_kib else ""
    (folder / "meminfo").write_text(f"MemTotal:       {total_kib} kB\nMemFree: 1 kB\n{available}")
    (folder / "self").write_text(membership)
    return probe(folder / "cgroup", folder / "meminfo", folder / "self")


# --- processors and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quota", ["100000 100000", "50000 100000", "150000 100000"])
def test_a_cpu_quota_limits_the_threads_rounded_down_but_never_to_none(tmp_path: Path, quota: str) -> None:
    assert machine(tmp_path, {"cpu.max": f"{quota}\n"}).threads == 1


def test_without_a_quota_every_allowed_processor_counts(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))

    assert machine(tmp_path, {"cpu.max": "max 100000\n"}).threads == allowed
    assert machine(tmp_path, {"cpu.max": "9999999 100000\n"}).threads == allowed
    assert machine(tmp_path, {}).threads == allowed


def test_a_cpuset_limits_the_threads(tmp_path: Path) -> None:
    assert machine(tmp_path, {"cpuset.cpus.effective": "3\n"}).threads == 1
    assert machine(tmp_path, {"cpuset.cpus.effective": "0-511,600\n"}).threads == len(os.sched_getaffinity(0))


def test_the_smaller_of_machine_and_cgroup_memory_counts(tmp_path: Path) -> None:
    assert machine(tmp_path, {"memory.max": f"{8 * GIB}\n"}).ram == 8 * GIB
    assert machine(tmp_path, {"memory.max": f"{2**62}\n"}).ram == 32 * GIB
    assert machine(tmp_path, {"memory.max": "max\n"}).ram == 32 * GIB


def test_the_limits_of_every_parent_cgroup_hold(tmp_path: Path) -> None:
    files = {
        "user.slice/memory.max": f"{8 * GIB}\n",
        "user.slice/job/memory.max": f"{16 * GIB}\n",
        "user.slice/job/cpu.max": "max 100000\n",
        "user.slice/cpu.max": "100000 100000\n",
    }

    here = machine(tmp_path, files, membership="0::/user.slice/job\n")

    assert (here.threads, here.ram) == (1, 8 * GIB)


def test_a_path_of_the_host_that_the_container_does_not_see_leaves_the_mount_itself(tmp_path: Path) -> None:
    here = machine(tmp_path, {"memory.max": f"{8 * GIB}\n"}, membership="0::/docker/4f2c\n")

    assert here.ram == 8 * GIB


def test_limits_of_cgroup_version_1_hold(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/job/memory.limit_in_bytes": f"{8 * GIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    membership = "5:cpu,cpuacct:/job\n4:memory:/job\n3:cpuset:/\n0::/\n"

    here = machine(tmp_path, files, membership=membership)

    assert (here.threads, here.ram) == (1, 8 * GIB)


def test_a_cpuset_of_cgroup_version_1_limits_the_threads(tmp_path: Path) -> None:
    files = {"cpuset/job/cpuset.effective_cpus": "1\n", "cpuset/cpuset.effective_cpus": "0-7\n"}

    assert machine(tmp_path, files, membership="3:cpuset:/job\n").threads == 1


def test_free_memory_is_what_the_cgroup_has_left_without_its_page_cache(tmp_path: Path) -> None:
    stat = f"anon 1\ninactive_file {2 * GIB}\nactive_file {GIB}\n"
    files = {"memory.max": f"{8 * GIB}\n", "memory.current": f"{5 * GIB}\n", "memory.stat": stat}

    assert machine(tmp_path, files, free_kib=30 * 2**20).ram_free == 6 * GIB


def test_free_memory_is_no_more_than_the_whole_machine_has_free(tmp_path: Path) -> None:
    files = {"memory.max": f"{8 * GIB}\n", "memory.current": "0\n"}

    assert machine(tmp_path, files, free_kib=3 * 2**20).ram_free == 3 * GIB


def test_this_machine_has_a_thread_and_some_memory() -> None:
    here = probe()

    assert here.threads >= 1
    assert here.ram >= (here.ram_free or 0) > 2**27


@pytest.fixture
def limited_cgroup() -> Iterator[tuple[Path, Path]]:
    """Folders of real cgroups (version 1) with one CPU and 8 GiB. Skips if cgroups cannot be made here."""
    name = f"tourkit-test-{os.getpid()}"
    folders = (Path("/sys/fs/cgroup/cpu") / name, Path("/sys/fs/cgroup/memory") / name)
    made = []
    try:
        for folder in folders:
            folder.mkdir()
            made.append(folder)
        (folders[0] / "cpu.cfs_quota_us").write_text("100000")
        (folders[1] / "memory.limit_in_bytes").write_text(str(8 * GIB))
        yield folders
    except OSError as exc:
        pytest.skip(f"no cgroup can be made here: {exc}")
    finally:
        for folder in made:
            folder.rmdir()


def test_a_real_cgroup_of_one_cpu_and_8_gib_is_what_the_plan_command_plans_for(
    limited_cgroup: tuple[Path, Path],
) -> None:
    join = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in limited_cgroup)
    command = f"{join} && exec {sys.executable} -m tourkit plan cpu-16gb --json"

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)

    planned = json.loads(done.stdout)
    assert planned["threads"] == 1
    assert planned["machine"]["ram"] == 8 * GIB
    assert {placement["threads"] for placement in planned["placements"]} == {1}


# --- GPUs -----------------------------------------------------------------------------------------------------------

# There is no GPU here. A library with the driver's functions, made by the C compiler, replaces NVIDIA's. Like the real
# one it reports memory only between taking and releasing a context.
FAKE_CUDA = """
#include <stddef.h>
#include <string.h>
static int current = -1;
int cuInit(unsigned flags) { return INIT_CODE; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, device ? "NVIDIA A100-SXM4-80GB MIG 2g.20gb" : "NVIDIA A100-SXM4-80GB", length); return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
  return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(size_t)(device + 1); return 0; }
int cuCtxSetCurrent(void *context) { current = (int)(size_t)context - 1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { current = -1; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (current < 0) return 201;
  *total = (current ? 20ull : 80ull) << 30; *free = *total - (1ull << 30); return 0; }
"""


def fake_cuda(folder: Path, *, init_code: int = 0) -> list[str]:
    """Return a probe command whose CUDA library is the fake one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the fake CUDA library with")
    (folder / "fake.c").write_text(FAKE_CUDA)
    library = folder / "libcuda.so.1"
    flags = [f"-DINIT_CODE={init_code}", "-shared", "-fPIC", "-o", str(library), str(folder / "fake.c")]
    subprocess.run([compiler, *flags], check=True)
    code = (
        f"import json, sys; from tourkit.hardware import gpu_probe\n"
        f"found = gpu_probe.devices(({str(library)!r},), ()) if sys.argv[1] == 'devices' else {{'llama_cpp': 'cuda'}}\n"
        "print(json.dumps(found))"
    )
    return [sys.executable, "-c", code]


def test_gpus_and_mig_slices_are_devices_with_free_and_total_memory(tmp_path: Path) -> None:
    here = probe(gpu_probe=fake_cuda(tmp_path))

    whole, slice_ = here.gpus
    assert (whole.name, whole.runtime, whole.capability) == ("NVIDIA A100-SXM4-80GB", "cuda", (8, 0))
    assert (whole.total, whole.free) == (80 * GIB, 79 * GIB)
    assert (slice_.total, slice_.free) == (20 * GIB, 19 * GIB)
    assert here.problems == ()


def test_a_gpu_is_named_as_cuda_visible_devices_takes_it(tmp_path: Path) -> None:
    whole, slice_ = probe(gpu_probe=fake_cuda(tmp_path)).gpus

    assert whole.id == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert slice_.id == "MIG-10111213-1415-1617-1819-1a1b1c1d1e1f"


def test_stacks_are_asked_about_gpus_where_there_is_one(tmp_path: Path) -> None:
    stacks = {stack.name: stack.gpu for stack in probe(gpu_probe=fake_cuda(tmp_path)).stacks}

    assert stacks["llama_cpp"] == "cuda"


def test_a_driver_that_refuses_is_reported_and_no_error(tmp_path: Path) -> None:
    here = probe(gpu_probe=fake_cuda(tmp_path, init_code=999))

    assert here.gpus == ()
    assert "cuInit failed with code 999" in here.problems[0]


def test_a_probe_that_crashes_is_reported_and_no_error() -> None:
    here = probe(gpu_probe=[sys.executable, "-c", "import os; os.abort()"])

    assert here.gpus == ()
    assert "the probe failed" in here.problems[0]


def test_without_gpu_libraries_there_are_no_gpus_and_no_problems() -> None:
    from tourkit.hardware import gpu_probe

    assert gpu_probe.devices(("libnothing.so.1",), ("libnothing.so",)) == {"devices": [], "problems": []}


# --- stacks ---------------------------------------------------------------------------------------------------------


def test_installed_stacks_are_found_with_their_version() -> None:
    import llama_cpp

    found = {stack.name: stack.version for stack in probe().stacks}

    assert found["llama_cpp"] == llama_cpp.__version__


def test_the_probe_answers_in_a_process_of_its_own_for_libraries_that_are_there() -> None:
    probe_file = ROOT / "tourkit" / "hardware" / "gpu_probe.py"
    command = [sys.executable, "-P", str(probe_file), "stacks", "llama_cpp"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout).keys() == {"llama_cpp"}


def test_probing_imports_no_inference_library() -> None:
    heavy = {"llama_cpp", "vllm", "torch", "transformers", "onnxruntime", "onnxruntime_genai", "numpy"}
    code = f"import sys; from tourkit.hardware.probe import probe; probe(); print(*({heavy} & sys.modules.keys()))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


# --- another machine ------------------------------------------------------------------------------------------------


def test_another_machine_has_what_is_asked_for_and_the_stacks_from_here() -> None:
    here = Hardware(
        2,
        8 * GIB,
        ram_free=GIB,
        stacks=(InstalledStack("llama_cpp"), InstalledStack("onnx"), InstalledStack("vllm", gpu="rocm 6")),
    )

    there = imagined(here, vram=20 * GIB, ram=32 * GIB, threads=12)

    assert (there.threads, there.ram, there.ram_free) == (12, 32 * GIB, None)
    assert [(gpu.total, gpu.free) for gpu in there.gpus] == [(20 * GIB, 20 * GIB)]
    assert {stack.name: stack.gpu for stack in there.stacks} == {"llama_cpp": "cuda", "onnx": "", "vllm": "cuda"}


def test_stacks_can_be_asked_for_that_are_not_installed_here() -> None:
    here = Hardware(2, 8 * GIB, stacks=(InstalledStack("llama_cpp", "0.3"), InstalledStack("onnx")))

    there = imagined(here, stacks=("transformers", "llama_cpp"))

    assert there.stacks == (InstalledStack("transformers"), InstalledStack("llama_cpp", "0.3"))


def test_a_machine_without_a_gpu_can_be_asked_for() -> None:
    here = Hardware(2, 8 * GIB, gpus=(Gpu("GPU-1", "A100", "cuda", 80 * GIB, 80 * GIB),))

    assert imagined(here, vram=0).gpus == ()

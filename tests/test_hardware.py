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

from tourkit.hardware import gpu_probe, llama_cuda
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
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuGetErrorName(int code, const char **name) {
  *name = code == 46 ? "CUDA_ERROR_DEVICE_UNAVAILABLE" : 0; return !*name; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  strncpy(name, device ? "NVIDIA A100-SXM4-80GB MIG 2g.20gb" : "NVIDIA A100-SXM4-80GB", length); return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  for (int i = 0; i < 16; i++) uuid[i] = 16 * device + i;
  return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(size_t)(device + 1); return device == SILENT ? 46 : 0; }
int cuCtxSetCurrent(void *context) { current = (int)(size_t)context - 1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { current = -1; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (current < 0) return 201;
  *total = (current ? 20ull : 80ull) << 30; *free = *total - (1ull << 30); return 0; }
"""
FAKE_HIP = """
#include <stddef.h>
#include <string.h>
static int current = -1;
int hipInit(unsigned flags) { return 0; }
int hipGetDeviceCount(int *count) { *count = 2; return 0; }
int hipSetDevice(int ordinal) { current = ordinal; return ordinal ? 0 : 709; }
int hipDeviceGetName(char *name, int length, int device) { strncpy(name, "AMD Instinct MI300X", length); return 0; }
int hipMemGetInfo(size_t *free, size_t *total) { *total = 192ull << 30; *free = 191ull << 30; return 0; }
"""


def made(folder: Path, name: str, code: str, *flags: str) -> Path:
    """Compile a library that stands in for a real one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the fake library with")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.c").write_text(code)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / name), str(folder / f"{name}.c"), *flags]
    subprocess.run(command, check=True)
    return folder / name


def fake_cuda(folder: Path, *, init_code: int = 0, silent: int = -1) -> str:
    """Return the path of a CUDA library with two devices. `silent`: the one of them that gives no context."""
    return str(made(folder, "libcuda.so.1", FAKE_CUDA, f"-DINIT_CODE={init_code}", f"-DSILENT={silent}"))


def probing(cuda: str) -> list[str]:
    """Return a probe command with this CUDA library, whose every stack is built for CUDA."""
    code = (
        f"import json, sys; from tourkit.hardware import gpu_probe\n"
        f"devices = sys.argv[1] == 'devices'\n"
        f"found = gpu_probe.devices(({cuda!r},), ()) if devices else {{'gpu': 'cuda 12', 'problem': ''}}\n"
        "print(json.dumps(found))"
    )
    return [sys.executable, "-c", code]


def test_gpus_and_mig_slices_are_devices_with_free_and_total_memory(tmp_path: Path) -> None:
    here = probe(gpu_probe=probing(fake_cuda(tmp_path)))

    whole, slice_ = here.gpus
    assert (whole.name, whole.runtime, whole.capability) == ("NVIDIA A100-SXM4-80GB", "cuda", (8, 0))
    assert (whole.total, whole.free) == (80 * GIB, 79 * GIB)
    assert (slice_.total, slice_.free) == (20 * GIB, 19 * GIB)
    assert (whole.mig, slice_.mig) == (False, True)
    assert here.driver == "12.4"
    assert here.problems == ()


def test_a_gpu_is_named_as_cuda_visible_devices_takes_it(tmp_path: Path) -> None:
    whole, slice_ = gpu_probe.devices((fake_cuda(tmp_path),), ())["devices"]

    assert whole["id"] == "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert slice_["id"] == "MIG-10111213-1415-1617-1819-1a1b1c1d1e1f"


def test_stacks_are_asked_about_gpus_where_there_is_one(tmp_path: Path) -> None:
    stacks = {stack.name: stack.gpu for stack in probe(gpu_probe=probing(fake_cuda(tmp_path))).stacks}

    assert stacks["llama_cpp"] == "cuda 12"


def test_a_driver_that_refuses_is_reported_and_no_error(tmp_path: Path) -> None:
    here = probe(gpu_probe=probing(fake_cuda(tmp_path, init_code=999)))

    assert here.gpus == ()
    assert "cuInit failed with code 999" in here.problems[0]
    assert here.driver == "12.4"  # it answers without cuInit


def test_a_device_that_does_not_answer_is_reported_with_its_number_and_the_others_stay(tmp_path: Path) -> None:
    found = gpu_probe.devices((fake_cuda(tmp_path, silent=0),), ())

    assert [device["id"][:4] for device in found["devices"]] == ["MIG-"]
    (problem,) = found["problems"]
    assert problem.startswith("CUDA device 0: cuDevicePrimaryCtxRetain failed with code 46 (CUDA_ERROR_DEVICE_UNAVAIL")
    assert "`nvidia-smi`" in problem


def test_an_amd_device_that_does_not_answer_hides_no_other(tmp_path: Path) -> None:
    found = gpu_probe.devices((), (str(made(tmp_path, "libamdhip64.so", FAKE_HIP)),))

    assert [(device["id"], device["total"]) for device in found["devices"]] == [("1", 192 * GIB)]
    assert "HIP device 0: hipSetDevice failed with code 709" in found["problems"][0]


def test_a_library_so_old_that_it_lacks_functions_is_reported(tmp_path: Path) -> None:
    old = made(tmp_path, "libcuda.so.1", "int cuInit(unsigned flags) { return 0; }")

    found = gpu_probe.devices((str(old),), ())

    assert (found["driver"], found["devices"]) == ("", [])
    assert "cuDeviceGetCount" in found["problems"][0]


def test_a_driver_in_the_kernel_without_its_library_is_reported(tmp_path: Path) -> None:
    """So it is in a container that was started without its GPUs."""
    (tmp_path / "version").touch()

    found = gpu_probe.devices(("libnothing.so.1",), (), tmp_path / "version")

    assert found["devices"] == []
    assert "libnothing.so.1 is not found" in found["problems"][0]
    assert "--gpus all" in found["problems"][0]


def test_a_probe_that_crashes_is_reported_and_no_error() -> None:
    here = probe(gpu_probe=[sys.executable, "-c", "import os; os.abort()"])

    assert here.gpus == ()
    assert "the probe failed: ended by SIGABRT" in here.problems[0]


def test_without_gpu_libraries_there_are_no_gpus_and_no_problems() -> None:
    found = gpu_probe.devices(("libnothing.so.1",), ("libnothing.so",), Path("/nothing"))

    assert found == {"driver": "", "devices": [], "problems": []}


# --- stacks ---------------------------------------------------------------------------------------------------------


def test_installed_stacks_are_found_with_their_version() -> None:
    import llama_cpp

    found = {stack.name: stack.version for stack in probe().stacks}

    assert found["llama_cpp"] == llama_cpp.__version__


GPU_PROBE = ROOT / "tourkit" / "hardware" / "gpu_probe.py"


def asked(stack: str, packages: Path | None = None) -> dict[str, str]:
    """Return what the probe answers about a stack. Packages in the folder `packages` hide the installed ones."""
    command = [sys.executable, "-P", str(GPU_PROBE), "stack", stack]
    environment = os.environ | ({"PYTHONPATH": str(packages)} if packages is not None else {})
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def test_the_probe_answers_in_a_process_of_its_own_for_libraries_that_are_there() -> None:
    assert asked("llama_cpp") == {"gpu": "", "problem": ""}


def fake_llama(folder: Path, *, sees_gpu: bool = True) -> None:
    """Make a llama_cpp package that is built for CUDA 12, and the CUDA libraries in a folder that no loader searches.

    Like the real package it loads its library when it is imported, and this library needs the CUDA libraries.
    """
    real = folder / "real"
    runtime = made(real, "libcudart.so.12", "int cudart(void) { return 0; }", "-Wl,-soname,libcudart.so.12")
    light = made(real, "libcublasLt.so.12", "int cublasLt(void) { return 0; }", "-Wl,-soname,libcublasLt.so.12")
    code = "int cublasLt(void); int cublas(void) { return cublasLt(); }"
    cublas = made(real, "libcublas.so.12", code, "-Wl,-soname,libcublas.so.12", str(light))
    code = "int cudart(void); int cublas(void); int ggml(void) { return cudart() + cublas(); }"
    made(folder / "llama_cpp" / "lib", "libggml-cuda.so", code, str(runtime), str(cublas), f"-Wl,-rpath-link,{real}")
    (folder / "llama_cpp" / "__init__.py").write_text(
        "import ctypes, pathlib\n"
        "assert ctypes.CDLL(str(pathlib.Path(__file__).with_name('lib') / 'libggml-cuda.so')).ggml() == 0\n"
        f"def llama_supports_gpu_offload(): return {sees_gpu}\n"
    )


def test_the_libraries_that_a_library_needs_are_read_without_loading_it(tmp_path: Path) -> None:
    fake_llama(tmp_path)

    assert {"libcudart.so.12", "libcublas.so.12"} <= set(
        llama_cuda.needed(tmp_path / "llama_cpp" / "lib" / "libggml-cuda.so")
    )
    assert llama_cuda.needed(tmp_path / "llama_cpp" / "__init__.py") == []


def test_cuda_libraries_that_are_missing_are_named_with_the_packages_that_have_them(tmp_path: Path) -> None:
    fake_llama(tmp_path)

    answer = asked("llama_cpp", tmp_path)

    assert answer == {
        "gpu": "cuda 12",
        "problem": "libcudart.so.12, libcublasLt.so.12, libcublas.so.12 cannot be loaded: "
        "pip install nvidia-cuda-runtime-cu12 nvidia-cublas-cu12",
    }


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("libcudart.so.11.0", "pip install nvidia-cuda-runtime-cu11 nvidia-cublas-cu11"),
        ("libcublas.so.13", "pip install 'nvidia-cuda-runtime==13.*' 'nvidia-cublas==13.*'"),  # no suffix from 13 on
    ],
)
def test_the_packages_are_of_the_major_version_that_the_build_needs(library: str, command: str) -> None:
    assert llama_cuda.install_command(library) == command


def test_cuda_libraries_are_taken_from_the_packages_of_nvidia(tmp_path: Path) -> None:
    fake_llama(tmp_path)
    for package, library in (("cuda_runtime", "libcudart"), ("cublas", "libcublasLt"), ("cublas", "libcublas")):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / f"{library}.so.12").rename(tmp_path / "nvidia" / package / "lib" / f"{library}.so.12")

    assert asked("llama_cpp", tmp_path) == {"gpu": "cuda 12", "problem": ""}


def test_cuda_libraries_are_taken_from_beside_llama_cpp_and_a_build_that_finds_no_gpu_is_reported(
    tmp_path: Path,
) -> None:
    fake_llama(tmp_path, sees_gpu=False)
    for library in (tmp_path / "real").glob("*.so.12"):
        library.rename(tmp_path / "llama_cpp" / "lib" / library.name)

    answer = asked("llama_cpp", tmp_path)

    assert answer["gpu"] == "cuda 12"
    assert "is built with cuda 12 but finds no GPU: install a build for" in answer["problem"]


def test_a_library_that_cannot_be_imported_is_reported_in_one_line_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise RuntimeError('Failed to load\\nlibllama.so')")

    answer = asked("llama_cpp", tmp_path)

    assert answer["gpu"] == ""
    assert answer["problem"].startswith("cannot be imported (Failed to load libllama.so): install tourkit[llama] again")


@pytest.mark.parametrize(
    ("version", "built"),
    [
        ("cuda = '13.0'; hip = None", "cuda 13.0"),
        ("cuda = None; hip = '6.4.43482'", "rocm 6.4.43482"),
        ("cuda = None; hip = None", ""),
    ],
)
def test_stacks_on_torch_are_built_for_what_torchs_version_file_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, built: str
) -> None:
    """torch is not imported for it: that takes seconds."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "torch" / "version.py").write_text(version)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    assert gpu_probe.stack("vllm") == {"gpu": built, "problem": ""}


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


def test_another_machine_with_a_gpu_is_fit_for_its_stacks() -> None:
    broken = InstalledStack("llama_cpp", gpu="cuda 12", problem="libcudart.so.12 cannot be loaded")

    there = imagined(Hardware(2, 8 * GIB, stacks=(broken,), driver="11.4"), vram=20 * GIB)

    assert there.stacks == (InstalledStack("llama_cpp", gpu="cuda"),)
    assert (there.driver, bool(there.compiler), there.python_headers) == ("", True, True)


def test_stacks_can_be_asked_for_that_are_not_installed_here() -> None:
    here = Hardware(2, 8 * GIB, stacks=(InstalledStack("llama_cpp", "0.3"), InstalledStack("onnx")))

    there = imagined(here, stacks=("transformers", "llama_cpp"))

    assert there.stacks == (InstalledStack("transformers"), InstalledStack("llama_cpp", "0.3"))


def test_a_machine_without_a_gpu_can_be_asked_for() -> None:
    here = Hardware(2, 8 * GIB, gpus=(Gpu("GPU-1", "A100", "cuda", 80 * GIB, 80 * GIB),))

    assert imagined(here, vram=0).gpus == ()

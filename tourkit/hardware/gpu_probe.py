"""Asks the libraries of GPUs and stacks, in a short process of its own: `python gpu_probe.py devices`, `… stack NAME`.

Prints one JSON object. Imports nothing of tourkit, because it is run by its path. It asks CUDA's own library, which
lists a MIG slice as a device. NVML would report the parent card of the slice.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import runpy
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CUDA = ("libcuda.so.1", "nvcuda.dll")
_HIP = ("libamdhip64.so", "libamdhip64.so.6", "libamdhip64.so.7")
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_CHECK = {"CUDA": "check it with `nvidia-smi`", "HIP": "check it with `rocminfo`"}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_METAL_SHARE = 0.75  # of the unified memory: about what macOS lets a GPU use


class _Refused(Exception):
    """A call into a library that was found failed."""


def devices(
    cuda: tuple[str, ...] = _CUDA, hip: tuple[str, ...] = _HIP, kernel_driver: Path = _KERNEL_DRIVER
) -> dict[str, Any]:
    """Return the driver's CUDA version, every GPU with free and total bytes, and what failed.

    One device that fails does not hide the others. The parameters are the names of the libraries and the file of
    NVIDIA's kernel driver, so that tests can replace them.
    """
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    driver = ""
    cuda_library = _load(cuda)
    if cuda_library is not None:
        driver = _driver_version(cuda_library)
        _ask_each("CUDA", cuda_library, ("cuInit", "cuDeviceGetCount"), _cuda_device, found, problems)
    elif kernel_driver.exists():
        fix = "start the container with its GPUs (`--gpus all`), or install the driver's libraries"
        problems.append(f"NVIDIA's driver is loaded, but {cuda[0]} is not found: {fix}")
    hip_library = _load(hip)
    if hip_library is not None:
        _ask_each("HIP", hip_library, ("hipInit", "hipGetDeviceCount"), _hip_device, found, problems)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append(_metal_device())
    return {"driver": driver, "devices": found, "problems": problems}


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _ask_each(
    kind: str,
    library: ctypes.CDLL,
    start: tuple[str, str],
    ask: Callable[[ctypes.CDLL, int], dict[str, Any]],
    found: list[dict[str, Any]],
    problems: list[str],
) -> None:
    """Append every device that answers to `found`, and every failure to `problems`. `start`: initialise, count."""
    failures = (_Refused, AttributeError)  # AttributeError: a library so old that it lacks a function
    initialise, get_count = start
    count = ctypes.c_int()
    try:
        _call(library, initialise, 0)
        _call(library, get_count, ctypes.byref(count))
    except failures as exc:
        problems.append(f"{library._name}: {exc}: no {kind} GPU is used; {_CHECK[kind]}")
        return
    for ordinal in range(count.value):
        try:
            found.append(ask(library, ordinal))
        except failures as exc:
            problems.append(f"{kind} device {ordinal}: {exc}: this GPU is not used; {_CHECK[kind]}")


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code != 0:
        raise _Refused(f"{name} failed with code {code}{_error_name(library, code)}")


def _error_name(library: ctypes.CDLL, code: int) -> str:
    """Return CUDA's name of an error code in parentheses, "" if there is none."""
    text = ctypes.c_char_p()
    if not hasattr(library, "cuGetErrorName") or library.cuGetErrorName(code, ctypes.byref(text)) != 0:
        return ""
    return f" ({text.value.decode()})" if text.value else ""


def _driver_version(cuda: ctypes.CDLL) -> str:
    """Return the newest CUDA version that the driver supports ("12.4"), "" if it does not say. It needs no cuInit."""
    version = ctypes.c_int()
    if not hasattr(cuda, "cuDriverGetVersion") or cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cuda_device(cuda: ctypes.CDLL, ordinal: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, identity, context = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ordinal)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid", identity, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    # Free memory can be read only inside a context. The context itself takes some hundred MiB then: this is a margin.
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    _call(cuda, "cuDevicePrimaryCtxRelease_v2", device)
    label = name.value.decode(errors="replace")
    mig = "MIG" in label.split()
    return {
        "id": f"{'MIG' if mig else 'GPU'}-{uuid.UUID(bytes=bytes(identity))}",
        "name": label,
        "runtime": "cuda",
        "total": total.value,
        "free": free.value,
        "capability": [major.value, minor.value],
        "mig": mig,
    }


def _hip_device(hip: ctypes.CDLL, ordinal: int) -> dict[str, Any]:
    name, free, total = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_size_t()
    _call(hip, "hipSetDevice", ordinal)
    _call(hip, "hipDeviceGetName", name, len(name), ordinal)
    _call(hip, "hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    label = name.value.decode(errors="replace")
    return {"id": str(ordinal), "name": label, "runtime": "rocm", "total": total.value, "free": free.value}


def _metal_device() -> dict[str, Any]:
    """Return the GPU of Apple silicon. It shares the machine's memory."""
    total = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _METAL_SHARE)
    asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    name = asked.stdout.strip() or "Apple silicon"
    return {"id": "0", "name": name, "runtime": "metal", "total": total, "free": total}


def stack(name: str) -> dict[str, str]:
    """Return `gpu`, the runtime that a stack is built for ("cuda 12", "" for the CPU only), and `problem`.

    `problem`: why the stack cannot use this runtime, or cannot be imported, with the fix; "" if nothing is wrong.
    """
    return _llama() if name == "llama_cpp" else {"gpu": _torch_runtime(name), "problem": ""}


def _llama() -> dict[str, str]:
    """Return what llama.cpp is built for, from its libraries."""
    libraries = runpy.run_path(str(Path(__file__).with_name("llama_cuda.py")))
    folder = libraries["llama_folder"]()
    built, wanted = libraries["llama_build"](folder)
    missing = libraries["load_cuda_libraries"](wanted, folder)
    if missing:
        fix = libraries["install_command"](missing[0])
        return {"gpu": built, "problem": f"{', '.join(missing)} cannot be loaded: {fix}"}
    try:
        import llama_cpp

        runpy.run_path(str(Path(__file__).with_name("llama_library.py")))["load_backends"](folder)
        sees_gpu = bool(llama_cpp.llama_supports_gpu_offload())
    except Exception as exc:  # noqa: BLE001 - a broken library may raise any error
        why = " ".join(str(exc).split()) or type(exc).__name__
        fix = "install tourkit[llama] again, or run the bundle's install.sh"
        return {"gpu": built, "problem": f"cannot be imported ({why}): {fix}"}
    if built and not sees_gpu and not _is_newer(built):
        fix = "install a build for the driver and the GPU of this machine"
        return {"gpu": built, "problem": f"is built with {built} but finds no GPU: {fix}"}
    return {"gpu": built, "problem": ""}


def _is_newer(built: str) -> bool:
    """Return whether a build wants a newer CUDA than the driver has. The plan says this with both versions."""
    runtime, _, wanted = built.partition(" ")
    library = _load(_CUDA) if runtime == "cuda" and wanted else None
    driver = _driver_version(library) if library is not None else ""
    return bool(driver) and int(wanted) > int(driver.partition(".")[0])


def _torch_runtime(name: str) -> str:
    """Return torch's CUDA or ROCm version from its version.py, because importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    if version.get("cuda"):
        return f"cuda {version['cuda']}"
    if version.get("hip"):
        return f"rocm {version['hip']}"
    return "metal" if name == "transformers" and platform.system() == "Darwin" else ""


if __name__ == "__main__":
    answer = stack(sys.argv[2]) if sys.argv[1] == "stack" else devices()
    sys.stdout.write(json.dumps(answer))

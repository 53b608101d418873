"""Asks the libraries of GPUs and stacks, in a short process of its own: `python gpu_probe.py devices`.

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
from pathlib import Path
from typing import Any

_CUDA = ("libcuda.so.1", "nvcuda.dll")
_HIP = ("libamdhip64.so", "libamdhip64.so.6", "libamdhip64.so.7")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_METAL_SHARE = 0.75  # of the unified memory: about what macOS lets a GPU use


class _Refused(Exception):
    """A call into a library that was found failed."""


def devices(cuda: tuple[str, ...] = _CUDA, hip: tuple[str, ...] = _HIP) -> dict[str, Any]:
    """Return every GPU with free and total bytes, and the libraries that failed."""
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    for names, ask in ((cuda, _cuda_devices), (hip, _hip_devices)):
        library = _load(names)
        if library is None:
            continue
        try:
            found += ask(library)
        except (_Refused, AttributeError) as exc:  # AttributeError: a library so old that it lacks a function
            problems.append(f"{library._name}: {exc}")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append(_metal_device())
    return {"devices": found, "problems": problems}


def _load(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code != 0:
        raise _Refused(f"{name} failed with code {code}")


def _cuda_devices(cuda: ctypes.CDLL) -> list[dict[str, Any]]:
    count = ctypes.c_int()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    return [_cuda_device(cuda, ordinal) for ordinal in range(count.value)]


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
    prefix = "MIG" if "MIG" in label.split() else "GPU"
    return {
        "id": f"{prefix}-{uuid.UUID(bytes=bytes(identity))}",
        "name": label,
        "runtime": "cuda",
        "total": total.value,
        "free": free.value,
        "capability": [major.value, minor.value],
    }


def _hip_devices(hip: ctypes.CDLL) -> list[dict[str, Any]]:
    count = ctypes.c_int()
    _call(hip, "hipInit", 0)
    _call(hip, "hipGetDeviceCount", ctypes.byref(count))
    found = []
    for ordinal in range(count.value):
        name, free, total = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_size_t()
        _call(hip, "hipSetDevice", ordinal)
        _call(hip, "hipDeviceGetName", name, len(name), ordinal)
        _call(hip, "hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        label = name.value.decode(errors="replace")
        about = {"id": str(ordinal), "name": label, "runtime": "rocm", "total": total.value, "free": free.value}
        found.append(about)
    return found


def _metal_device() -> dict[str, Any]:
    """Return the GPU of Apple silicon. It shares the machine's memory."""
    total = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _METAL_SHARE)
    asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    name = asked.stdout.strip() or "Apple silicon"
    return {"id": "0", "name": name, "runtime": "metal", "total": total, "free": total}


def stacks(names: list[str]) -> dict[str, str]:
    """Return the GPU runtime that each stack is built for; "" if it is built for the CPU only."""
    return {name: _llama_runtime() if name == "llama_cpp" else _torch_runtime(name) for name in names}


def _llama_runtime() -> str:
    """Return llama.cpp's GPU runtime. llama.cpp says whether it has one; the names of its libraries say which one."""
    try:
        import llama_cpp
    except Exception:  # noqa: BLE001 - if it is broken, the worker that loads it reports why
        return ""
    if not llama_cpp.llama_supports_gpu_offload():
        return ""
    beside = " ".join(path.name for path in Path(llama_cpp.__file__).with_name("lib").glob("*ggml-*"))
    for part, runtime in (("cuda", "cuda"), ("hip", "rocm"), ("metal", "metal"), ("vulkan", "vulkan")):
        if f"ggml-{part}" in beside:
            return runtime
    return "metal" if platform.system() == "Darwin" else "cuda"


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
    answer = stacks(sys.argv[2:]) if sys.argv[1] == "stacks" else devices()
    sys.stdout.write(json.dumps(answer))

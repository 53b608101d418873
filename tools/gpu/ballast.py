"""Take memory of the GPU and hold it until stdin closes: `python -m tools.gpu.ballast [LEAVE]`.

LEAVE: the bytes that stay free; without it only a bare context is made. Uses the driver's library alone. Prints the
bytes that are free then.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tourkit.hardware import gpu_probe


def free_memory(environment: Mapping[str, str]) -> int:
    """Return the free bytes of the first GPU, asked by a process that ends: its own context is in use at that time."""
    done = subprocess.run(
        [sys.executable, "-P", gpu_probe.__file__, "devices"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return int(json.loads(done.stdout)["devices"][0]["free"])


@contextmanager
def ballast(environment: Mapping[str, str], leave: int | None = None) -> Iterator[int]:
    """Run this module as a process. Yield the bytes that it left free. Its memory is free again at the end."""
    command = [sys.executable, "-m", "tools.gpu.ballast", *([] if leave is None else [str(leave)])]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        if process.stdout is None or process.stdin is None or not (line := process.stdout.readline()):
            raise RuntimeError(f"the process that takes GPU memory ended with {process.wait()}")
        try:
            yield int(line)
        finally:
            process.stdin.close()  # it ends now


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{name} failed with code {code}")


def main() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, place = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    if len(sys.argv) > 1 and free.value > int(sys.argv[1]):
        _call(cuda, "cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(free.value - int(sys.argv[1])))
        _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    print(free.value, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

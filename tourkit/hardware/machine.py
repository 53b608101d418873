"""A machine as data: processors, memory, GPUs, stacks, and what software can be installed on it.

`probe` measures the machine it runs on; `machine_file` reads and writes the same data as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or a MIG slice. `id`: its name in its runtime's variable (CUDA_VISIBLE_DEVICES, …). Sizes in bytes.

    `bandwidth`: bytes a second that it reads from its memory, None if not known.
    """

    id: str
    name: str
    runtime: str  # cuda, rocm or metal
    total: int
    free: int
    capability: tuple[int, int] | None = None  # CUDA's compute capability
    mig: bool = False  # a slice of a GPU
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class InstalledStack:
    """An installed stack.

    `gpu`: the runtime with which it uses GPUs, and its version if it is known ("cuda 12.8"); "" for the CPU only.
    `problem`: why it cannot use the GPU it is built for, or cannot be imported, with the fix; "" if nothing is wrong.
    """

    name: str
    version: str = ""
    gpu: str = ""
    cpu: bool = True  # whether it runs without a GPU
    bitsandbytes: bool = False
    problem: str = ""

    @property
    def runtime(self) -> str:
        """The runtime without its version: "cuda", "rocm", "metal", "vulkan", or ""."""
        return self.gpu.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast all threads together read a block of RAM. `size`: bytes of the block. `rate`: bytes a second.

    A small block stays in the processor's caches, so it is read faster than a large one.
    """

    size: int
    rate: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """How fast a kernel of llama.cpp computes with all threads, in multiply-adds a second, with data in the caches.

    `type`: of the weights, as ggml names it ("Q4_K"); or "attention", type of the KV cells, size of a head ("attention
    f16 128"). `one`: for one token. `many`: for many tokens at once, as in a prompt.
    """

    type: str
    one: int
    many: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine offers. `threads`: how many may run at once. `ram`: usable bytes in all.

    `ram_free`: bytes, None if not measured. `problems`: one line for each library or device that was found and failed.
    `driver`: the CUDA version of the GPU driver ("12.4"), "" if there is none. `compiler`: the C compiler's command, ""
    if there is none. `python_headers`: whether Python.h is installed; vLLM on a GPU compiles with it. `glibc`: "2.35",
    "" if the system has another C library. `cpu`: the instruction set level ("x86-64-v3"), "" if not known. `system`:
    "linux", "darwin" or "windows". `arch`: "x86_64", "arm64", … `python`: "3.12".

    Rates, empty or None if not measured: `bandwidth` of RAM, `kernels` of llama.cpp, `disk` in bytes a second.
    """

    threads: int
    ram: int
    ram_free: int | None = None
    gpus: tuple[Gpu, ...] = ()
    stacks: tuple[InstalledStack, ...] = ()
    problems: tuple[str, ...] = ()
    driver: str = ""
    compiler: str = ""
    python_headers: bool = False
    glibc: str = ""
    cpu: str = ""
    system: str = ""
    arch: str = ""
    python: str = ""
    bandwidth: tuple[Bandwidth, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    disk: int | None = None

"""Times llama.cpp's matrix kernels on this CPU, in a short process of its own: `python llama_speed.py THREADS`.

Prints one JSON object. Imports nothing of tourkit, because it is run by its path. Kernels differ by a factor of ten
between types of weights, sizes of attention heads and processors, and no table says how. So each type multiplies a
small matrix, which stays in the processor's cache, and each size of heads attends to some KV cells: for one token, and
for many tokens as in a prompt.

All threads do this at the same time, each with data of its own, and their rates are added. llama.cpp's own threads wait
for each other: one program beside them would make every kernel look many times slower.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The numbers of `ggml_type` in ggml.h.
_TYPES = {
    "F16": 1,
    "BF16": 30,
    "Q8_0": 8,
    "Q6_K": 14,
    "Q5_K": 13,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q4_K": 12,
    "Q3_K": 11,
    "Q2_K": 10,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "MXFP4": 39,
}
_F32, _CPU = 0, 0  # of `ggml_type` and of `ggml_backend_dev_type`
_CACHES = {"f16": 1, "q8_0": 8}  # types of KV cells
_HEAD_SIZES = (64, 128, 256)
_COLUMNS, _ROWS = 2048, 512  # of a thread's matrix, which stays in the cache of its processor
_HEADS, _KV_HEADS, _CELLS = 8, 2, 512
_PROMPT = 64  # tokens: many enough for llama.cpp's tiles, few enough for a short measurement
_REPEATS = 8  # products in one call for one token: a call lasts longer than it takes Python to begin the next
# Processor time of a thread, so that other programs do not count. Windows counts it in steps of 16 ms.
_CLOCK = time.perf_counter if sys.platform == "win32" else time.thread_time
_SECONDS = 0.01  # for each of the two measurements of a kernel
_LONGEST_WAIT = 60.0  # seconds until all threads have begun
_TABLES = 1 << 20  # bytes for the descriptions of tensors and graphs


class _Params(ctypes.Structure):
    """`ggml_init_params`: bytes, memory, and whether tensors get no memory."""

    _fields_ = (("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Kernels:
    """llama.cpp's CPU backend for one thread. `library`: the one through which all of ggml is found.

    `together`: lets all threads begin a measurement at the same time.
    """

    def __init__(self, library: ctypes.CDLL, together: threading.Barrier) -> None:
        self._lib = _with_types(library)
        self._together = together
        device = self._lib.ggml_backend_dev_by_type(_CPU)
        registry = self._lib.ggml_backend_dev_backend_reg(device)
        self._device = device
        self._backend = self._lib.ggml_backend_dev_init(device, None)
        self._plain = self._lib.ggml_backend_dev_buffer_type(device)
        set_threads = self._function(registry, "ggml_backend_set_n_threads", None, ctypes.c_void_p, ctypes.c_int)
        set_threads(self._backend, 1)
        pointers = ctypes.POINTER(ctypes.c_void_p)
        extra = self._function(registry, "ggml_backend_dev_get_extra_bufts", pointers, ctypes.c_void_p)(device)
        self._repacking: list[int] = []  # types of memory in which llama.cpp keeps weights in another order
        while extra and extra[len(self._repacking)]:
            self._repacking.append(extra[len(self._repacking)])

    def _function(self, registry: int, name: str, result: Any, *arguments: Any) -> Any:
        address = self._lib.ggml_backend_reg_get_proc_address(registry, name.encode())
        if not address:
            raise OSError(f"llama.cpp has no {name}")
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def product(self, type_: int, tokens: int) -> float:
        """Return multiply-adds a second of a matrix of this type with the vectors of `tokens` tokens.

        The matrix is in the first kind of memory that supports it, as the weights of a loaded model are.
        """
        for memory in self._repacking:
            if rate := self._product_in(memory, type_, tokens):
                return rate
        return self._product_in(self._plain, type_, tokens)

    def _product_in(self, memory: int, type_: int, tokens: int) -> float:
        """Return the same with the matrix in one kind of memory; 0 if it does not support the product."""
        lib = self._lib
        with self._tables() as fixed, self._tables() as varying:
            weights = lib.ggml_new_tensor_2d(fixed, type_, _COLUMNS, _ROWS)
            vectors = lib.ggml_new_tensor_2d(varying, _F32, _COLUMNS, tokens)
            products = [lib.ggml_mul_mat(varying, weights, vectors) for _ in range(_repeats(tokens))]
            with self._memory(fixed, memory), self._memory(varying, self._plain):
                if not lib.ggml_backend_dev_supports_op(self._device, products[0]):
                    return 0.0
                self._clear(weights, vectors)
                return _COLUMNS * _ROWS * tokens * len(products) / self._seconds(varying, products)

    def attention(self, type_: int, size: int, tokens: int) -> float:
        """Return multiply-adds a second of `tokens` tokens that attend to _CELLS cells of this type.

        `size`: values of a head.
        """
        lib = self._lib
        with self._tables() as tables:
            queries = lib.ggml_new_tensor_3d(tables, _F32, size, tokens, _HEADS)
            keys, values = (lib.ggml_new_tensor_3d(tables, type_, size, _CELLS, _KV_HEADS) for _ in range(2))
            attended = [
                lib.ggml_flash_attn_ext(tables, queries, keys, values, None, size**-0.5, 0.0, 0.0)
                for _ in range(_repeats(tokens))
            ]
            with self._memory(tables, self._plain):
                self._clear(queries, keys, values)
                return 2 * size * _HEADS * _CELLS * tokens * len(attended) / self._seconds(tables, attended)

    @contextmanager
    def _tables(self) -> Iterator[int]:
        """Yield a context: memory for the descriptions of tensors."""
        context = self._lib.ggml_init(_Params(_TABLES, None, True))
        try:
            yield context
        finally:
            self._lib.ggml_free(context)

    @contextmanager
    def _memory(self, context: int, kind: int) -> Iterator[None]:
        """Give all tensors of a context memory of one kind within the block."""
        buffer = self._lib.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        try:
            yield
        finally:
            self._lib.ggml_backend_buffer_free(buffer)

    def _clear(self, *tensors: int) -> None:
        """Fill tensors with zeros: the time of a kernel does not depend on the values."""
        for tensor in tensors:
            size = self._lib.ggml_nbytes(tensor)
            self._lib.ggml_backend_tensor_set(tensor, bytes(size), 0, size)

    def _seconds(self, context: int, results: list[int]) -> float:
        """Return the seconds in which this thread computes all results once, while the other threads do the same."""
        graph = self._lib.ggml_new_graph(context)
        for result in results:
            self._lib.ggml_build_forward_expand(graph, result)
        self._together.wait(_LONGEST_WAIT)
        calls, start = 0, _CLOCK()
        while (taken := _CLOCK() - start) < _SECONDS or not calls:
            self._lib.ggml_backend_graph_compute(self._backend, graph)
            calls += 1
        return taken / calls


def _repeats(tokens: int) -> int:
    return _REPEATS if tokens == 1 else 1


def _with_types(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the types of the functions that are called."""
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    long, real = ctypes.c_int64, ctypes.c_float
    for name, result, arguments in (
        ("ggml_init", pointer, (_Params,)),
        ("ggml_free", None, (pointer,)),
        ("ggml_new_tensor_2d", pointer, (pointer, number, long, long)),
        ("ggml_new_tensor_3d", pointer, (pointer, number, long, long, long)),
        ("ggml_flash_attn_ext", pointer, (pointer, pointer, pointer, pointer, pointer, real, real, real)),
        ("ggml_mul_mat", pointer, (pointer, pointer, pointer)),
        ("ggml_new_graph", pointer, (pointer,)),
        ("ggml_build_forward_expand", None, (pointer, pointer)),
        ("ggml_nbytes", size, (pointer,)),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, (pointer, pointer)),
        ("ggml_backend_buffer_free", None, (pointer,)),
        ("ggml_backend_tensor_set", None, (pointer, pointer, size, size)),
        ("ggml_backend_graph_compute", number, (pointer, pointer)),
        ("ggml_backend_dev_by_type", pointer, (number,)),
        ("ggml_backend_dev_init", pointer, (pointer, text)),
        ("ggml_backend_dev_supports_op", ctypes.c_bool, (pointer, pointer)),
        ("ggml_backend_dev_backend_reg", pointer, (pointer,)),
        ("ggml_backend_dev_buffer_type", pointer, (pointer,)),
        ("ggml_backend_reg_get_proc_address", pointer, (pointer, text)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def measured(threads: int) -> dict[str, Any]:
    """Return multiply-adds a second of one token, and of many, for each type of weights and kind of attention."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # at an abort ggml would start gdb, which takes seconds
    libraries = runpy.run_path(str(Path(__file__).with_name("llama_cuda.py")))
    folder = libraries["llama_folder"]()
    libraries["load_cuda_libraries"](libraries["llama_build"](folder)[1], folder)
    import llama_cpp  # noqa: F401 - it loads ggml's libraries in their order

    runpy.run_path(str(Path(__file__).with_name("llama_library.py")))["load_backends"](folder)
    path = next(path for name in ("libllama.so", "libllama.dylib", "llama.dll") if (path := folder / name).is_file())
    library, together = ctypes.CDLL(str(path)), threading.Barrier(threads)
    kernels = [Kernels(library, together) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def rate(kind: str, *arguments: int) -> int:
            """Return the sum over all threads."""
            rates: list[float] = list(pool.map(lambda each: getattr(each, kind)(*arguments), kernels))
            return round(sum(rates))

        timed = [
            {"type": name, "one": rate("product", type_, 1), "many": rate("product", type_, _PROMPT)}
            for name, type_ in _TYPES.items()
        ]
        for name, type_ in _CACHES.items():
            for size in _HEAD_SIZES:
                one, many = rate("attention", type_, size, 1), rate("attention", type_, size, _PROMPT)
                timed.append({"type": f"attention {name} {size}", "one": one, "many": many})
    return {"kernels": timed}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(int(sys.argv[1]))))

"""Messages of the stacks that mean "out of memory". Most need a GPU, so they are quoted here from the sources."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tourkit.backends.llama_cpp import library, model
from tourkit.backends.llama_cpp.model import LlamaModel
from tourkit.backends.out_of_memory import is_out_of_memory
from tourkit.errors import LocalError

SHORT = {
    "torch": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has 19.50 GiB",
    "torch on a MIG slice": 'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":983',
    "cuBLAS": "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "torch on a CPU": "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "torch on Metal": "RuntimeError: MPS backend out of memory (MPS allocated: 9.07 GB)",
    "llama.cpp's buffer": "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
    "llama.cpp's weights": "error loading model: unable to allocate CUDA0 buffer",
    "llama.cpp's cache": "failed to initialize the context: failed to allocate buffer for kv cache",
    "llama.cpp's batch": "llama_decode: could not allocate (code -2)",
    "vLLM's cache": "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
    "vLLM's start": "ValueError: Free memory on device cuda:0 (0.1/19.5 GiB) on startup is less than desired",
    "vLLM on a CPU": "ValueError: Available memory on node 0 (1.0/8.0 GiB) is less than requested",
    "Python": "code 1 (MemoryError)",
    "C++": "code 134 (terminate called after throwing an instance of 'std::bad_alloc')",
    "the system": "it ended while loading: signal SIGKILL, maybe out of memory",
    "the trial batch": "no memory for a batch of 8 tokens: lower --context or --slots",
}
OTHER = {
    "a damaged file": "m.gguf: llama.cpp cannot load it (tensor 'x' data is not within the file bounds)",
    "a missing library": "vllm cannot be imported: ImportError: libcudart.so.13: cannot open shared object file",
    "a context that the model does not have": "ValueError: User-specified max_model_len (8192) is greater than 4096",
    "a crash": "it ended while loading: signal SIGSEGV",
    "another CUDA error": "RuntimeError: CUDA error: no kernel image is available for execution on the device",
}


@pytest.mark.parametrize("source", SHORT)
def test_a_message_of_every_stack_that_means_out_of_memory_is_recognised(source: str) -> None:
    assert is_out_of_memory(SHORT[source])


@pytest.mark.parametrize("source", OTHER)
def test_another_failure_is_not_taken_for_it(source: str) -> None:
    assert not is_out_of_memory(OTHER[source])


@pytest.mark.parametrize(
    ("log", "fix"),
    [
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", "choose a smaller quant"),
        ("llama_model_load: error loading model: tensor 'x' is not within the file bounds", "compare its SHA-256"),
    ],
)
def test_llama_cpp_without_memory_for_the_weights_says_so_in_one_line(
    log: str, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(path: bytes, params: Any) -> None:
        library._log_tail.extend([log, "llama_model_load_from_file_impl: failed to load model"])

    lib = SimpleNamespace(
        llama_model_default_params=SimpleNamespace,
        llama_supports_gpu_offload=lambda: True,
        llama_model_load_from_file=fails,
        LLAMA_LOAD_MODE_NONE=0,
    )
    monkeypatch.setattr(model, "import_llama", lambda: lib)
    (tmp_path / "m.gguf").touch()

    with pytest.raises(LocalError, match=fix) as error:
        LlamaModel(tmp_path / "m.gguf")

    assert log in str(error.value)

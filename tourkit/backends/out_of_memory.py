"""Recognise messages of torch, CUDA, llama.cpp and vLLM that mean: no memory is left on the device."""

from __future__ import annotations

import re

_TEXTS = re.compile(
    r"out of memory|no memory for|insufficient memory|\bMemoryError\b|bad_alloc"
    r"|(?:unable|failed|could not|can't) (?:to )?allocate"  # llama.cpp, and torch on a CPU
    r"|STATUS_ALLOC_FAILED"  # cuBLAS, cuDNN
    r"|NVML_SUCCESS == r\b"  # torch on a MIG slice: after a failed allocation it asks NVML, which knows no slice
    r"|No available memory|Free memory on device|Available memory on node",  # vLLM
    re.IGNORECASE,
)


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text, or the reason why a process ended, means that memory ran out."""
    return _TEXTS.search(text) is not None

"""What the KV cells of a model depend on: cells on disk are only used if all of it is the same."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from tourkit.backends.llama_cpp.model import weight_files

if TYPE_CHECKING:
    from tourkit.backends.llama_cpp.runner import LlamaRunner
    from tourkit.launch import Launch

_SAMPLES, _SAMPLE = 64, 4096  # how many places of a weight file are read, and how many bytes at each


def cells_identity(runner: LlamaRunner, launch: Launch) -> str:
    """Return a digest of weights, adapters, version of llama.cpp, and form of the cells: 32 hex digits.

    Weight files are sampled, because reading all of them is slow. Raises OSError.
    """
    form = (runner.cache_type, launch.flash_attention, runner.on_gpu)
    digest = hashlib.sha256(f"{version('llama-cpp-python')} {form}".encode())
    for path in [*weight_files(runner.path), *runner.lora]:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(i * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]

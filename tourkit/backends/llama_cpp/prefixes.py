"""KV cells of shared prompts on disk, so that the next start need not compute them again.

The name of a file is the SHA-256 of its bytes, so a damaged file is not used. The name of the folder is a digest of
weights, adapters, cache type and version of llama.cpp, so cells are only read if all of them are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tourkit.backends.llama_cpp.model import weight_files
from tourkit.engine.placement import common_prefix
from tourkit.files import fsync_dir, sha256_of

if TYPE_CHECKING:
    from tourkit.backends.llama_cpp.runner import LlamaRunner

_KEPT = 16  # files of one model; those unused for the longest time are removed first
_WORTH_WRITING = 64  # tokens that a prefix must have beyond those that a file already holds
_SAMPLES, _SAMPLE = 64, 4096  # how many places of a weight file are read, and how many bytes at each


class LlamaPrefixes:
    """The PrefixStore of one LlamaRunner. `root`: the folder; it is made when the first prefix is saved."""

    def __init__(self, runner: LlamaRunner, root: Path) -> None:
        self._runner = runner
        self._folder = root / _identity(runner)
        self._read: dict[Path, list[int]] = {}

    def restore(self, slots: Sequence[int]) -> dict[int, list[int]]:
        for cut_short in self._folder.glob("*.part"):
            cut_short.unlink(missing_ok=True)
        held: dict[int, list[int]] = {}
        free = list(slots)
        for path in self._files():
            if not free:
                break
            if not _is_whole(path):
                path.unlink(missing_ok=True)
                continue
            tokens = self._runner.load_state(free[0], path)
            if tokens:
                held[free.pop(0)] = self._read[path] = tokens
        return held

    def save(self, slot: int, tokens: Sequence[int]) -> None:
        temp = self._folder / f"{slot}.part"
        try:
            if self._is_there(list(tokens)):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._runner.save_state(slot, tokens, temp):
                temp.replace(self._folder / f"{sha256_of(temp)}.prefix")
                fsync_dir(self._folder)
            for path in self._files()[_KEPT:]:
                path.unlink()
        except OSError:
            return  # it is only a cache: without it, the next start computes the prompt again
        finally:
            temp.unlink(missing_ok=True)

    def _is_there(self, tokens: list[int]) -> bool:
        """Whether a file that was read holds (nearly) all of these tokens. Such a file counts as used now."""
        for path, known in self._read.items():
            if common_prefix(tokens, known, len(tokens)) > len(tokens) - _WORTH_WRITING:
                path.touch()
                return True
        return False

    def _files(self) -> list[Path]:
        """Return the prefix files, most recently used first."""
        found = [(path.stat().st_mtime_ns, path) for path in self._folder.glob("*.prefix")]
        return [path for _, path in sorted(found, reverse=True)]


def _is_whole(path: Path) -> bool:
    return sha256_of(path) == path.stem


def _identity(runner: LlamaRunner) -> str:
    """Return a digest of everything that the KV cells depend on. Weight files are sampled: reading all is slow."""
    digest = hashlib.sha256(f"{version('llama-cpp-python')} {runner.cache_type}".encode())
    for path in [*weight_files(runner.path), *runner.lora]:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                file.seek(i * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]

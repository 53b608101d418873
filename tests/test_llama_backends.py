"""A portable llama.cpp gets its CPU libraries from its own folder; a build for one machine is left as it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tourkit.hardware.llama_library import load_backends


class Library:
    """libllama as ctypes shows it. `built_in`: backends at the start. `fitting`: those that the folder adds."""

    def __init__(self, folder: Path, built_in: int, fitting: int) -> None:
        self._name = str(folder / "libllama.so")
        self.count, self.fitting = built_in, fitting
        self.folders: list[bytes] = []

    def ggml_backend_reg_count(self) -> int:
        return self.count

    def ggml_backend_load_all_from_path(self, folder: bytes) -> None:
        self.folders.append(folder)
        self.count += self.fitting


def module(library: Any) -> Any:
    return SimpleNamespace(llama_cpp=SimpleNamespace(_lib=library))


def test_backends_are_loaded_from_the_folder_of_libllama_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from the current directory, where llama.cpp itself would look."""
    library = Library(tmp_path / "llama_cpp" / "lib", built_in=0, fitting=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    load_backends(module(library))
    load_backends(module(library))

    assert library.folders == [bytes(tmp_path / "llama_cpp" / "lib")]


def test_a_build_with_its_backends_inside_loads_no_others(tmp_path: Path) -> None:
    library = Library(tmp_path, built_in=1, fitting=1)

    load_backends(module(library))

    assert library.folders == []


def test_a_library_that_cannot_load_backends_is_left_alone() -> None:
    load_backends(module(SimpleNamespace()))


def test_a_processor_that_no_backend_runs_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none of its CPU libraries runs on this processor"):
        load_backends(module(Library(tmp_path, built_in=0, fitting=0)))

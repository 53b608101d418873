"""A portable llama.cpp gets its CPU libraries from its own folder; a build for one machine is left as it is."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tourkit.hardware.llama_library import load_backends


class Library:
    """libllama as ctypes shows it. `built_in`: backends at the start. `fitting`: those that the folder adds."""

    def __init__(self, built_in: int, fitting: int) -> None:
        self.count, self.fitting = built_in, fitting
        self.folders: list[bytes] = []

    def ggml_backend_reg_count(self) -> int:
        return self.count

    def ggml_backend_load_all_from_path(self, folder: bytes) -> None:
        self.folders.append(folder)
        self.count += self.fitting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libllama.so").touch()
    return tmp_path / "lib"


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, library: object) -> None:
    """Let ctypes give this library for the libllama in the folder, and for no other file."""
    monkeypatch.setattr(ctypes, "CDLL", {str(folder / "libllama.so"): library}.__getitem__)


def test_backends_are_loaded_from_the_folder_of_libllama_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never from the current directory, where llama.cpp itself would look."""
    library = Library(built_in=0, fitting=1)
    installed(monkeypatch, folder, library)
    monkeypatch.chdir(folder.parent)

    load_backends(Path("lib"))
    load_backends(Path("lib"))

    assert library.folders == [bytes(folder)]


def test_a_build_with_its_backends_inside_loads_no_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(built_in=1, fitting=1)
    installed(monkeypatch, folder, library)

    load_backends(folder)

    assert library.folders == []


def test_a_library_that_cannot_load_backends_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, folder, object())

    load_backends(folder)


def test_a_folder_without_libllama_has_no_backends_to_load(tmp_path: Path) -> None:
    load_backends(tmp_path)


def test_a_processor_that_no_backend_runs_on_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, folder, Library(built_in=0, fitting=0))

    with pytest.raises(OSError, match="none of its CPU libraries runs on this processor"):
        load_backends(folder)

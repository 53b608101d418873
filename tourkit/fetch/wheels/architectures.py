"""Checks that the llama.cpp in a wheel, or the installed one, knows the architecture of each GGUF."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.headers.gguf import gguf_header

_LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")


def unknown_architectures(wheel: Path, weights: Iterable[Path]) -> list[str]:
    """Return a line for each GGUF whose `general.architecture` the llama.cpp in the wheel does not know.

    Nothing in the wheel is run, so it may be for another system. Raises OSError or ValueError if it has no libllama.
    """
    fix = "carry a newer llama-cpp-python, or choose another model"
    return _unknown(_library(wheel), f"the llama.cpp in {wheel.name}", weights, fix)


def unknown_to_installed(weights: Iterable[Path]) -> list[str]:
    """Return such a line for each GGUF that the installed llama-cpp-python does not know; none without a libllama.

    The package is not imported. Raises OSError.
    """
    spec = find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    library = next((path for folder in folders for name in _LIBRARIES if (path := folder / name).is_file()), None)
    if library is None:
        return []
    fix = "install a newer llama-cpp-python, or choose another model"
    return _unknown(library.read_bytes(), "the installed llama.cpp", weights, fix)


def _unknown(library: bytes, holder: str, weights: Iterable[Path], fix: str) -> list[str]:
    """`library`: the bytes of libllama. `holder`: how the lines name it."""
    lines = []
    for path in weights:
        try:
            name = str(gguf_header(path).get("general.architecture", ""))
        except OSError as exc:
            lines.append(f"{path}: cannot be read ({exc.strerror}): run `tourkit verify` on the bundle")
            continue
        except LocalError as exc:
            lines.append(str(exc))
            continue
        if not _names(library, name):
            lines.append(f"{path}: {holder} does not know the architecture {name!r}: {fix}")
    return lines


def _names(library: bytes, name: str) -> bool:
    """Return whether libllama holds a name as a C string.

    llama.cpp compares the architecture with a list of C strings. A linker stores a string that is the end of another
    one only once: "bert" in "nomic-bert". So the name may also be the end of a longer name. A name that llama.cpp uses
    for something else, such as a tokenizer, counts as known too: then the model fails when it is loaded.
    """
    return bool(name) and re.search(rb"\0[a-z0-9_.-]{0,40}" + re.escape(name.encode()) + rb"\0", library) is not None


def _library(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            folder, _, name = entry.rpartition("/")
            if folder == "llama_cpp/lib" and name in _LIBRARIES:
                return archive.read(entry)
    raise ValueError(f"{wheel}: no libllama in llama_cpp/lib: give a wheel of llama-cpp-python")

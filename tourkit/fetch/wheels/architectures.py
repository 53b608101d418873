"""Checks that the llama.cpp in a wheel knows the architecture of each GGUF, at home and not on site."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tourkit.errors import LocalError
from tourkit.headers.gguf import gguf_header

_LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")


def unknown_architectures(wheel: Path, weights: Iterable[Path]) -> list[str]:
    """Return a line for each GGUF whose `general.architecture` the llama.cpp in the wheel does not know.

    Nothing in the wheel is run, so it may be for another system. Raises OSError or ValueError if it has no libllama.
    """
    library = _library(wheel)
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
            lines.append(
                f"{path}: the llama.cpp in {wheel.name} does not know the architecture {name!r}: carry a newer "
                "llama-cpp-python, or choose another model"
            )
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

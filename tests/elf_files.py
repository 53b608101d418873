"""Small shared libraries and wheels of llama-cpp-python, made without a compiler: only what a reader looks at."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

RETURN_1, RETURN_0 = b"\xb8\x01\x00\x00\x00\xc3", b"\x31\xc0\xc3"  # x86-64: mov eax, 1; ret and xor eax, eax; ret
_HEADERS = 64 + 2 * 56


def shared_library(
    needed: Sequence[str] = ("libc.so.6",),
    versions: Sequence[str] = ("GLIBC_2.17",),
    functions: Mapping[str, bytes] | None = None,
    *,
    soname: str = "",
    machine: int = 62,
    content: bytes = b"",
) -> bytes:
    """Return an ELF file: what it needs, the code of its exported functions, and other bytes. 62 is x86-64."""
    functions = functions or {}
    names = [*needed, *versions, *functions, *([soname] if soname else [])]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    at = {name: strings.index(b"\0" + name.encode() + b"\0") + 1 for name in names}
    body, places = b"", {}

    def add(part: str, data: bytes) -> None:
        nonlocal body
        places[part] = _HEADERS + len(body)
        body += data + b"\0" * (-len(data) % 16)

    add("strings", strings)
    chain = b"".join(struct.pack("<IHHII", 0, 0, 0, at[name], 16 if name != versions[-1] else 0) for name in versions)
    add("versions", struct.pack("<HHIII", 1, len(versions), 0, 16, 0) + chain)
    code = b"".join(functions.values())
    add("code", code)
    symbols, offset = b"\0" * 24, places["code"]
    for name, machine_code in functions.items():
        symbols += struct.pack("<IBBHQQ", at[name], 0x12, 0, 1, offset, len(machine_code))
        offset += len(machine_code)
    add("symbols", symbols)
    add("content", b"\0" + content + b"\0")
    entries = [(1, at[name]) for name in needed] + [(5, places["strings"]), (0x6FFFFFFE, places["versions"])]
    entries += [(0x6FFFFFFF, 1 if versions else 0)] + ([(14, at[soname])] if soname else []) + [(0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    add("dynamic", dynamic)
    sections = struct.pack("<IIQQQQIIQQ", 0, 11, 0, 0, places["symbols"], len(symbols), 1, 0, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, places["strings"], len(strings), 0, 0, 1, 0)
    add("sections", sections)
    size = _HEADERS + len(body)
    start = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, places["sections"], 0, 64, 56, 2, 64, 2, 0)
    loaded = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)
    where = places["dynamic"]
    dynamics = struct.pack("<IIQQQQQQ", 2, 6, where, where, where, len(dynamic), len(dynamic), 8)
    return start + header + loaded + dynamics + body


def cpu_library(*instructions: str) -> bytes:
    """Return a CPU library of llama.cpp that was compiled for these instructions, in ggml's names: "avx2"."""
    known = ("sse3", "ssse3", "avx", "avx2", "fma", "avx512", "amx_int8")
    functions = {f"ggml_cpu_has_{name}": RETURN_1 if name in instructions else RETURN_0 for name in known}
    return shared_library(("libggml-base.so", "libc.so.6"), functions=functions)


def llama_wheel(
    folder: Path, libraries: Mapping[str, bytes], tag: str = "py3-none-manylinux_2_31_x86_64", version: str = "0.3.36"
) -> Path:
    """Write a wheel of llama-cpp-python with these libraries in llama_cpp/lib."""
    path = folder / f"llama_cpp_python-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("llama_cpp/__init__.py", "")
        for name, data in libraries.items():
            wheel.writestr(f"llama_cpp/lib/{name}", data)
    return path

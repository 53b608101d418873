"""What decides which binaries run here and whether Triton can compile: read from files, without a process."""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

import pytest

from tourkit.hardware import toolchain

V2 = "fpu cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512bw avx512cd avx512dq avx512f avx512vl"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu sse sse2", "x86-64-v1"),
        (V2, "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V3.replace("movbe ", ""), "x86-64-v2"),
        (V4, "x86-64-v4"),
        (V4.replace("avx2 ", ""), "x86-64-v2"),
    ],
)
def test_the_cpu_level_is_the_highest_whose_flags_are_all_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, level: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nvmx flags\t: vnmi\n\nprocessor\t: 1\n")

    assert toolchain.cpu_level(tmp_path / "cpuinfo") == level


def test_a_cpu_of_another_kind_or_without_flags_has_no_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert toolchain.cpu_level(tmp_path / "none") == ""

    (tmp_path / "cpuinfo").write_text(f"flags : {V2}\n")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert toolchain.cpu_level(tmp_path / "cpuinfo") == ""


@pytest.mark.parametrize(
    ("reported", "name"), [("AMD64", "x86_64"), ("x86_64", "x86_64"), ("aarch64", "arm64"), ("arm64", "arm64")]
)
def test_an_architecture_has_one_name_on_every_system(
    monkeypatch: pytest.MonkeyPatch, reported: str, name: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: reported)

    assert toolchain.architecture() == name


@pytest.mark.parametrize(
    ("installed", "variable", "found"),
    [
        ((), None, ""),
        (("clang",), None, "clang"),
        (("clang", "gcc"), None, "gcc"),
        (("gcc", "mycc"), "mycc", "mycc"),
        (("gcc",), "mycc", ""),  # Triton would run mycc
        (("gcc",), "", ""),
        (("gcc",), "gcc -m64", ""),  # Triton would look for a program of this name
        (("cc",), None, ""),  # Triton does not try it
    ],
)
def test_the_compiler_is_the_one_that_triton_would_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: tuple[str, ...], variable: str | None, found: str
) -> None:
    for name in installed:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if variable is not None:
        monkeypatch.setenv("CC", variable)

    assert toolchain.compiler() == found


@pytest.mark.parametrize("there", [True, False])
def test_python_headers_are_looked_for_where_triton_includes_them_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    folders = {("include", "posix_prefix"): str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_path", lambda *of: folders[of])

    assert toolchain.has_python_headers() is there


@pytest.mark.parametrize(("answer", "version"), [("glibc 2.35", "2.35"), (None, ""), (OSError(22, "Invalid"), "")])
def test_glibc_has_a_version_and_another_c_library_none(
    monkeypatch: pytest.MonkeyPatch, answer: str | OSError | None, version: str
) -> None:
    def confstr(_name: str) -> str | None:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "confstr_names", {"CS_GNU_LIBC_VERSION": 2})
    monkeypatch.setattr(os, "confstr", confstr)

    assert toolchain.glibc() == version


def test_a_system_that_does_not_know_glibc_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {"CS_PATH": 0})

    assert toolchain.glibc() == ""

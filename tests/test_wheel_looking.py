"""A wheel that cannot run on a target is refused, with the reason in one line. Nothing in it is run."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from elf_files import cpu_library, llama_wheel, shared_library

from tourkit.errors import LocalError, UsageError
from tourkit.fetch.wheels import elf, llama
from tourkit.fetch.wheels.architectures import unknown_architectures, unknown_to_installed
from tourkit.fetch.wheels.looking import look_into, refusal, remarks
from tourkit.fetch.wheels.target import parse_target

OLD = parse_target("cp312-manylinux_2_31_x86_64")
NEW = parse_target("cp312-manylinux_2_36_x86_64")
CUDA = parse_target("cp312-manylinux_2_36_x86_64:cuda-llama")


def weights_of(architecture: str, folder: Path) -> Path:
    """Write a GGUF file that has only its architecture."""
    path = folder / f"{architecture}.gguf"
    texts = [struct.pack("<Q", len(text)) + text for text in (b"general.architecture", architecture.encode())]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + texts[0] + struct.pack("<I", 8) + texts[1])
    return path


def test_a_wheel_whose_libraries_need_no_more_than_the_target_has_is_taken(tmp_path: Path) -> None:
    ggml = shared_library(versions=("GLIBC_2.31", "GLIBC_PRIVATE"), soname="libggml.so.0")
    wheel = llama_wheel(tmp_path, {"libggml.so": ggml, "libllama.so": shared_library(("libggml.so.0", "libm.so.6"))})

    assert refusal(wheel, OLD) is None


def test_the_newest_glibc_that_a_library_needs_is_found_and_named(tmp_path: Path) -> None:
    newer = shared_library(versions=("GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.4"))
    wheel = llama_wheel(tmp_path, {"libggml.so": shared_library(), "libllama.so": newer})

    assert look_into(wheel).versions["GLIBC"] == ((2, 34), "libllama.so")
    why = refusal(wheel, OLD) or ""
    assert "libllama.so needs GLIBC_2.34, and manylinux_2_31_x86_64 has GLIBC_2.31 at most" in why
    assert "\n" not in why
    assert refusal(wheel, NEW) is None


@pytest.mark.parametrize("version", ["GLIBCXX_3.4.29", "CXXABI_1.3.13", "GLIBC_ABI_DT_RELR"])
def test_so_are_the_versions_of_the_cpp_library_and_the_marks_of_newer_linkers(tmp_path: Path, version: str) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(versions=(version,))})

    assert "libllama.so needs" in (refusal(wheel, OLD) or "")
    assert refusal(wheel, NEW) is None


@pytest.mark.parametrize("tag", ["py3-none-manylinux_2_34_x86_64", "py3-none-win_amd64", "cp311-cp311-linux_x86_64"])
def test_a_tag_for_another_machine_is_refused(tmp_path: Path, tag: str) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library()}, tag)

    assert "its tag does not fit cp312-manylinux_2_31_x86_64" in (refusal(wheel, OLD) or "")


def test_a_tag_that_names_no_glibc_is_taken_at_the_word_of_its_libraries(tmp_path: Path) -> None:
    tag = "py3-none-linux_x86_64"
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(versions=("GLIBC_2.34",))}, tag)

    assert "GLIBC_2.34" in (refusal(wheel, OLD) or "")
    assert refusal(wheel, NEW) is None


def test_libraries_for_another_processor_family_are_refused(tmp_path: Path) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(machine=183)})

    assert "its libraries are for aarch64, and the target is x86_64" in (refusal(wheel, OLD) or "")


@pytest.mark.parametrize("library", ["libcurl.so.4", "libc.musl-x86_64.so.1", "libopenblas.so.0"])
def test_a_library_that_nothing_brings_is_named(tmp_path: Path, library: str) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(("libc.so.6", library))})

    assert f"libllama.so needs {library}, which is not in the wheel" in (refusal(wheel, OLD) or "")


def test_cuda_libraries_are_brought_by_the_sets_for_cuda_alone(tmp_path: Path) -> None:
    cuda = shared_library(("libcudart.so.12", "libcublas.so.12", "libcuda.so.1"))
    wheel = llama_wheel(tmp_path, {"libggml-cuda.so": cuda})

    assert "libcudart.so.12" in (refusal(wheel, NEW) or "")
    assert refusal(wheel, CUDA) is None


def test_the_instructions_of_a_build_are_read_from_its_code(tmp_path: Path) -> None:
    native = cpu_library("sse3", "ssse3", "avx", "avx2", "fma", "avx512")
    wheel = llama_wheel(tmp_path, {"libggml-base.so": shared_library(), "libggml-cpu.so": native})
    haswell = {"pni", "ssse3", "avx", "avx2", "fma"}

    assert look_into(wheel).instructions() == haswell | {"avx512f"}
    assert "compiled for avx512f, which the target's processor does not have" in (refusal(wheel, OLD, haswell) or "")
    assert refusal(wheel, OLD, haswell | {"avx512f"}) is None
    assert refusal(wheel, OLD) is None
    assert remarks(wheel) == [
        f"{wheel.name}: runs only on processors with avx, avx2, avx512f, fma, and stops on others"
    ]


def test_of_several_cpu_libraries_one_must_run(tmp_path: Path) -> None:
    libraries = {
        "libggml-base.so": shared_library(),
        "libggml-cpu-sse42.so": cpu_library("sse3", "ssse3"),
        "libggml-cpu-zen4.so": cpu_library("sse3", "ssse3", "avx", "avx2", "fma", "avx512"),
    }
    wheel = llama_wheel(tmp_path, libraries)

    assert refusal(wheel, OLD, {"pni", "ssse3"}) is None
    assert remarks(wheel) == []


def test_a_library_that_most_machines_have_is_remarked_with_its_package(tmp_path: Path) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(("libgomp.so.1",))})

    assert refusal(wheel, OLD) is None
    assert remarks(wheel) == [
        f"{wheel.name}: needs libgomp.so.1 on the machine: the package libgomp1 (Debian) or libgomp (Red Hat)"
    ]


def test_for_macos_and_windows_the_tag_alone_decides(tmp_path: Path) -> None:
    mac = llama_wheel(tmp_path, {"libllama.dylib": b"\xcf\xfa\xed\xfe"}, "py3-none-macosx_11_0_arm64")

    assert refusal(mac, parse_target("cp312-macosx_14_0_arm64")) is None
    assert "does not fit" in (refusal(mac, parse_target("cp312-win_amd64")) or "")


@pytest.mark.parametrize("damage", [lambda data: data[:300], lambda data: data[:64] + b"\xff" * 200 + data[264:]])
def test_damaged_wheels_and_libraries_are_refused_and_raise_nothing(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    broken = llama_wheel(tmp_path, {"libllama.so": damage(shared_library())})
    assert "cannot be read" in (refusal(broken, OLD) or "")

    broken.write_bytes(broken.read_bytes()[:100])
    assert "cannot be read" in (refusal(broken, OLD) or "")

    renamed = broken.rename(tmp_path / "llama.whl")
    assert "llama.whl: not the name of a wheel" in (refusal(renamed, OLD) or "")


def test_the_reader_of_libraries_gives_name_needs_and_code() -> None:
    data = shared_library(("libc.so.6", "libm.so.6"), ("GLIBC_2.17",), {"answer": b"\x31\xc0\xc3"}, soname="libx.so.1")

    assert elf.read(data) == elf.Elf("x86_64", "libx.so.1", ("libc.so.6", "libm.so.6"), frozenset({"GLIBC_2.17"}))
    assert elf.code(data, frozenset({"answer", "other"}), 3) == {"answer": b"\x31\xc0\xc3"}


def test_weights_of_an_architecture_that_the_carried_llama_cpp_does_not_know_are_named(tmp_path: Path) -> None:
    """A linker stores "bert" only as the end of "nomic-bert"."""
    library = shared_library(content=b"llama\0nomic-bert\0a message that ends in qwen9")
    wheel = llama_wheel(tmp_path, {"libllama.so": library})
    llama, bert, qwen, lama = (weights_of(name, tmp_path) for name in ("llama", "bert", "qwen9", "lama2"))

    lines = unknown_architectures(wheel, [llama, bert, qwen, lama])

    assert [line.partition(":")[0] for line in lines] == [str(qwen), str(lama)]
    assert f"the llama.cpp in {wheel.name} does not know the architecture 'qwen9'" in lines[0]


def test_weights_that_are_no_gguf_are_named_too(tmp_path: Path) -> None:
    wheel = llama_wheel(tmp_path, {"libllama.so": shared_library(content=b"llama")})
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")

    assert "its GGUF header cannot be read" in unknown_architectures(wheel, [tmp_path / "broken.gguf"])[0]


def test_a_wheel_without_llama_cpp_knows_no_architectures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no libllama"):
        unknown_architectures(llama_wheel(tmp_path, {}), [])


def test_the_installed_llama_cpp_knows_the_architectures_of_2026_and_names_others(
    tmp_path: Path,
) -> None:
    names = ["qwen3", "qwen35", "qwen35moe", "gemma3", "gemma4", "gemma-embedding", "gpt-oss", "mistral3", "lfm2"]
    names += ["lfm2moe", "granite", "granitehybrid", "nemotron_h", "smollm3", "phi3", "bert"]

    assert unknown_to_installed([weights_of(name, tmp_path) for name in names]) == []
    assert unknown_to_installed([other := weights_of("qwen9", tmp_path)]) == [
        f"{other}: the installed llama.cpp does not know the architecture 'qwen9': install a newer llama-cpp-python, "
        "or choose another model"
    ]


def test_the_portable_build_keeps_four_kinds_of_processors_and_no_amx() -> None:
    listed = """
if (GGML_SYSTEM_ARCH STREQUAL "x86")
    ggml_add_cpu_backend_variant(x64)
    ggml_add_cpu_backend_variant(sse42              SSE42)
    ggml_add_cpu_backend_variant(haswell            SSE42 AVX)
    ggml_add_cpu_backend_variant(icelake            SSE42 AVX AVX512)
    if (NOT MSVC)
        ggml_add_cpu_backend_variant(zen4           SSE42 AVX AVX512)
        ggml_add_cpu_backend_variant(sapphirerapids SSE42 AVX AVX512 AMX_TILE AMX_INT8)
    endif()
"""
    kept = llama.only_variants(listed)

    assert kept.count("ggml_add_cpu_backend_variant") == 4
    assert "AMX" not in kept
    assert kept.count("if (") == 2
    with pytest.raises(LocalError, match="no CPU variant zen4"):
        llama.only_variants(listed.replace("zen4", "zen5"))


@pytest.mark.parametrize("target", ["cp312-win_amd64", "cp312-macosx_14_0_arm64", "cp312-manylinux_2_31_aarch64"])
def test_for_other_systems_no_wheel_is_built_and_the_way_to_give_one_is_named(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match=r"Linux on x86-64 only: give a wheel by --wheel FILE"):
        llama.portable_wheel(parse_target(target), tmp_path, print)


def test_a_wheel_that_was_built_before_is_taken_and_nothing_is_built(tmp_path: Path) -> None:
    folder = llama._folder(tmp_path)
    folder.mkdir()
    said: list[str] = []
    built = llama_wheel(folder, {"libllama.so": shared_library()})

    assert llama.portable_wheel(OLD, tmp_path, said.append) == built
    assert said == []

"""The installer checks the files, finds a Python, and installs without a network; or it says in one line why it cannot.

The wheels are made here, except pip's own, which every Python carries for new environments. install.py is the part that
install.sh and install.ps1 share.
"""

import ast
import ensurepip
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from wheel_index import packed

from tourkit.data import BUNDLE_SKELETON

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"
PLATFORM = f"macosx_11_0_{platform.machine()}" if sys.platform == "darwin" else f"manylinux_2_5_{platform.machine()}"
FITTING = f"{PYTHON}-{PLATFORM}"
CARRIED = (Path(ensurepip.__file__).with_name("_bundled"), Path("/usr/share/python-wheels"))  # Debian has the second
PIPS = [path for folder in CARRIED for path in folder.glob("pip-*.whl")]

starts = pytest.mark.starts
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def loaded() -> Any:
    """Return install.py as a module."""
    spec = importlib.util.spec_from_file_location("install", BUNDLE_SKELETON / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INSTALL = loaded()


# --- a bundle of small wheels ----------------------------------------------------------------------------------------


def wheel(files: dict[str, bytes]) -> bytes:
    """Return the smallest wheel of the name tourkit, version 0.0.0, with these files."""
    about = "tourkit-0.0.0.dist-info"
    files = files | {
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tourkit\nVersion: 0.0.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return packed(files, about)


WORKS = {"tourkit_stub.py": b"WORKS = True\n"}
WHEEL = "wheels/files/tourkit-0.0.0-py3-none-any.whl"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(bundle: Path) -> None:
    """Write SHA256SUMS over everything that is in the bundle."""
    (bundle / "SHA256SUMS").unlink(missing_ok=True)
    files = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    (bundle / "SHA256SUMS").write_text("".join(f"{sha256((bundle / name).read_bytes())}  {name}\n" for name in files))


def carry(bundle: Path, *targets: str, files: dict[str, bytes] = WORKS) -> None:
    """Put a wheel of these files, and pip's own, into the bundle, with a list of them for each target and set."""
    if not PIPS:
        pytest.skip("this Python carries no wheel of pip for new environments")
    pool = bundle / "wheels" / "files"
    pool.mkdir(parents=True, exist_ok=True)
    shutil.copy(PIPS[0], pool)
    (bundle / WHEEL).write_bytes(wheel(files))
    lines = [f"pip=={PIPS[0].name.split('-')[1]} --hash=sha256:{sha256(PIPS[0].read_bytes())}\n"]
    lines.append(f"tourkit==0.0.0 --hash=sha256:{sha256((bundle / WHEEL).read_bytes())}\n")
    for target in targets:
        (bundle / "wheels" / f"{target}.txt").write_text("".join(lines))
    seal(bundle)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with only the installer, in a folder with a space in its name."""
    folder = tmp_path / "usb drive"
    folder.mkdir()
    for name in ("install.sh", "install.py"):
        shutil.copy(BUNDLE_SKELETON / name, folder)
    (folder / "bundle.json").write_text("{}\n")
    seal(folder)
    return folder


def install(
    bundle: Path, where: Path, *args: str, python: str = sys.executable, before: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run install.sh in the folder `where`. `before`: a command that runs it."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(where), "PYTHON": python, **variables}
    command = [*before, "sh", str(bundle / "install.sh"), *args]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def listing(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in said:
        assert words in done.stderr


def program(path: Path, text: str) -> str:
    """Write a shell script that can be run, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def imports(folder: Path, code: str) -> str:
    """Return what the Python of the environment prints for `code`."""
    return subprocess.run([str(folder / "bin" / "python"), "-c", code], capture_output=True, text=True).stdout.strip()


# --- what is refused -------------------------------------------------------------------------------------------------


@starts
@posix
def test_a_bundle_without_wheels_says_how_to_get_them(bundle: Path, tmp_path: Path) -> None:
    refused(install(bundle, tmp_path), 4, "this bundle has no wheels", "tourkit wheels here --bundle")
    assert not (tmp_path / "tourkit-venv").exists()


@starts
@posix
def test_wheels_for_another_python_are_named(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"cp399-{PLATFORM}-cpu")

    refused(install(bundle, tmp_path), 4, f"Tried: {sys.executable} (3.99 wheels, this is {VERSION})")
    assert not (tmp_path / "tourkit-venv").exists()


@starts
@posix
def test_every_python_that_was_tried_is_named(bundle: Path, tmp_path: Path) -> None:
    """Without PYTHON: first the versions that the lists are for, then python3 and python."""
    carry(bundle, f"cp399-{PLATFORM}-cpu")
    for name, said in (("python3.99", "musl"), ("python3", "3.99 wheels, this is 3.6")):
        program(tmp_path / "bin" / name, f"echo '{said}'; exit 3")
    path = f"{tmp_path / 'bin'}:/nowhere"
    for tool in ("sh", "dirname", "basename", "grep", "head", "sed", "sort", "sha256sum", "shasum"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)

    done = install(bundle, tmp_path, python="", PATH=path)

    refused(done, 4, "Tried: python3.99 (musl), python3 (3.99 wheels, this is 3.6).")


@starts
@posix
def test_no_python_at_all_is_said(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu")

    refused(install(bundle, tmp_path, python="/nowhere/python"), 4, "/nowhere/python (there is no such program)")


@starts
@posix
def test_an_old_python_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Python 2 has no option -I, and Python 3.6 cannot read install.py."""
    carry(bundle, f"{FITTING}-cpu")
    old = program(tmp_path / "python2", "exit 2")

    refused(install(bundle, tmp_path, python=old), 4, "older than Python 3.7")


@starts
@posix
def test_it_never_writes_into_the_bundle(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu")
    before = listing(bundle)

    refused(install(bundle, bundle), 2, "inside the bundle", "~/tourkit-venv")
    refused(install(bundle, tmp_path, "usb drive/models/venv"), 2, "no folder usb drive/models")
    refused(install(bundle, tmp_path, "./usb drive/../usb drive/venv"), 2, "inside the bundle")
    assert listing(bundle) == before


@starts
@posix
def test_wrong_arguments_are_refused(bundle: Path, tmp_path: Path) -> None:
    refused(install(bundle, tmp_path, "a", "b"), 2, "at most one argument")
    refused(install(bundle, tmp_path, "--help"), 2, "usage")
    refused(install(bundle, tmp_path, "nowhere/venv"), 2, "no folder nowhere")


@starts
@posix
def test_a_set_that_is_not_carried_is_refused_with_those_that_are(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu", f"{FITTING}-onnx")

    refused(install(bundle, tmp_path, SET="cuda-vllm"), 4, "no set cuda-vllm for it, only cpu, onnx")


@starts
@posix
def test_a_folder_with_something_else_in_it_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")

    refused(install(bundle, tmp_path, "thesis"), 2, "is no virtual environment")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


@starts
@posix
@pytest.mark.parametrize("name", [WHEEL, f"wheels/{FITTING}-cpu.txt", "install.py", "install.sh", "bundle.json"])
def test_one_flipped_byte_stops_it_before_anything_is_installed(bundle: Path, tmp_path: Path, name: str) -> None:
    carry(bundle, f"{FITTING}-cpu")
    data = bytearray((bundle / name).read_bytes())
    data[-2] ^= 1
    (bundle / name).write_bytes(data)

    refused(install(bundle, tmp_path), 1, f"{name} is damaged or missing", "nothing was installed")
    assert not (tmp_path / "tourkit-venv").exists()


@starts
@posix
def test_a_missing_wheel_or_list_of_checksums_stops_it_too(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu")
    (bundle / WHEEL).unlink()
    refused(install(bundle, tmp_path), 1, f"{WHEEL} is damaged or missing")
    (bundle / "SHA256SUMS").write_text("")
    refused(install(bundle, tmp_path), 1, "SHA256SUMS has no line for bundle.json")
    (bundle / "SHA256SUMS").unlink()
    refused(install(bundle, tmp_path), 1, "there is no SHA256SUMS")
    assert not (tmp_path / "tourkit-venv").exists()


@starts
@linux
def test_a_drive_on_which_no_program_can_run_is_named(bundle: Path, tmp_path: Path) -> None:
    """A tmpfs that is mounted noexec, in a namespace of its own."""
    carry(bundle, f"{FITTING}-cpu")
    (tmp_path / "stick").mkdir()
    mounts = 'mount -t tmpfs -o noexec tmpfs "$1" && shift && exec "$@"'
    before = ("unshare", "-Urm", "sh", "-c", mounts, "sh", str(tmp_path / "stick"))
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let this user mount a tmpfs in a namespace")

    done = install(bundle, tmp_path, "stick/venv", before=before)

    refused(done, 4, "mounted noexec", "give a folder on another drive")


@linux
def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        INSTALL.check_folder(Path("/proc/venv"))

    assert ended.value.code == 4
    assert capsys.readouterr().err.startswith("install: /proc/venv cannot be written (")


# --- installing ------------------------------------------------------------------------------------------------------


@starts
@posix
def test_it_installs_without_a_network_and_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path) -> None:
    """Proxies that do not exist take the place of the missing network: no request may be sent.

    A second run of the same command changes nothing. pip's settings for this user do not count.
    """
    variables = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://a.b"}
    carry(bundle, f"{FITTING}-cpu")
    before = listing(bundle)
    done = install(bundle, tmp_path, "my venv", **variables)
    again = install(bundle, tmp_path, "my venv", **variables)

    assert done.returncode == 0, done.stderr
    assert again.returncode == 0, again.stderr
    assert done.stdout.splitlines()[-3:] == [
        f'  . "{tmp_path / "my venv"}/bin/activate"',
        f'  tourkit verify "{bundle}"',
        f'  tourkit serve --bundle "{bundle}" --offline',
    ]
    assert imports(tmp_path / "my venv", "import pip, tourkit_stub; print(tourkit_stub.WORKS)") == "True"
    assert listing(bundle) == before


@starts
@posix
def test_an_environment_of_another_python_is_not_mixed_with_this_one(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"{FITTING}-cpu")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pyvenv.cfg").write_text("version = 3.6\n")
    for name in ("python", "python3", f"python{VERSION}"):
        program(tmp_path / "old" / "bin" / name, "echo 3.6")

    refused(install(bundle, tmp_path, "old"), 2, f"old was made by Python 3.6, this is {VERSION}")


def bare_python(folder: Path) -> Path:
    """Make a Python of its own that has no ensurepip, from links to the running one's library. Return its program."""
    library = Path(os.__file__).parent
    below = folder / "lib" / library.name
    below.mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name not in ("ensurepip", "site-packages"):
            (below / entry.name).symlink_to(entry)
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), folder / "bin" / "python3")
    return folder / "bin" / "python3"


@starts
@linux
def test_the_python_of_the_bundle_is_used_where_no_other_fits(bundle: Path, tmp_path: Path) -> None:
    """It is unpacked beside the environment. One that cannot run here is removed again.

    This one has no ensurepip, as Debian's without the package python3-venv: pip comes from its wheel.
    """
    python = bare_python(tmp_path / "made" / "python")
    asked = subprocess.run([str(python), "-I", "-c", "import ensurepip"], capture_output=True, text=True, check=False)
    assert "No module named 'ensurepip'" in asked.stderr
    program(tmp_path / "windows" / "python" / "bin" / "python3", "exit 1")
    (bundle / "python").mkdir()
    for name, folder in (("cpython-9-1-windows", "windows"), ("cpython-9-2-here", "made")):
        with tarfile.open(bundle / "python" / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / folder / "python", "python")
    carry(bundle, f"{FITTING}-cpu")
    for name in ("python3", "python", f"python{VERSION}"):
        program(tmp_path / "bin" / name, "exit 1")

    done = install(bundle, tmp_path, python="", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    assert done.returncode == 0, done.stderr
    base = tmp_path / "tourkit-venv-python" / "cpython-9-2-here" / "python"
    assert imports(tmp_path / "tourkit-venv", "import sys, pip, tourkit_stub; print(sys.base_prefix)") == str(base)
    assert [path.name for path in (tmp_path / "tourkit-venv-python").iterdir()] == ["cpython-9-2-here"]


@starts
@posix
def test_a_damaged_python_of_the_bundle_is_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    carry(bundle, f"cp399-{PLATFORM}-cpu")
    (bundle / "python").mkdir()
    (bundle / "python" / "cpython-9.tar.gz").write_bytes(b"whole")
    seal(bundle)
    (bundle / "python" / "cpython-9.tar.gz").write_bytes(b"other")

    refused(install(bundle, tmp_path, python=""), 1, "python/cpython-9.tar.gz is damaged")
    assert not (tmp_path / "tourkit-venv-python").exists()


@starts
@posix
@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ('--help) ;; *) echo first; echo "$1 $2: all ok"', ["doctor --bundle: all ok"]),
        (
            "--help) ;; *) echo 1 failure; echo not ready >&2; exit 1",
            ["1 failure", f'To see what is wrong: tourkit doctor --bundle "{BUNDLE_SKELETON}"'],
        ),
        ("--help) echo no such command >&2; exit 2", []),
    ],
)
def test_the_last_line_of_the_doctor_is_shown_if_this_tourkit_has_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], commands: str, said: list[str]
) -> None:
    """What the doctor finds does not undo the installation."""
    program(tmp_path / "bin" / "tourkit", f"case $2 in {commands} ;; esac")

    INSTALL.show_doctor(tmp_path)

    printed = capfd.readouterr()
    assert (printed.out.splitlines(), printed.err) == (said, "")


# --- choosing the wheels ---------------------------------------------------------------------------------------------

LINUX = INSTALL.Machine("cp312", "linux", "x86_64", (2, 36), None)
GPU = LINUX._replace(cuda=(12, 4))
MAC = INSTALL.Machine("cp312", "macosx", "arm64", (14, 5), None)
WINDOWS = INSTALL.Machine("cp312", "win", "amd64", (), None)
CPU = "cp312-manylinux_2_31_x86_64-cpu"
LLAMA = "cp312-manylinux_2_31_x86_64-cuda-llama"
VLLM = "cp312-manylinux_2_31_x86_64-cuda-vllm"
RUNTIMES = {LLAMA: "nvidia-cuda-runtime-cu12==12.4.127 --hash=…\n", VLLM: "nvidia-cuda-runtime==13.0.96 --hash=…\n"}


def chosen(folder: Path, names: list[str], machine: Any, wanted: str = "") -> tuple[str, str]:
    """Return the list that is chosen from these, "" for none, and the notes."""
    for name in names:
        (folder / f"{name}.txt").write_text(f"aiohttp==3 --hash=…\n{RUNTIMES.get(name, '')}", encoding="utf-8")
    found, notes = INSTALL.choose([INSTALL.wheel_list(folder / f"{name}.txt") for name in names], machine, wanted)
    return (found.name.removesuffix(".txt") if found else ""), notes


@pytest.mark.parametrize(
    ("lists", "machine", "why"),
    [
        (["cp311-manylinux_2_31_x86_64-cpu"], LINUX, "3.11 wheels, this is 3.12"),
        ([CPU], LINUX._replace(python="cp312t"), "3.12 wheels, this is 3.12t"),
        ([CPU], LINUX._replace(python="pp312"), "3.12 wheels, this is pp312"),
        ([CPU], LINUX._replace(version=(2, 28)), "wheels for glibc 2.31 or newer, this machine has 2.28"),
        ([CPU], LINUX._replace(version=()), "wheels for glibc 2.31 or newer, this Linux has none (musl?)"),
        ([CPU], LINUX._replace(arch="aarch64"), "wheels for linux x86_64, this is linux aarch64"),
        ([CPU], WINDOWS, "wheels for linux x86_64, this is win amd64"),
        (["cp312-macosx_15_0_arm64-cpu"], MAC, "wheels for macOS 15.0 or newer, this machine has 14.5"),
        (["cp312-win_amd64-cpu", "cp311-manylinux_2_31_x86_64-cpu"], LINUX, "3.11 wheels, this is 3.12"),
        (["cp311-manylinux_2_40_x86_64-cpu", "cp311-manylinux_2_31_x86_64-cpu"], LINUX, "3.11 wheels, this is 3.12"),
        ([], LINUX, "no list of wheels"),
    ],
)
def test_why_no_list_fits_is_said_with_what_was_nearest(
    tmp_path: Path, lists: list[str], machine: Any, why: str
) -> None:
    assert chosen(tmp_path, lists, machine) == ("", why)


@pytest.mark.parametrize(
    ("names", "machine"),
    [
        (["cp312-macosx_14_0_arm64-cpu"], MAC),
        (["cp312-win_amd64-cpu"], WINDOWS),
        ([CPU], LINUX._replace(version=(2, 31))),
    ],
)
def test_a_list_for_this_system_fits(tmp_path: Path, names: list[str], machine: Any) -> None:
    assert chosen(tmp_path, names, machine) == (names[0], "")


def test_a_cuda_set_is_taken_where_the_driver_can_run_it(tmp_path: Path) -> None:
    """Which CUDA it needs is read from its list: 12 from nvidia-cuda-runtime-cu12, 13 from nvidia-cuda-runtime==13."""
    every = [CPU, LLAMA, VLLM]

    assert chosen(tmp_path, every, LINUX)[0] == CPU
    assert chosen(tmp_path, every, LINUX._replace(cuda=(11, 8)))[0] == CPU
    assert chosen(tmp_path, every, GPU) == (LLAMA, "cuda-vllm needs a driver for CUDA 13, here is CUDA 12.4")
    assert chosen(tmp_path, [CPU, VLLM], LINUX._replace(cuda=(13, 0))) == (VLLM, "")
    assert "cuda-llama needs a driver for CUDA 12, here is no NVIDIA driver or GPU" in chosen(tmp_path, every, LINUX)[1]


def test_a_cuda_set_for_another_python_or_a_newer_glibc_is_named_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    newer, other = LLAMA.replace("2_31", "2_39"), LLAMA.replace("cp312", "cp313")
    windows = "cp312-win_amd64-cuda-llama"

    assert chosen(tmp_path, [CPU, newer, windows], GPU) == (
        CPU,
        "cuda-llama: wheels for glibc 2.39 or newer, this machine has 2.36",
    )
    assert chosen(tmp_path, [CPU, other], GPU) == (CPU, "cuda-llama: 3.13 wheels, this is 3.12")
    assert chosen(tmp_path, [CPU, newer, other], LINUX) == (CPU, "")


def test_a_text_file_of_another_kind_is_no_list(tmp_path: Path) -> None:
    assert INSTALL.wheel_list(tmp_path / "read-me-first.txt") is None


def test_the_set_cpu_comes_before_the_other_sets_without_cuda(tmp_path: Path) -> None:
    other = CPU.replace("-cpu", "-cpu+onnx")

    assert chosen(tmp_path, [other, CPU], LINUX)[0] == CPU
    assert chosen(tmp_path, [other], LINUX)[0] == other


def test_the_set_that_is_asked_for_is_taken_with_any_driver(tmp_path: Path) -> None:
    assert chosen(tmp_path, [CPU, LLAMA], LINUX, "cuda-llama")[0] == LLAMA
    assert chosen(tmp_path, [CPU, LLAMA], GPU, "cpu")[0] == CPU
    assert chosen(tmp_path, [CPU, LLAMA], GPU, "onnx") == ("", "no set onnx for it, only cpu, cuda-llama")


def test_a_bundle_with_nothing_but_cuda_says_how_to_install_it_without_a_driver(tmp_path: Path) -> None:
    assert chosen(tmp_path, [LLAMA], LINUX)[1].endswith("(SET=cuda-llama installs it all the same)")


DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
"""


@starts
@linux
@pytest.mark.parametrize(("init", "count", "found"), [(0, 1, "(12, 4)"), (0, 0, "None"), (100, 1, "None")])
def test_the_driver_is_asked_for_its_cuda_and_its_devices(tmp_path: Path, init: int, count: int, found: str) -> None:
    """The library of the driver is one that is compiled here: a driver without a device has no use."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a library like the driver's")
    (tmp_path / "driver.c").write_text(DRIVER)
    macros = [f"-DINIT={init}", f"-DCOUNT={count}"]
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", *macros, "-o", library, str(tmp_path / "driver.c")], check=True)
    code = f"import runpy; print(runpy.run_path({str(BUNDLE_SKELETON / 'install.py')!r})['cuda_driver']())"

    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == found, done.stderr


def test_this_machine_is_described_in_the_words_of_wheel_names() -> None:
    here = INSTALL.this_machine()

    assert here.python == PYTHON
    assert here.system == {"darwin": "macosx", "win32": "win"}.get(sys.platform, sys.platform)
    assert INSTALL.misfit(INSTALL.WheelList("", PYTHON, here.system, here.arch, here.version, "cpu", 0), here) is None


# --- the scripts themselves ------------------------------------------------------------------------------------------


@starts
@posix
def test_the_script_is_plain_posix(bundle: Path) -> None:
    """dash is /bin/sh on Debian and Ubuntu, and every shell fails on a CR."""
    data = (bundle / "install.sh").read_bytes()

    assert data.startswith(b"#!/bin/sh\n")
    assert b"\r" not in data
    for shell in filter(shutil.which, ("dash", "bash", "busybox")):
        command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
        subprocess.run([*command, str(bundle / "install.sh")], check=True)


def test_an_old_python_can_read_the_part_that_says_why_it_does_not_fit() -> None:
    ast.parse((BUNDLE_SKELETON / "install.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_the_powershell_script_can_be_parsed() -> None:
    """By PowerShell, else by a grammar of it. It was never run."""
    script = BUNDLE_SKELETON / "install.ps1"
    shell = shutil.which("pwsh") or shutil.which("powershell")
    if shell:
        parse = f"[Management.Automation.Language.Parser]::ParseFile('{script}', [ref]$null, [ref]$found)"
        code = f"$found = $null; $null = {parse}; $found"
        done = subprocess.run([shell, "-NoProfile", "-Command", code], capture_output=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, b""), done.stdout
        return
    reason = "neither PowerShell nor the package tree-sitter-powershell is here to parse install.ps1"
    tree_sitter = pytest.importorskip("tree_sitter", reason=reason)
    grammar = pytest.importorskip("tree_sitter_powershell", reason=reason)
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(script.read_bytes())
    assert not tree.root_node.has_error, str(tree.root_node)


def test_both_scripts_check_the_same_files_and_say_the_same() -> None:
    """Each is plain text for its own system; what they share is in install.py."""
    shell, windows = ((BUNDLE_SKELETON / name).read_text(encoding="utf-8") for name in ("install.sh", "install.ps1"))

    for words in (
        "is damaged or missing: copy it again from where the bundle was made; nothing was installed",
        "this bundle has no wheels: where it was made, run: tourkit wheels here --bundle DIR",
        "lies inside the bundle: give a place outside",
        "no Python fits the wheels of this bundle. Tried: ",
        "cannot run install.py: older than Python 3.7, or incomplete",
    ):
        assert words in shell
        assert words in windows
    assert re.findall(r"bundle\.json|install\.(?:py|sh|ps1)", shell).count("bundle.json")

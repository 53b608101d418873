"""Choose the wheels of this bundle for one Python, and install them. install.sh and install.ps1 run it.

    python install.py choose [SET]      print the list of wheels for this Python; or, with exit code 3, why none fits
    python install.py into VENV LIST    make the virtual environment VENV and install the wheels of LIST into it

It needs only the standard library, asks no network and writes nothing into the bundle. It runs on Python 3.7 too, so
that an old Python can say why it does not fit.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

BUNDLE = Path(os.path.abspath(__file__)).parent  # noqa: PTH100 - resolve() would turn a Windows drive into a server's name
NO_FIT = 3
_LIST = re.compile(r"([a-z]+\d+t?)-([a-z]+)_((?:\d+_)*)(\w+)-([\w+-]+)\.txt")  # <target>-<set>.txt
_SYSTEMS = {"manylinux": "linux", "macosx": "macosx", "win": "win"}
_CUDA_RUNTIME = re.compile(r"^nvidia-cuda-runtime(?:-cu(\d+))?==(\d+)", re.MULTILINE)
_ON_WINDOWS = os.name == "nt"


class Machine(NamedTuple):
    """One Python and the machine it runs on."""

    python: str  # as in wheel names, such as cp312
    system: str  # linux, macosx or win
    arch: str
    version: tuple[int, ...]  # of glibc or of macOS; empty if there is none (musl, Windows)
    cuda: tuple[int, int] | None  # the newest CUDA that the driver can run; None without a GPU


class WheelList(NamedTuple):
    """One file wheels/<target>-<set>.txt."""

    name: str
    python: str
    system: str
    arch: str
    version: tuple[int, ...]  # the lowest glibc or macOS
    set: str
    cuda: int  # the CUDA major version that the driver must know; 0 for none


def wheel_list(path: Path) -> WheelList | None:
    """Return what the name of a list says, and which CUDA its packages need. None if the file is no list."""
    named = _LIST.fullmatch(path.name)
    if named is None:
        return None
    python, system, version, arch, chosen = named.groups()
    cuda = 0
    if "cuda" in chosen:
        found = _CUDA_RUNTIME.findall(path.read_text(encoding="utf-8"))
        cuda = max((int(suffix or major) for suffix, major in found), default=12)
    return WheelList(path.name, python, _SYSTEMS.get(system, system), arch, _numbers(version), chosen, cuda)


def this_machine() -> Machine:
    """Return this Python and this machine."""
    name = {"cpython": "cp", "pypy": "pp"}.get(sys.implementation.name, sys.implementation.name)
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    python = f"{name}{sys.version_info[0]}{sys.version_info[1]}{threads}"
    system = {"darwin": "macosx", "win32": "win"}.get(sys.platform, sys.platform)
    arch = sysconfig.get_platform().split("-")[-1] if system == "win" else platform.machine()
    if sys.maxsize < 2**32:
        arch = f"{arch} with 32 bits"
    return Machine(python, system, arch, _system_version(system), cuda_driver())


def _system_version(system: str) -> tuple[int, ...]:
    if system == "macosx":
        return _numbers(platform.mac_ver()[0])
    if system != "linux":
        return ()
    try:
        return _numbers(os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (OSError, ValueError):  # musl does not know the name
        return ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def cuda_driver() -> tuple[int, int] | None:
    """Return the newest CUDA version that the NVIDIA driver can run. None without a driver or without a GPU."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        version, count = ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
        if driver.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value // 1000, version.value % 1000 // 10
    return None


def misfit(wheels: WheelList, machine: Machine) -> tuple[int, str] | None:
    """Return why the list does not fit the machine, after a number: the higher, the nearer. None if it fits."""
    if (wheels.system, wheels.arch) != (machine.system, machine.arch):
        return 0, f"wheels for {wheels.system} {wheels.arch}, this is {machine.system} {machine.arch}"
    library = "glibc" if wheels.system == "linux" else "macOS"
    least, here = _dotted(wheels.version), _dotted(machine.version)
    if wheels.version and not machine.version:
        return 1, f"wheels for {library} {least} or newer, this Linux has none (musl?)"
    if wheels.version > machine.version:
        return 1, f"wheels for {library} {least} or newer, this machine has {here}"
    if wheels.python != machine.python:
        return 2, f"{_readable(wheels.python)} wheels, this is {_readable(machine.python)}"
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _readable(python: str) -> str:
    return re.sub(r"^cp(\d)(\d+)", r"\1.\2", python)


def choose(lists: list[WheelList], machine: Machine, wanted: str) -> tuple[WheelList | None, str]:
    """Return the list to install and notes on CUDA lists that were passed over; or None and why there is no list.

    `wanted`: the name of a set; "" takes a CUDA set if the driver can run it, else the set cpu.
    """
    misfits = [found for found in (misfit(each, machine) for each in lists) if found]
    fitting = [each for each in lists if not misfit(each, machine)]
    if not fitting:
        nearest = max((near for near, _ in misfits), default=0)
        return None, "; ".join(sorted({why for near, why in misfits if near == nearest})) or "no list of wheels"
    if wanted:
        named = [each for each in fitting if each.set == wanted]
        sets = ", ".join(sorted({each.set for each in fitting}))
        return (named[0], "") if named else (None, f"no set {wanted} for it, only {sets}")
    usable = [each for each in fitting if not each.cuda or (machine.cuda and machine.cuda[0] >= each.cuda)]
    notes = "; ".join(passed_over(lists, machine))
    if not usable:
        return None, f"{notes} (SET={fitting[0].set} installs it all the same)"
    return min(usable, key=lambda each: (not each.cuda, each.set != "cpu", each.set, each.name)), notes


def passed_over(lists: list[WheelList], machine: Machine) -> list[str]:
    """Return why each CUDA list for this kind of machine is not taken. One that does not fit counts only with a GPU."""
    said = []
    for each in lists:
        found = misfit(each, machine)
        if not each.cuda or (found and (not found[0] or machine.cuda is None)):
            continue
        has = f"CUDA {_dotted(machine.cuda)}" if machine.cuda else "no NVIDIA driver or GPU"
        if found:
            said.append(f"{each.set}: {found[1]}")
        elif machine.cuda is None or machine.cuda[0] < each.cuda:
            said.append(f"{each.set} needs a driver for CUDA {each.cuda}, here is {has}")
    return said


def carried_lists() -> list[WheelList]:
    found = (wheel_list(path) for path in sorted((BUNDLE / "wheels").glob("*.txt")))
    return [each for each in found if each]


def print_choice(wanted: str) -> int:
    found, notes = choose(carried_lists(), this_machine(), wanted)
    print(f"wheels/{found.name}" if found else notes)
    return 0 if found else NO_FIT


def install(folder: Path, wheels: str) -> int:
    """Make the virtual environment and install the list, then print the next commands."""
    chosen, notes = choose(carried_lists(), this_machine(), "")
    print(f"Python:  {sys.executable}\nWheels:  {wheels}")
    if notes and chosen and wheels == f"wheels/{chosen.name}":
        print(f"         {notes}")
    print(f"Into:    {folder}", flush=True)
    check_folder(folder)
    python = make_environment(folder)
    pip = next(iter(re.findall(r"^pip==(\S+)", (BUNDLE / wheels).read_text(encoding="utf-8"), re.MULTILINE)), None)
    if pip is None:
        fail(4, f"{wheels} has no pip: run tourkit wheels again where the bundle was made")
    files = BUNDLE / "wheels" / "files"
    # pip runs from its wheel: a Python without ensurepip (Debian without python3-venv) is enough.
    command = [python, "-I", str(files / f"pip-{pip}-py3-none-any.whl" / "pip"), "--isolated", "install", "--quiet"]
    # Python compiles a module when it is first imported: compiling all of them takes longer than installing them.
    command += ["--no-compile", "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--only-binary", ":all:"]
    command += ["--find-links", str(files), "--require-hashes", "-r", str(BUNDLE / wheels)]
    if subprocess.call(command) != 0:
        fail(4, f"pip could not install {wheels}: see its lines above")
    show_doctor(folder)
    show_next(folder)
    return 0


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else, one that cannot be written, and one where no program can run."""
    if folder.exists() and not (folder / "pyvenv.cfg").exists() and (folder.is_file() or any(folder.iterdir())):
        fail(2, f"{folder} is there and is no virtual environment: give another folder")
    try:
        with tempfile.TemporaryDirectory(dir=str(folder if folder.exists() else folder.parent)) as scrap:
            runs = _ON_WINDOWS or can_run(Path(scrap, "run"))
    except OSError as exc:
        fail(4, f"{folder} cannot be written ({exc.strerror}): give another folder")
    if not runs:
        fail(4, f"{folder}: no program can run there (mounted noexec): give a folder on another drive")


def can_run(script: Path) -> bool:
    """Write a shell script and return whether the system runs it."""
    script.write_text("#!/bin/sh\n", encoding="ascii")
    script.chmod(0o755)
    try:
        return subprocess.call([str(script)]) == 0
    except PermissionError:
        return False


def make_environment(folder: Path) -> str:
    """Make the virtual environment, without pip, unless it is there. Return its Python."""
    python = str(folder / ("Scripts/python.exe" if _ON_WINDOWS else "bin/python"))
    if (folder / "pyvenv.cfg").exists():
        ours, there = _dotted(sys.version_info[:2]), version_of(python)
        if there != ours:
            fail(2, f"{folder} was made by Python {there}, this is {ours}: give another folder")
    try:
        venv.create(str(folder), symlinks=not _ON_WINDOWS)
    except (OSError, ValueError) as exc:  # ValueError: a path that no environment can have
        fail(4, f"{folder}: the virtual environment cannot be made ({exc}): give another folder that you may write")
    return python


def version_of(python: str) -> str:
    """Return the version of an interpreter, such as 3.12."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-I", "-c", code], stdout=subprocess.PIPE).stdout.decode().strip()
    except OSError:
        return "that is gone"


def show_doctor(folder: Path) -> None:
    """Print the last line of `tourkit doctor`, if this tourkit has it. What it finds does not undo the installation."""
    program = str(folder / ("Scripts/tourkit.exe" if _ON_WINDOWS else "bin/tourkit"))
    if not Path(program).exists():
        return
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.call([program, "doctor", "--help"], **quiet) != 0:
        return
    command = [program, "doctor", "--bundle", str(BUNDLE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines = done.stdout.strip().splitlines() or [b"doctor: no answer"]
    sys.stdout.flush()
    sys.stdout.buffer.write(lines[-1] + b"\n")  # as bytes: the terminal may have another encoding
    sys.stdout.buffer.flush()
    if done.returncode:
        print(f'To see what is wrong: tourkit doctor --bundle "{BUNDLE}"')


def show_next(folder: Path) -> None:
    activate = f"& '{folder}\\Scripts\\Activate.ps1'" if _ON_WINDOWS else f'. "{folder}/bin/activate"'
    print("Done. Next:")
    print(f"  {activate}")
    print(f'  tourkit verify "{BUNDLE}"')
    print(f'  tourkit serve --bundle "{BUNDLE}" --offline')


def fail(code: int, message: str) -> None:
    sys.stderr.write(f"install: {message}\n")
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "choose":
        sys.exit(print_choice("".join(sys.argv[2:])))
    sys.exit(install(Path(sys.argv[2]), sys.argv[3]))

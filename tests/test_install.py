"""install.sh installs from the bundle's wheels without a network, or says in one line why it cannot."""

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tourkit.data import BUNDLE_SKELETON

SYSTEM = sysconfig.get_platform().replace("-", "_").replace(".", "_")
if SYSTEM.startswith("macosx"):
    SYSTEM = f"macosx_{platform.machine()}"
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}-{SYSTEM}"

pytestmark = [pytest.mark.starts, pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Make a bundle with only the shell script, in a folder with a space in its name."""
    folder = tmp_path / "usb drive"
    folder.mkdir()
    shutil.copy(BUNDLE_SKELETON / "install.sh", folder)
    return folder


def install(
    bundle: Path, where: Path, *args: str, python: str = sys.executable, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(where), "PYTHON": python, **variables}
    command = ["sh", str(bundle / "install.sh"), *args]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)


def write_wheel(folder: Path) -> None:
    """Write the smallest wheel that can be installed under the name tourkit."""
    files = {
        "tourkit_stub.py": b"WORKS = True\n",
        "tourkit-0.0.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tourkit\nVersion: 0.0.0\n",
        "tourkit-0.0.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files["tourkit-0.0.0.dist-info/RECORD"] = f"{record}tourkit-0.0.0.dist-info/RECORD,,\n".encode()
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "tourkit-0.0.0-py3-none-any.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)


def listing(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def refused(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in said:
        assert words in done.stderr


def test_a_bundle_without_wheels_says_how_to_get_them(bundle: Path, tmp_path: Path) -> None:
    refused(install(bundle, tmp_path), 4, "no wheels/ folder", "pip wheel", "WHEELS=DIR")
    assert not (tmp_path / "tourkit-venv").exists()


def test_wheels_for_another_python_are_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / "wheels" / "cp399-plan9").mkdir(parents=True)

    refused(install(bundle, tmp_path), 4, f"needs wheels/{TAG}", "In wheels/: cp399-plan9")


def test_no_python_at_all_is_said(bundle: Path, tmp_path: Path) -> None:
    write_wheel(bundle / "wheels" / TAG)

    refused(install(bundle, tmp_path, python="/nowhere/python"), 4, "no Python found at /nowhere/python")


@pytest.mark.parametrize("wheels", ["in the bundle", "elsewhere"])
def test_an_old_python_is_refused(bundle: Path, tmp_path: Path, wheels: str) -> None:
    write_wheel(bundle / "wheels" / "cp39-linux_x86_64")
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3 9 cp39-linux_x86_64\n")
    old.chmod(0o755)
    variables = {"WHEELS": str(tmp_path)} if wheels == "elsewhere" else {}

    refused(install(bundle, tmp_path, python=str(old), **variables), 4, "3.11 or newer", "(3.9")


def test_it_never_writes_into_the_bundle(bundle: Path, tmp_path: Path) -> None:
    write_wheel(bundle / "wheels" / TAG)
    before = listing(bundle)

    refused(install(bundle, bundle), 2, "inside the bundle", "~/tourkit-venv")
    refused(install(bundle, tmp_path, "usb drive/models/venv"), 2, "no folder usb drive/models")
    refused(install(bundle, tmp_path, "./usb drive/../usb drive/venv"), 2, "inside the bundle")
    assert listing(bundle) == before


def test_wrong_arguments_are_refused(bundle: Path, tmp_path: Path) -> None:
    refused(install(bundle, tmp_path, "a", "b"), 2, "at most one argument")
    refused(install(bundle, tmp_path, "--help"), 2, "usage")
    refused(install(bundle, tmp_path, "nowhere/venv"), 2, "no folder nowhere")
    refused(install(bundle, tmp_path, WHEELS="/nowhere"), 2, "no folder /nowhere")


def test_a_folder_with_something_else_in_it_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    write_wheel(bundle / "wheels" / TAG)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")

    refused(install(bundle, tmp_path, "thesis"), 2, "is no virtual environment")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


def test_it_installs_without_a_network_and_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path) -> None:
    """Proxies that do not exist take the place of the missing network: no request may be sent.

    A first run without the wheel fails with pip's message and ours. The next run repairs what it left.
    """
    variables = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    (tmp_path / "empty").mkdir()
    failed = install(bundle, tmp_path, "my venv", WHEELS="empty", **variables)
    write_wheel(bundle / "wheels" / TAG)
    before = listing(bundle)
    done = install(bundle, tmp_path, "my venv", **variables)

    assert failed.returncode == 4
    assert "tourkit" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("install.sh: pip could not install")
    assert done.returncode == 0, done.stderr
    assert f'tourkit verify "{bundle}"' in done.stdout
    code = "import tourkit_stub; print(tourkit_stub.WORKS)"
    python = str(tmp_path / "my venv" / "bin" / "python")
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "True\n"
    assert listing(bundle) == before


def test_the_script_is_plain_posix(bundle: Path) -> None:
    """dash is /bin/sh on Debian and Ubuntu, and every shell fails on a CR."""
    data = (bundle / "install.sh").read_bytes()

    assert data.startswith(b"#!/bin/sh\n")
    assert b"\r" not in data
    for shell in filter(shutil.which, ("dash", "bash", "busybox")):
        command = [shell, "sh", "-n"] if shell == "busybox" else [shell, "-n"]
        subprocess.run([*command, str(bundle / "install.sh")], check=True)

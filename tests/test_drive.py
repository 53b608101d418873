"""prefetch says which drive it writes to, and does not make the folder of a drive that is not mounted."""

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tourkit.cli import main
from tourkit.fetch.drive import Drive, drive_of


def mounts(folder: Path, *lines: str) -> Path:
    path = folder / "mounts"
    path.write_text("".join(f"{line} rw 0 0\n" for line in lines))
    return path


def test_the_drive_is_that_of_the_deepest_mount_point_above_the_folder(tmp_path: Path) -> None:
    stick = tmp_path / "usb"
    (stick / "deep").mkdir(parents=True)
    table = mounts(tmp_path, "/dev/root / ext4", f"/dev/sda1 {stick} exfat", f"/dev/sdb1 {stick}-2 vfat")

    inside, outside = drive_of(stick / "deep" / "bundle", table), drive_of(tmp_path / "bundle", table)

    assert (inside.device, inside.filesystem) == ("/dev/sda1", "exFAT")
    assert (outside.device, outside.filesystem) == ("/dev/root", "ext4")
    assert inside.free <= shutil.disk_usage(tmp_path).total


def test_a_mount_on_a_mount_hides_the_first_one(tmp_path: Path) -> None:
    table = mounts(tmp_path, "/dev/sda1 / ext4", "overlay / overlay")

    assert drive_of(tmp_path, table).device == "overlay"


def test_a_mount_point_with_a_space_and_a_link_to_it_are_found(tmp_path: Path) -> None:
    stick = tmp_path / "my stick"
    stick.mkdir()
    (tmp_path / "link").symlink_to(stick)
    table = mounts(tmp_path, "/dev/root / ext4", "/dev/sda1 " + str(stick).replace(" ", r"\040") + " ntfs3")

    assert drive_of(tmp_path / "link" / "not" / "there", table).filesystem == "NTFS"


def test_without_a_list_of_mounts_only_the_free_space_is_known(tmp_path: Path) -> None:
    drive = drive_of(tmp_path, tmp_path / "absent")

    assert (drive.device, drive.filesystem) == (None, None)
    assert re.fullmatch(r"\d+(\.\d)? [KMG]?i?B free", str(drive))


@pytest.mark.parametrize(
    ("drive", "text"),
    [
        (Drive("/dev/sda1", "exFAT", 58 << 30), "on /dev/sda1 (exFAT), 58.0 GiB free"),
        (Drive("overlay", "overlay", 1 << 30), "on overlay, 1.0 GiB free"),
        (Drive(None, None, 1 << 20), "1.0 MiB free"),
    ],
)
def test_a_drive_in_words(drive: Drive, text: str) -> None:
    assert str(drive) == text


# ---- the command -------------------------------------------------------------------------------------

NOBODY = "http://127.0.0.1:9"


def test_prefetch_names_the_drive_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "no address")

    assert main(["prefetch", "cpu-16gb", "--to", str(tmp_path / "bundle")]) == 3

    [first, *_] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"writing to {tmp_path}/bundle (on \S+.*, |: )\d+\.\d [KMG]iB free", first)


@pytest.mark.starts
def test_elsewhere_than_on_a_terminal_a_missing_parent_is_wrong_use_unless_yes_is_given(tmp_path: Path) -> None:
    to = tmp_path / "usb" / "bundle"
    command = [sys.executable, "-m", "tourkit", "prefetch", "cpu-16gb", "--to", str(to)]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    environment = os.environ | {"HF_ENDPOINT": "no address"}

    refused = subprocess.run(command, env=environment, **options)
    agreed = subprocess.run([*command, "--yes"], env=environment, **options)
    dry = subprocess.run([*command, "--dry-run"], env=environment, **options)

    assert refused.returncode == 2
    assert f"{tmp_path}/usb does not exist" in refused.stderr
    assert "--yes" in refused.stderr
    assert agreed.returncode == 3, "it got as far as the hub"
    assert dry.returncode == 0
    assert not (tmp_path / "usb").exists()


@pytest.mark.starts
@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("y", 3)])
def test_on_a_terminal_it_asks(tmp_path: Path, answer: str, code: int) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tourkit", "prefetch", "cpu-16gb", "--to", str(tmp_path / "usb" / "bundle")]
    environment = os.environ | {"HF_ENDPOINT": "no address"}
    os.write(master, f"{answer}\n".encode())
    try:
        done = subprocess.run(command, env=environment, stdin=slave, capture_output=True, text=True, check=False)
    finally:
        os.close(master)
        os.close(slave)

    assert done.returncode == code, done.stderr
    assert "Create the folder? [y/N]" in done.stderr + done.stdout

"""A file is written whole or not at all, and its hash is right."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tourkit.files import fsync_dir, sha256_of, write_atomic


def test_an_atomic_write_makes_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", b"one")
    write_atomic(tmp_path / "a.json", b"two")

    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_failed_write_keeps_the_old_file_and_removes_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").write_bytes(b"old")

    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "a", b"new")

    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a" / "inside").read_bytes() == b"old"


def test_blocks_are_written_one_after_another(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", (b"line %d\n" % number for number in range(3)))
    write_atomic(tmp_path / "none", [])

    assert (tmp_path / "a").read_bytes() == b"line 0\nline 1\nline 2\n"
    assert (tmp_path / "none").read_bytes() == b""


def test_blocks_that_fail_keep_the_old_file_and_leave_nothing_else(tmp_path: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"half"
        raise KeyError("the journal has no such line")

    write_atomic(tmp_path / "a", b"old")
    with pytest.raises(KeyError):
        write_atomic(tmp_path / "a", blocks())

    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_new_name_appears_only_once_every_block_is_written(tmp_path: Path) -> None:
    seen: list[bool] = []

    def blocks() -> Iterator[bytes]:
        for _ in range(3):
            seen.append((tmp_path / "a").exists())
            yield b"x"

    write_atomic(tmp_path / "a", blocks())

    assert seen == [False] * 3


def test_a_write_into_no_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "a", b"x")


@pytest.mark.starts
def test_a_killed_writer_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    """A file with its final name is never half written, even if the process is killed."""
    target = tmp_path / "a"
    size = 300_000
    write_atomic(target, b"0" * size)
    code = f"""
import sys
from pathlib import Path
from tourkit.files import write_atomic
print("ready", flush=True)
while True:
    for digit in b"123456789":
        write_atomic(Path({str(target)!r}), bytes([digit]) * {size})
        print("wrote", flush=True)
"""
    for writes in (1, 4):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(1 + writes):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        data = target.read_bytes()
        assert len(data) == size
        assert len(set(data)) == 1


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a"
    writers = [threading.Thread(target=write_atomic, args=(target, bytes([digit]) * 100_000)) for digit in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert len(set(target.read_bytes())) == 1


def test_a_folder_can_be_synced(tmp_path: Path) -> None:
    fsync_dir(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_the_hash_is_that_of_hashlib_and_progress_adds_up(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    steps: list[int] = []

    assert sha256_of(tmp_path / "a", steps.append) == hashlib.sha256(data).hexdigest()
    assert sum(steps) == size
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()

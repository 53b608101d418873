"""Links and special files in a bundle: none is followed out of it, none is waited for, and each gives one line."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import make_bundle

from tourkit.bundle.index import INDEX, SUMS, read_index
from tourkit.bundle.scan import check_plain
from tourkit.bundle.verify import verify
from tourkit.errors import NotSo, TourkitError
from tourkit.fetch.download import SilentListener
from tourkit.fetch.folder_lock import LOCK_FILE, only_one
from tourkit.files import NotPlainError, make_folder_below, open_below, open_plain, read_below, sha256_below

WEIGHTS = "models/tiny-random/F16/tiny-random.gguf"
OUTSIDE = b"bytes of somebody else"

Maker = Callable[[Path, Path], None]  # gets the path to make, and a file outside of the bundle


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, outside: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def link_to_zeros(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path, outside: Path) -> None:
    path.symlink_to(path.name)


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to("nobody")


MAKERS = [fifo, unix_socket, folder, link, link_to_zeros, link_to_itself, link_to_nothing]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS makes no socket by mknod, Windows no FIFO")
each_kind = pytest.mark.parametrize("make", MAKERS, ids=[make.__name__ for make in MAKERS])


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_bytes(OUTSIDE)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"GGUF and more")
    return make_bundle(tmp_path / "bundle", gguf)


def put(path: Path, make: Maker, outside: Path) -> None:
    path.unlink()
    make(path, outside)


@contextmanager
def one_line(*texts: str) -> Iterator[None]:
    with pytest.raises(TourkitError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


@each_kind
def test_verify_names_a_weights_file_that_is_not_plain(bundle: Path, outside: Path, make: Maker) -> None:
    put(bundle / WEIGHTS, make, outside)

    report = verify(bundle)

    assert WEIGHTS in (*report.damaged, *report.missing)


@each_kind
@pytest.mark.parametrize("name", [INDEX, SUMS])
def test_verify_names_a_list_that_is_not_plain(bundle: Path, outside: Path, name: str, make: Maker) -> None:
    put(bundle / name, make, outside)

    report = verify(bundle)

    assert name in (*report.damaged, *report.missing)


@each_kind
def test_an_index_that_is_not_plain_is_one_line(bundle: Path, outside: Path, make: Maker) -> None:
    put(bundle / INDEX, make, outside)

    with one_line(INDEX):
        read_index(bundle)


@each_kind
def test_weights_that_are_not_plain_reach_no_loader(bundle: Path, outside: Path, make: Maker) -> None:
    index = read_index(bundle)
    put(bundle / WEIGHTS, make, outside)

    with pytest.raises(NotSo, match="not a plain file") as caught:
        check_plain(bundle, [file.path for file in index.files])

    assert "tourkit verify" in str(caught.value)


@pytest.mark.parametrize("way", ["models", "models/tiny-random", "models/tiny-random/F16"])
def test_a_folder_that_is_a_link_leads_nobody_out_of_the_bundle(bundle: Path, tmp_path: Path, way: str) -> None:
    (bundle / way).rename(tmp_path / "elsewhere")
    (bundle / way).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NotPlainError, match="not a folder"):
        open_below(bundle, WEIGHTS)
    with pytest.raises(NotPlainError, match="not a folder"):
        sha256_below(bundle, WEIGHTS)
    with pytest.raises(NotSo, match="not a folder"):
        check_plain(bundle, [WEIGHTS])
    with pytest.raises(NotPlainError):
        make_folder_below(bundle, "models/tiny-random/F16/new")
    assert WEIGHTS in verify(bundle).missing


def test_the_bundle_itself_may_be_behind_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "usb").symlink_to(bundle)

    assert verify(tmp_path / "usb").ok
    assert read_below(tmp_path / "usb", INDEX) == (bundle / INDEX).read_bytes()


@each_kind
def test_a_part_file_that_is_not_plain_is_neither_read_nor_written(tmp_path: Path, outside: Path, make: Maker) -> None:
    make(tmp_path / "file.part", outside)

    with pytest.raises(NotPlainError):
        open_plain(tmp_path / "file.part", os.O_RDWR | os.O_CREAT)

    assert outside.read_bytes() == OUTSIDE
    assert not (tmp_path / "nobody").exists()


@each_kind
def test_a_folder_lock_that_is_not_plain_is_one_line(tmp_path: Path, outside: Path, make: Maker) -> None:
    make(tmp_path / LOCK_FILE, outside)

    with pytest.raises(OSError, match="not a plain file"), only_one(tmp_path, SilentListener()):
        pass

    assert outside.read_bytes() == OUTSIDE


def test_a_loop_of_links_beside_the_models_is_listed_and_not_followed(bundle: Path) -> None:
    (bundle / "models" / "loop").symlink_to(bundle / "models")

    report = verify(bundle)

    assert report.extra == ("models/loop",)
    assert not report.damaged

"""`prefetch --python`: a standalone CPython that the user names is carried, pinned by its hash."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import small_bundle

from tourkit.bundle.index import read_index
from tourkit.bundle.verify import verify
from tourkit.errors import ManifestError, NotSo, UsageError, WrongContent
from tourkit.fetch.download import SilentListener
from tourkit.fetch.python_archive import Archive, carry, parse_archive, python_version
from tourkit.manifest.models import Link

NAME = "cpython-3.12.8+20241219-x86_64-unknown-linux-gnu-install_only.tar.gz"
PATH = f"python/{NAME}"


class Notes(SilentListener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_note(self, text: str) -> None:
        self.lines.append(text)


def packed(*names: str) -> bytes:
    """Return an archive of empty files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


LINUX = packed("python/bin/python3.12", "python/lib/python3.12/os.py")
WINDOWS = packed("python/python.exe", "python/python312.dll")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    small_bundle.make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / NAME).write_bytes(LINUX)
    return tmp_path / NAME


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_carried_and_indexed_under_its_name(root: Path, archive: Path) -> None:
    index = carry(root, [parse_archive(str(archive))], SilentListener())
    before = (root / PATH).stat()
    again = carry(root, [parse_archive(f"{archive}#sha256={sha256(LINUX)}")], SilentListener())

    assert [file.sha256 for file in index.files if file.path == PATH] == [sha256(LINUX)]
    assert again == index == read_index(root)
    assert (root / PATH).stat().st_mtime_ns == before.st_mtime_ns, "what is there is not written again"
    assert verify(root).ok


def test_a_file_with_another_hash_than_the_given_one_is_refused(root: Path, archive: Path) -> None:
    with pytest.raises(NotSo, match=f"sha256 is {sha256(LINUX)[:12]}…, --python says {'0' * 12}…"):
        carry(root, [parse_archive(f"{archive}#sha256={'0' * 64}")], SilentListener())

    assert not (root / PATH).exists()
    assert verify(root).ok


@pytest.mark.parametrize(("data", "version"), [(LINUX, "3.12"), (WINDOWS, "3.12")])
def test_the_version_is_read_from_the_archive(archive: Path, data: bytes, version: str) -> None:
    archive.write_bytes(data)

    assert python_version(archive) == version


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (packed("src/Python.h"), "holds no python/bin/python3"),
        (b"<html>", "no archive that tar can read"),
        (LINUX[:40], "tar"),
    ],
    ids=["no python", "no tar", "cut"],
)
def test_an_archive_without_a_python_is_refused_before_anything_is_fetched(
    archive: Path, data: bytes, why: str
) -> None:
    archive.write_bytes(data)

    with pytest.raises(UsageError, match=why):
        parse_archive(str(archive))


def test_a_python_without_wheels_is_remarked(root: Path, archive: Path) -> None:
    notes, later = Notes(), Notes()
    carry(root, [parse_archive(str(archive))], notes)
    (root / "wheels").mkdir()
    (root / "wheels" / "cp312-manylinux_2_31_x86_64-cpu.txt").write_text("")
    carry(root, [parse_archive(str(archive))], later)

    assert notes.lines == [f"{PATH} is Python 3.12; this bundle has no wheels for it: tourkit wheels --help"]
    assert later.lines == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nowhere/a.tar.gz", "no such file"),
        ("https://host/a.zip#sha256=" + "0" * 64, "not a .tar.gz"),
        ("https://host/a.tar.gz", "write #sha256=HEX behind it"),
        ("https://host/a.tar.gz#sha256=12", "64 hex digits"),
        ("https://me:secret@host/a.tar.gz#sha256=" + "0" * 64, "put name and password into .netrc"),
    ],
)
def test_what_cannot_be_pinned_or_found_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        parse_archive(text)

    assert "secret" not in str(raised.value)


def test_a_name_that_a_drive_cannot_hold_is_refused() -> None:
    with pytest.raises(ManifestError, match="Windows refuses"):
        parse_archive(f"https://host/a%3Ab.tar.gz#sha256={'0' * 64}")


def test_an_address_gives_the_name_without_its_escapes() -> None:
    parsed = parse_archive(f"https://host/x/{NAME.replace('+', '%2B')}#sha256={'0' * 64}")

    assert parsed == Archive(Link(f"https://host/x/{NAME.replace('+', '%2B')}"), PATH, "0" * 64)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that has the archive under every name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(LINUX)))
            self.end_headers()
            self.wfile.write(LINUX)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.starts
def test_an_address_is_downloaded_and_held_to_its_hash(root: Path, server: str) -> None:
    index = carry(root, [parse_archive(f"{server}/{NAME}#sha256={sha256(LINUX)}")], SilentListener())

    assert [file.sha256 for file in index.files if file.path == PATH] == [sha256(LINUX)]
    assert verify(root).ok
    with pytest.raises(WrongContent, match="sha256 is"):
        carry(root, [parse_archive(f"{server}/other.tar.gz#sha256={'0' * 64}")], SilentListener())

"""A standalone CPython in a bundle: an archive that the user names, for a machine where no Python fits the wheels.

It lies in python/ of the bundle. install.sh and install.ps1 unpack it beside the virtual environment.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tourkit.bundle.index import Index, read_index, write_index
from tourkit.errors import NotSo, UsageError
from tourkit.fetch.download import FetchListener, local_error
from tourkit.fetch.folder_lock import only_one
from tourkit.fetch.transfer import check_space, transfer
from tourkit.fetch.wheels.package_index import PackageIndex
from tourkit.fetch.wheels.pip_settings import read_settings
from tourkit.files import make_folder_below, sha256_of, write_atomic
from tourkit.manifest.models import Link, PinnedFile
from tourkit.manifest.paths import check_path

FOLDER = "python"
_PIN = re.compile(r"[0-9a-f]{64}")
_LIBRARY = re.compile(r"python/(?:lib/python3\.(\d+)/os\.py|python3(\d\d+)\.dll)")
_BLOCK = 1 << 20  # bytes of one read


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that the user named. `sha256` is empty for a file without one: its own hash is then the pin."""

    origin: Path | Link
    path: str  # in the bundle
    sha256: str

    @property
    def size(self) -> int | None:
        """Bytes; None for an address, which is not asked before the download."""
        return None if isinstance(self.origin, Link) else self.origin.stat().st_size


def parse_archive(text: str) -> Archive:
    """Return the archive that `text` names: FILE or URL, with #sha256=HEX behind it, which a URL needs.

    Raises UsageError for a name that no installer finds and for a file without a Python, ManifestError for a name that
    a drive cannot hold.
    """
    where, _, sha256 = text.partition("#sha256=")
    remote = where.startswith(("http://", "https://"))
    name = unquote(urlsplit(where).path).rpartition("/")[2] if remote else Path(where).name
    if not name.endswith(".tar.gz"):
        raise UsageError(f"--python {where}: not a .tar.gz: take the archive of the kind install_only")
    check_path(f"{FOLDER}/{name}", "--python")
    if sha256 and not _PIN.fullmatch(sha256):
        raise UsageError(f"--python {where}: #sha256= takes 64 hex digits: copy them from the page of the archive")
    if remote and not sha256:
        raise UsageError(f"--python {where}: the address has no checksum: write #sha256=HEX behind it")
    if remote and urlsplit(where).username is not None:
        raise UsageError("--python: the address has a user name: put name and password into .netrc")
    if not remote and not Path(where).is_file():
        raise UsageError(f"--python {where}: no such file: give a file or an address")
    if not remote:
        python_version(Path(where))
    return Archive(Link(where) if remote else Path(where), f"{FOLDER}/{name}", sha256)


def carry(root: Path, archives: Sequence[Archive], listener: FetchListener) -> Index:
    """Bring the archives into the bundle at `root`, and return its index with them.

    Raises UsageError for an archive without a Python, NotSo for a file with another hash than the given one, HubError
    and WrongContent as a download does, and LocalError.
    """
    try:
        with only_one(root, listener):
            brought = [_bring(root, archive, listener) for archive in archives]
            index = read_index(root)
            files = {file.path: file for file in (*index.files, *brought)}
            index = replace(index, files=tuple(files[path] for path in sorted(files)))
            write_index(root, index)
            return index
    except OSError as exc:
        raise local_error(exc, root) from exc


def _bring(root: Path, archive: Archive, listener: FetchListener) -> PinnedFile[None]:
    """Bring one archive to its place, look into it, and return its entry of the index."""
    dest = root / archive.path
    if isinstance(archive.origin, Link):
        sha256 = archive.sha256
        _download(root, archive.origin, archive, listener)
    else:
        sha256 = _copy(archive.origin, dest, archive.sha256)
    try:
        version = python_version(dest)
    except UsageError:
        dest.unlink()
        raise
    if not any((root / "wheels").glob(f"cp{version.replace('.', '')}-*.txt")):
        listener.on_note(f"{archive.path} is Python {version}; this bundle has no wheels for it: tourkit wheels --help")
    return PinnedFile(archive.path, dest.stat().st_size, sha256, None)


def _copy(origin: Path, dest: Path, expected: str) -> str:
    """Copy an archive to `dest` unless it is there, and return its SHA-256. `expected`: empty for any."""
    sha256 = sha256_of(origin)
    if expected not in ("", sha256):
        raise NotSo(f"{origin}: sha256 is {sha256[:12]}…, --python says {expected[:12]}…: download it again")
    if not (dest.is_file() and sha256_of(dest) == sha256):
        check_space(dest.parent.parent, origin.stat().st_size, "leave out --python")
        make_folder_below(dest.parent.parent, FOLDER)
        write_atomic(dest, _blocks(origin))
    return sha256


def _download(root: Path, link: Link, archive: Archive, listener: FetchListener) -> None:
    dest = root / archive.path
    if dest.is_file() and sha256_of(dest) == archive.sha256:
        return
    server = PackageIndex(read_settings())
    file = PinnedFile(archive.path, server.size(link), archive.sha256, link)
    check_space(root, file.size, "leave out --python")
    listener.on_start(file.size, file.size)
    transfer([file], root, server, 1, listener)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def python_version(path: Path) -> str:
    """Return the version of the Python in an archive, such as 3.12. Raises UsageError if there is none."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if found := _LIBRARY.fullmatch(member.name):
                    return f"3.{found[1] or found[2]}"
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise UsageError(f"{path}: no archive that tar can read ({exc}): download it again") from exc
    raise UsageError(f"{path}: holds no python/bin/python3: take the archive of the kind install_only")

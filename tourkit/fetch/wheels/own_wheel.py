"""The wheel of tourkit itself: built from this checkout, or packed again from the installed files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path

from tourkit import data
from tourkit.errors import LocalError, one_line

_NOT_PACKED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # of .dist-info: about this installation only
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the same files give the same wheel
_BUILD = "import sys; from hatchling import build; build.build_wheel(sys.argv[1])"


def own_wheel(folder: Path) -> Path:
    """Write tourkit's own wheel into `folder` and return its path.

    Raises LocalError if it cannot be built, or if an installed file is not as it was installed.
    """
    checkout = data.TEMPLATES.parent
    if (checkout / "pyproject.toml").is_file():
        return _build(checkout, folder)
    return pack(distribution("tourkit"), folder)


def _build(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a checkout with hatchling, in a process of its own because hatchling asks for that folder."""
    command = [sys.executable, "-c", _BUILD, str(folder.resolve())]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    built = sorted(folder.glob("tourkit-*.whl"))
    if done.returncode or not built:
        why = one_line(done.stderr.strip().rpartition("\n")[2] or "no output")
        raise LocalError(f"{checkout}: the wheel of tourkit cannot be built ({why}): pip install 'tourkit[supply]'")
    return built[-1]


def pack(installed: Distribution, folder: Path) -> Path:
    """Write the wheel of an installed distribution into `folder`: the files of its RECORD, each checked by its hash.

    Scripts and byte code are left out, because an installer makes them. Raises LocalError for a file that differs.
    """
    name, version = installed.metadata["Name"].replace("-", "_"), installed.version
    info = f"{name}-{version}.dist-info"
    tag = _tag(installed.read_text("WHEEL") or "")
    wheel = folder / f"{name}-{version}-{tag}.whl"
    record = io.StringIO()
    lines = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(_files(installed, info)):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.writerow([path, f"sha256={digest}", len(content)])
            archive.writestr(_entry(path), content)
        lines.writerow([f"{info}/RECORD", "", ""])
        archive.writestr(_entry(f"{info}/RECORD"), record.getvalue())
    return wheel


def _files(installed: Distribution, info: str) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the bytes of each file that belongs into the wheel."""
    listed = installed.files
    if not listed:
        raise LocalError(f"{info}: the installation has no RECORD: install tourkit with pip")
    for file in listed:
        if ".." in file.parts or "__pycache__" in file.parts or (file.parts[0] == info and file.name in _NOT_PACKED):
            continue
        yield file.as_posix(), _checked(file)


def _checked(file: PackagePath) -> bytes:
    try:
        content = Path(str(file.locate())).read_bytes()
    except OSError as exc:
        raise LocalError(f"{file}: cannot be read ({exc.strerror}): install tourkit again") from exc
    if file.hash is not None:
        found = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).rstrip(b"=").decode()
        if found != file.hash.value:
            raise LocalError(f"{file}: it was changed after the installation: install tourkit again")
    return content


def _tag(wheel_file: str) -> str:
    """Return the tag of the file name, from the lines of WHEEL."""
    tags = [line.partition(": ")[2] for line in wheel_file.splitlines() if line.startswith("Tag: ")]
    parts = (
        [sorted({tag.split("-")[place] for tag in tags}) for place in range(3)]
        if tags
        else [["py3"], ["none"], ["any"]]
    )
    return "-".join(".".join(part) for part in parts)


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry

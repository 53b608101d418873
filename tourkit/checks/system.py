"""Checks of the operating system: free ports, folders that can be written, free space, and mounts without exec."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tourkit import net
from tourkit.checks.findings import Finding, failure, ok, warning
from tourkit.client import DEFAULT_URL
from tourkit.errors import LocalError
from tourkit.fetch.drive import drive_of
from tourkit.units import GIB, MIB, size_text

DEFAULT_PORT = urlsplit(DEFAULT_URL).port or 0
_HOST = "127.0.0.1"
_TRIED = 20  # ports after the wanted one
_WRITTEN = 1 * MIB  # bytes of the trial: more than a file system keeps in its metadata
_LEAST_HOME = 1 * GIB  # for a virtual environment with llama.cpp, results, and caches
_LEAST_TEMPORARY = 256 * MIB  # for the sockets and caches of workers


def port_finding(port: int = DEFAULT_PORT) -> Finding:
    """Return whether a server can listen on this port of loopback. Binds it for a moment."""
    what = f"port {port}"
    taken = _refusal(port)
    if taken is None:
        return ok(what, "free")
    if _refusal(0) is not None:
        return failure(what, f"no port can be opened on {_HOST} ({taken})", "bring loopback up: `ip link set lo up`")
    free = next((other for other in range(port + 1, min(port + _TRIED, 65535)) if _refusal(other) is None), 0)
    fix = f"end the other program, or serve on another port with `tourkit serve --port {free}`"
    return warning(what, f"cannot be used ({taken})", fix)


def _refusal(port: int) -> str | None:
    """Return why a port cannot be opened; None if it can."""
    try:
        net.listen(_HOST, port).close()
    except LocalError as exc:
        cause = exc.__cause__
        return str(getattr(cause, "strerror", None) or cause)
    return None


def folder_findings() -> Iterator[Finding]:
    """Yield the findings on the home folder and on the temporary folder."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and the user has no entry in the system's list
        yield failure("home", "there is no home folder", "set HOME to a folder that can be written")
    else:
        yield space_finding("home", home, _LEAST_HOME)
        yield exec_finding("exec in home", home)
    wanted = os.environ.get("TMPDIR")
    try:
        used = Path(tempfile.gettempdir())
    except FileNotFoundError as exc:
        yield failure("temporary folder", str(exc.strerror or exc), "free some space, or set TMPDIR to another folder")
        return
    if wanted and Path(wanted).absolute() != used.absolute():
        detail = f"TMPDIR is {wanted}, which cannot be written; {used} is used"
        yield warning("temporary folder", detail, "free some space there, or set TMPDIR to another folder")
    yield space_finding("temporary folder", used, _LEAST_TEMPORARY)


def space_finding(what: str, folder: Path, least: int) -> Finding:
    """Return whether a folder can be written and has `least` bytes free. Writes 1 MiB and removes it."""
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_WRITTEN))
            file.flush()
            os.fsync(file.fileno())  # a quota or a network drive may refuse only now
    except OSError as exc:
        fix = "free some space there, or make it writable"
        return failure(what, f"{folder}: cannot write 1 MiB ({exc.strerror or exc})", fix)
    detail = f"{folder}: {size_text(free)} free"
    if free < least:
        return warning(what, f"{detail}, which is less than {size_text(least)}", "free some space there")
    return ok(what, detail)


def exec_finding(what: str, folder: Path) -> Finding:
    """Return whether programs and libraries in a folder can run: its drive is not mounted with noexec."""
    drive = drive_of(folder)
    if drive.device is None:
        return ok(what, f"{folder}: this system does not list how drives are mounted")
    if drive.noexec:
        fix = "make the virtual environment on another drive: `sh install.sh /other/place/tourkit-venv`"
        return warning(what, f"{folder}: mounted with noexec, so libraries in it cannot be loaded", fix)
    return ok(what, f"{folder}: programs can run there")
